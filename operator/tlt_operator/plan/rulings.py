"""The ruling on a revision that is tried: promoted, rolled back, or tried on; with the figures that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tlt_operator.api.names import RevisionPhase, RevisionReason
from tlt_operator.api.revision import Revision
from tlt_operator.plan.acceptance import DraftCounts
from tlt_operator.plan.actions import Ruling
from tlt_operator.plan.avoidance import is_avoided
from tlt_operator.plan.sequential_test import FINE_ERROR, TOLERANCE, WORSE_ERROR
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.plan.trial import Comparison, Setup, Trial

FEWEST_DRAFTS = 50  # on each side, before anything is held to be worse; harm that is certain waits for no more
CRASHES = 2  # restarts of canaries after which it is the revision's doing; one alone may be anybody's


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to become of the revision.

    `held` when it should leave and `autoRollback` is off; `stalled` when time has passed and drafts are too few.
    """

    phase: RevisionPhase
    message: str
    ruling: Ruling
    held: bool = False
    stalled: bool = False

    @property
    def final(self) -> bool:
        """The trial is over, whatever is counted afterwards."""
        return self.phase is not RevisionPhase.CANARY


def judge(trial: Trial, snapshot: Snapshot, setup: Setup) -> Verdict:
    """The verdict as of now.  What a pod refuses or dies of is withdrawn whatever `autoRollback` says."""
    for arm in trial.canaries:
        why = snapshot.by_uid[arm.uid].refusals.get(setup.candidate.name)
        if why is not None:
            return _withdrawn(RevisionReason.REFUSED, f"Canary {arm.pod} refused it: {why}")
    if trial.crashes >= CRASHES:
        return _withdrawn(RevisionReason.CRASH_LOOP, f"Its canaries' containers started again {trial.crashes} times")
    if snapshot.job.spec.suspend:
        return _tried_on(trial, "the job is suspended")
    evidence = trial.evidence
    if evidence.shows_worse and trial.has_seen(min(FEWEST_DRAFTS, setup.min_drafts)):
        told = f"Worse (wrong in at most {WORSE_ERROR:.0%} of trials): {_figures(trial, setup)}"
        return _worse(trial, snapshot, RevisionReason.WORSE, told)
    if not trial.has_seen(setup.min_drafts):
        return _with_few_drafts(trial, snapshot, setup)
    if evidence.shows_fine:
        told = f"Not worse by {TOLERANCE:.0%} (wrong in at most {FINE_ERROR:.0%} of trials): {_figures(trial, setup)}"
        return _promoted(RevisionReason.TEST_PASSED, told)
    if trial.seconds < setup.time_limit:
        return _tried_on(trial)
    limit = f"after {setup.time_limit:g} s without a certain difference"
    if trial.lean >= 0:
        return _promoted(RevisionReason.NO_REGRESSION, f"Does not look worse {limit}: {_figures(trial, setup)}")
    told = f"Looks worse by more than {TOLERANCE:.0%} {limit}: {_figures(trial, setup)}"
    return _worse(trial, snapshot, RevisionReason.SEEMS_WORSE, told)


def _with_few_drafts(trial: Trial, snapshot: Snapshot, setup: Setup) -> Verdict:
    """Nothing is promoted that was not seen at work."""
    if is_avoided(trial, setup.min_drafts):
        # Waiting for the time limit could show nothing more: these engines will not draft.
        told = f"Engines that had it stopped drafting with it: {_figures(trial, setup)}"
        return _worse(trial, snapshot, RevisionReason.AVOIDED, told)
    if trial.seconds < setup.time_limit:
        return _tried_on(trial)
    canary = trial.canary
    if setup.active is None and not trial.control.drafts and canary.drafts >= setup.min_drafts:
        # Pods without a revision may draft nothing at all; then a first one must be better than not to speculate.
        told = f"accept length {canary.length:.3f} in {canary.drafts} drafts, where the other pods draft nothing"
        if canary.length >= 1 + TOLERANCE:
            return _promoted(RevisionReason.NO_REGRESSION, f"Helps: {told}")
        return _withdrawn(RevisionReason.SEEMS_WORSE, f"Does not help: {told}")
    tried = _tried_on(
        trial,
        f"fewer than {setup.min_drafts} drafts to compare in {setup.time_limit:g} s; it stays with its canaries "
        "until there are enough or a newer one comes",
    )
    return replace(tried, stalled=True)


def _tried_on(trial: Trial, why: str = "") -> Verdict:
    pods = ", ".join(arm.pod for arm in trial.canaries[:3])
    more = f" and {len(trial.canaries) - 3} more" if len(trial.canaries) > 3 else ""
    where = f"in {pods}{more}" if trial.canaries else "in no pod yet"
    if trial.comparison is Comparison.BEFORE_AFTER:
        where += ", compared with what the same pod guessed before"
    message = f"On trial {where}" + (f": {why}" if why else "")
    return Verdict(
        phase=RevisionPhase.CANARY,
        message=message,
        ruling=Ruling(reason=RevisionReason.ON_TRIAL, words=message),
    )


def _worse(trial: Trial, snapshot: Snapshot, reason: RevisionReason, told: str) -> Verdict:
    if snapshot.job.spec.release.auto_rollback:
        return _withdrawn(reason, told)
    held = (
        "It should be rolled back, and spec.release.autoRollback is false: annotate it with tlt.dev/rollback=true or "
        "tlt.dev/promote=true"
    )
    tried = _tried_on(trial, held)
    return replace(tried, held=True)


def overtaken(newer: Revision) -> Verdict:
    """A newer one takes its turn."""
    told = f"{newer.name} came before it was decided on"
    return Verdict(
        phase=RevisionPhase.SUPERSEDED,
        message=told,
        ruling=Ruling(reason=RevisionReason.OVERTAKEN, words=told),
    )


def _withdrawn(reason: RevisionReason, told: str) -> Verdict:
    return Verdict(phase=RevisionPhase.ROLLED_BACK, message=told, ruling=Ruling(reason=reason, words=told))


def _promoted(reason: RevisionReason, told: str) -> Verdict:
    return Verdict(phase=RevisionPhase.ACTIVE, message=told, ruling=Ruling(reason=reason, words=told))


def _figures(trial: Trial, setup: Setup) -> str:
    last = setup.active.name if setup.active is not None else "the servers' own drafter"
    when = "at the same time" if trial.comparison is Comparison.SIDE_BY_SIDE else "in the same pod before"
    evidence = trial.evidence
    return (
        f"accept length {_told(trial.canary)}, of {last} {when} {_told(trial.control)}; log10 of the e-values: "
        f"worse {log10(evidence.worse):.1f} of {-math.log10(WORSE_ERROR):.1f}, "
        f"fine {log10(evidence.fine):.1f} of {-math.log10(FINE_ERROR):.1f}"
    )


def log10(natural: float) -> float:
    """A natural logarithm as one to the base of ten."""
    return natural / math.log(10)


def _told(counts: DraftCounts) -> str:
    return f"{counts.length:.3f} in {counts.drafts} drafts" if counts.drafts else "unknown"
