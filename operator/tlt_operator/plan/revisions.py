"""Drafter revisions: which one the pods should have, which one is tried, and what becomes of the others.

`Candidate -> Canary -> Active -> Superseded`, and from each of these to `RolledBack`, which is for good.  A person may
promote, roll back or pin at any time; what a person asked for is read from the objects and never remembered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tlt_operator.api.names import EventReason, RevisionPhase, RevisionReason
from tlt_operator.api.revision import Revision, Wish
from tlt_operator.plan.actions import Action, LiveEvidence, LoadDrafter, MarkRevision, PodCounts, Ruling, UnloadDrafter
from tlt_operator.plan.candidates import find_candidates
from tlt_operator.plan.rulings import Verdict, judge, overtaken
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_operator.plan.standing import Remark, Standing, find_remarks, missing_pin, stand, withdraw
from tlt_operator.plan.trial import Setup, Trial, follow_trial, holds, read_trial, turn
from tlt_operator.plan.waves import SLOW_AFTER, Missing, next_wave
from tlt_operator.plan.worker import WorkerState

LONGEST_STEP = 5.0  # seconds that count of the time between two looks: a trial does not run while nobody looks


@dataclass(frozen=True, kw_only=True)
class ReleaseMemory:
    """The trial as of the last look.  The revision's status has it too, half a minute old at most."""

    revision: str | None = None
    trial: Trial = field(default_factory=Trial)
    at: float = 0.0
    final: Verdict | None = None  # it stands until the revision's status says so, whatever is counted meanwhile


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Where the job's revisions stand."""

    actions: tuple[Action, ...] = ()
    active: Revision | None = None
    candidate: Revision | None = None  # the newest that is neither active nor decided on
    trial: Trial | None = None  # of the candidate that is tried
    counts: PodCounts = field(default_factory=PodCounts)  # of the active one; while there is none, of the candidate
    refusals: Mapping[str, str] = field(default_factory=dict)  # pod name -> why it refused what it should have
    accept_length: float | None = None  # of the active revision, in the pods
    baseline: float | None = None  # of the revision before
    arriving: frozenset[str] = frozenset()  # pods (uids) that get their first revision just now
    missing_pin: str | None = None
    remarks: tuple[Remark, ...] = ()
    memory: ReleaseMemory = field(default_factory=ReleaseMemory)


def decide_revisions(
    snapshot: Snapshot, workers: Mapping[str, WorkerState], before: ReleaseMemory | None = None
) -> Rollout:
    """Revisions to make, to load and to mark."""
    before = before or ReleaseMemory()
    release = snapshot.job.spec.release
    standing = stand(snapshot)
    reachable = [view for view in snapshot.rollouts if _takes_drafters(view, workers[view.pod.uid])]
    marks, active, tried = list(standing.marks), standing.active, standing.tried
    memory, verdict, targets = ReleaseMemory(), None, dict[str, Revision | None]()
    trial: Trial | None = None
    if tried is not None and release.canary.replicas == 0:
        targets = {view.pod.uid: tried for view in reachable}
    elif tried is not None:
        setup = Setup(
            candidate=tried,
            active=active,
            replicas=release.canary.replicas,
            min_drafts=release.canary.min_drafts,
            time_limit=release.canary.time_limit,
        )
        known = before.trial if before.revision == tried.name else read_trial(tried.trial)
        step = snapshot.now - before.at if before.revision == tried.name and not snapshot.job.spec.suspend else 0.0
        trial = follow_trial(known, snapshot, setup, reachable=reachable, elapsed=min(step, LONGEST_STEP))
        verdict = before.final if before.revision == tried.name else None
        verdict = verdict or judge(trial, snapshot, setup)
        if verdict.stalled and standing.waiting is not None:
            verdict = overtaken(standing.waiting)
        final = verdict if verdict.final else None
        memory = ReleaseMemory(revision=tried.name, trial=trial, at=snapshot.now, final=final)
        if verdict.phase in (RevisionPhase.CANARY, RevisionPhase.ACTIVE):
            targets = {arm.uid: tried for arm in trial.canaries}
        marks.append(_trial_mark(tried, trial, verdict, reachable))
    spread = _spread(snapshot, reachable, targets, active)
    counts, refusals = _count(reachable, targets, active=active, shown=active if active is not None else tried)
    if tried is not None and release.canary.replicas == 0:
        counts, refusals = _count(reachable, targets, active=active, shown=tried)
        marks.append(_mark_without_trial(tried, counts, refusals, reachable))
    if active is not None:
        marks += _active_marks(snapshot, standing, reachable, targets)
    remarks = find_remarks(snapshot)
    if tried is not None and verdict is not None and verdict.held:
        remarks += (Remark(reason=EventReason.REVISION_HELD, subject=tried.name, message=verdict.message),)
    measured = _measure(view for view in reachable if active is not None and view.has(active))
    return Rollout(
        actions=(*find_candidates(snapshot), *spread, *marks),
        active=active,
        candidate=standing.waiting or tried,
        trial=trial,
        counts=counts,
        refusals=refusals,
        accept_length=measured.accept_length,
        baseline=_baseline(snapshot.revisions, active),
        arriving=_arriving(snapshot, reachable, spread),
        missing_pin=missing_pin(snapshot),
        remarks=remarks,
        memory=memory,
    )


def _spread(
    snapshot: Snapshot,
    reachable: Sequence[RolloutView],
    targets: Mapping[str, Revision | None],
    active: Revision | None,
) -> list[Action]:
    """Brings pods to what they should have: new ones first, which have nothing yet, then canaries, then the others."""
    known = {item.name for item in snapshot.revisions}
    missing: list[Missing] = []
    actions: list[Action] = []
    loaded = 0
    for view in reachable:
        wanted = targets.get(view.pod.uid, active)
        if holds(view, wanted):
            loaded += 1
        elif _updating(view):
            continue
        elif wanted is None:
            name = view.state.drafter_revision if view.state is not None else None
            if name in known and view.loading_since is None:
                actions.append(UnloadDrafter(rollout_uid=view.pod.uid, why=f"it has {name}, and none is active"))
        elif wanted.name not in view.refusals:
            missing.append(Missing(view=view, revision=wanted))
    missing.sort(
        key=lambda item: (_has_any(item.view), item.view.pod.uid not in targets, turn(item.view, item.revision.name))
    )
    most = snapshot.job.spec.release.max_unavailable
    return [*actions, *next_wave(missing, snapshot, loaded=loaded, most=most)]


def _arriving(snapshot: Snapshot, reachable: Sequence[RolloutView], spread: Sequence[Action]) -> frozenset[str]:
    loading = {item.rollout_uid for item in spread if isinstance(item, LoadDrafter)}
    for view in reachable:
        if view.loading_since is not None and snapshot.now - view.loading_since < SLOW_AFTER:
            loading.add(view.pod.uid)
    return frozenset(view.pod.uid for view in reachable if view.pod.uid in loading and not _has_any(view))


def _count(
    reachable: Sequence[RolloutView],
    targets: Mapping[str, Revision | None],
    *,
    active: Revision | None,
    shown: Revision | None,
) -> tuple[PodCounts, dict[str, str]]:
    """How far `shown` has come in the pods that should have it."""
    if shown is None:
        return PodCounts(), {}
    meant = [view for view in reachable if targets.get(view.pod.uid, active) is shown]
    refusals = {
        view.pod.name: view.refusals[shown.name]
        for view in meant
        if shown.name in view.refusals and not view.has(shown)
    }
    loaded = sum(view.has(shown) for view in meant)
    return PodCounts(total=len(meant), loaded=loaded, failed=len(refusals)), refusals


def _trial_mark(tried: Revision, trial: Trial, verdict: Verdict, reachable: Sequence[RolloutView]) -> MarkRevision:
    canaries = {arm.uid for arm in trial.canaries}
    views = [view for view in reachable if view.pod.uid in canaries]
    counts, _ = _count(views, {}, active=tried, shown=tried)
    return MarkRevision(
        revision=tried,
        phase=verdict.phase,
        message=verdict.message,
        ruling=verdict.ruling,
        pods=PodCounts(total=len(canaries), loaded=counts.loaded, failed=counts.failed),
        evidence=_measure(view for view in views if view.has(tried)),
        trial=trial,
    )


def _mark_without_trial(
    tried: Revision, counts: PodCounts, refusals: Mapping[str, str], reachable: Sequence[RolloutView]
) -> MarkRevision:
    """`canary.replicas: 0`: active once all have it who take it, rolled back once most have refused it."""
    if _most_refused(counts):
        return _refused_by_most(tried, counts, refusals)
    evidence = _measure(view for view in reachable if view.has(tried))
    if counts.total and counts.loaded + counts.failed == counts.total:
        message = f"{counts.loaded} of {counts.total} rollout pods have it"
        words = "Came to all pods at once: spec.release.canary.replicas is 0"
        return MarkRevision(
            revision=tried,
            phase=RevisionPhase.ACTIVE,
            message=message,
            ruling=Ruling(reason=RevisionReason.WITHOUT_CANARY, words=words),
            pods=counts,
            evidence=evidence,
        )
    message = f"Loading: {counts.loaded} of {counts.total} rollout pods have it"
    ruling = Ruling(reason=RevisionReason.WAITING, words="On its way into all pods")
    return MarkRevision(
        revision=tried, phase=RevisionPhase.CANDIDATE, message=message, ruling=ruling, pods=counts, evidence=evidence
    )


def _active_marks(
    snapshot: Snapshot,
    standing: Standing,
    reachable: Sequence[RolloutView],
    targets: Mapping[str, Revision | None],
) -> list[MarkRevision]:
    active = standing.active
    assert active is not None
    counts, refusals = _count(reachable, targets, active=active, shown=active)
    last = _last_before(snapshot.revisions, active)
    pinned = snapshot.job.spec.release.pin == active.name
    if _most_refused(counts) and not pinned and last is not None and any(view.has(last) for view in reachable):
        return [_refused_by_most(active, counts, refusals)]
    marks = [
        MarkRevision(
            revision=active,
            phase=RevisionPhase.ACTIVE,
            message=f"{counts.loaded} of {counts.total} rollout pods have it",
            ruling=standing.ruling,
            pods=counts,
            evidence=_measure(view for view in reachable if view.has(active)),
        )
    ]
    if active.phase is RevisionPhase.ACTIVE:
        marks += [
            MarkRevision(revision=item, phase=RevisionPhase.SUPERSEDED, message=f"Replaced by {active.name}")
            for item in snapshot.revisions
            if item.name != active.name and item.phase is RevisionPhase.ACTIVE and item.wish is not Wish.ROLL_BACK
        ]
    return marks


def _most_refused(counts: PodCounts) -> bool:
    return 2 * counts.failed > counts.total


def _refused_by_most(revision: Revision, counts: PodCounts, refusals: Mapping[str, str]) -> MarkRevision:
    pod, why = next(iter(refusals.items()))
    words = f"{counts.failed} of {counts.total} rollout pods refused it; {pod}: {why}"
    return withdraw(revision, RevisionReason.REFUSED, words)


def _last_before(revisions: Iterable[Revision], active: Revision) -> Revision | None:
    """What would be restored if `active` were rolled back."""
    earlier = [item for item in revisions if item.phase is RevisionPhase.SUPERSEDED and item.promoted]
    return max((item for item in earlier if item is not active), key=lambda item: item.number, default=None)


def _takes_drafters(view: RolloutView, worker: WorkerState) -> bool:
    if worker in (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE) or view.state is None:
        return False
    return view.state.drafter_method is not None


def _has_any(view: RolloutView) -> bool:
    return view.state is not None and view.state.drafter_revision is not None


def _updating(view: RolloutView) -> bool:
    return view.state is not None and view.state.updating


def _measure(views: Iterable[RolloutView]) -> LiveEvidence:
    states = [view.state for view in views if view.state is not None]
    drafts = sum(state.acceptance.drafts for state in states)
    accepted = sum(state.acceptance.accepted_tokens for state in states)
    stalls = [state.swap_stall for state in states if state.swap_stall is not None]
    return LiveEvidence(
        drafts=drafts,
        accept_length=1 + accepted / drafts if drafts else None,
        swap_stall=max(stalls) if stalls else None,
    )


def _baseline(revisions: Iterable[Revision], active: Revision | None) -> float | None:
    if active is None:
        return None
    before = [item for item in revisions if item.number < active.number and item.promoted]
    last = max(before, key=lambda item: item.number, default=None)
    return last.accept_length if last is not None else None
