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
from tlt_operator.plan.rulings import Verdict, judge
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_operator.plan.trial import Setup, Trial, follow_trial, holds, in_turn, read_trial
from tlt_operator.plan.waves import SLOW_AFTER, Missing, next_wave
from tlt_operator.plan.worker import WorkerState

_OPEN = (None, RevisionPhase.CANDIDATE, RevisionPhase.CANARY)
LONGEST_STEP = 5.0  # seconds that count of the time between two looks: a trial does not run while nobody looks


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something that a person should hear of once."""

    reason: EventReason
    subject: str
    message: str


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


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """The revisions by what they are now, people's wishes included."""

    active: Revision | None
    ruling: Ruling | None  # why `active` is it, when its status does not say so yet
    tried: Revision | None  # on trial, or next
    waiting: Revision | None  # newer than the one on trial
    marks: tuple[MarkRevision, ...]


def decide_revisions(
    snapshot: Snapshot, workers: Mapping[str, WorkerState], before: ReleaseMemory | None = None
) -> Rollout:
    """Revisions to make, to load and to mark."""
    before = before or ReleaseMemory()
    release = snapshot.job.spec.release
    standing = _stand(snapshot)
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
        final = verdict if verdict.final else None
        memory = ReleaseMemory(revision=tried.name, trial=trial, at=snapshot.now, final=final)
        if verdict.phase is not RevisionPhase.ROLLED_BACK:
            targets = {arm.uid: tried for arm in trial.canaries}
        marks.append(_trial_mark(tried, trial, verdict, reachable))
    spread = _spread(snapshot, reachable, targets, active)
    counts, refusals = _count(reachable, targets, active=active, shown=active if active is not None else tried)
    if tried is not None and release.canary.replicas == 0:
        counts, refusals = _count(reachable, targets, active=active, shown=tried)
        marks.append(_mark_without_trial(tried, counts, refusals, reachable))
    if active is not None:
        marks += _active_marks(snapshot, standing, reachable, targets)
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
        missing_pin=_missing_pin(snapshot),
        remarks=_remarks(snapshot, tried, verdict),
        memory=memory,
    )


def _stand(snapshot: Snapshot) -> _Standing:
    revisions = sorted(snapshot.revisions, key=lambda item: item.number)
    pinned = next((item for item in revisions if item.name == snapshot.job.spec.release.pin), None)
    withdrawn = [item for item in revisions if item.wish is Wish.ROLL_BACK and item is not pinned]
    marks = [
        _withdraw(item, RevisionReason.BY_HAND, "Rolled back by hand (tlt.dev/rollback)")
        for item in withdrawn
        if item.phase is not RevisionPhase.ROLLED_BACK
    ]
    usable = [item for item in revisions if item not in withdrawn and item.phase is not RevisionPhase.ROLLED_BACK]
    active, ruling = _find_active(usable, pinned)
    open_ones = [item for item in usable if item.phase in _OPEN and item is not active]
    if pinned is None:
        asked = next((item for item in reversed(open_ones) if item.wish is Wish.PROMOTE), None)
        if asked is not None:
            active, ruling = asked, Ruling(reason=RevisionReason.BY_HAND, words="Promoted by hand (tlt.dev/promote)")
            open_ones = [item for item in open_ones if item.number > asked.number]
        if active is not None and active.phase is RevisionPhase.ACTIVE:
            stale = [item for item in open_ones if item.number < active.number]
            marks += [_overtake(item, active) for item in stale]
            open_ones = [item for item in open_ones if item not in stale]
    tried, waiting = _next_in_line(snapshot, open_ones, pinned=pinned)
    last = waiting or tried
    marks += [_overtake(item, last) for item in open_ones if last is not None and item not in (tried, waiting)]
    if waiting is not None:
        marks.append(_wait(snapshot, waiting, tried=tried, pinned=pinned))
    return _Standing(active=active, ruling=ruling, tried=tried, waiting=waiting, marks=tuple(marks))


def _find_active(usable: Sequence[Revision], pinned: Revision | None) -> tuple[Revision | None, Ruling | None]:
    """The revision for all pods, and why it is it when that is news."""
    if pinned is not None:
        words = "Pinned by spec.release.pin"
        news = pinned.phase is not RevisionPhase.ACTIVE
        return pinned, Ruling(reason=RevisionReason.PINNED, words=words) if news else None
    active = next((item for item in reversed(usable) if item.phase is RevisionPhase.ACTIVE), None)
    if active is not None:
        return active, None
    # Only a roll-back leaves no active one behind: whoever is promoted is so before the last one is replaced.
    last = next((item for item in reversed(usable) if item.promoted and item.phase not in _OPEN), None)
    words = "Restored: the revision after it was rolled back"
    return last, Ruling(reason=RevisionReason.RESTORED, words=words) if last is not None else None


def _next_in_line(
    snapshot: Snapshot, open_ones: Sequence[Revision], *, pinned: Revision | None
) -> tuple[Revision | None, Revision | None]:
    """The one on trial, which goes on, and the newest behind it; without a trial that goes on the newest is next."""
    newest = open_ones[-1] if open_ones else None
    running = next((item for item in reversed(open_ones) if item.phase is RevisionPhase.CANARY), None)
    if pinned is not None:
        return None, newest
    if running is None and snapshot.job.spec.suspend:
        return None, newest
    tried = running or newest
    return tried, newest if newest is not tried else None


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
    turn = {view.pod.uid: index for index, view in enumerate(in_turn(reachable, active.name if active else ""))}
    for view in sorted(reachable, key=lambda view: turn[view.pod.uid]):
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
    missing.sort(key=lambda item: (_has_any(item.view), item.view.pod.uid not in targets))
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
    standing: _Standing,
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


def _withdraw(revision: Revision, reason: RevisionReason, words: str) -> MarkRevision:
    ruling = Ruling(reason=reason, words=words)
    return MarkRevision(revision=revision, phase=RevisionPhase.ROLLED_BACK, message=words, ruling=ruling)


def _overtake(revision: Revision, newer: Revision) -> MarkRevision:
    words = f"{newer.name} came before it was decided on"
    ruling = Ruling(reason=RevisionReason.OVERTAKEN, words=words)
    return MarkRevision(revision=revision, phase=RevisionPhase.SUPERSEDED, message=words, ruling=ruling)


def _wait(snapshot: Snapshot, revision: Revision, *, tried: Revision | None, pinned: Revision | None) -> MarkRevision:
    if pinned is not None:
        words = f"Waits: spec.release.pin holds the job to {pinned.name}"
    elif tried is not None:
        words = f"Waits until {tried.name} is decided on"
    else:
        words = "Waits: spec.suspend is true" if snapshot.job.spec.suspend else "Waits"
    ruling = Ruling(reason=RevisionReason.WAITING, words=words)
    return MarkRevision(revision=revision, phase=RevisionPhase.CANDIDATE, message=words, ruling=ruling)


def _most_refused(counts: PodCounts) -> bool:
    return 2 * counts.failed > counts.total


def _refused_by_most(revision: Revision, counts: PodCounts, refusals: Mapping[str, str]) -> MarkRevision:
    pod, why = next(iter(refusals.items()))
    words = f"{counts.failed} of {counts.total} rollout pods refused it; {pod}: {why}"
    return _withdraw(revision, RevisionReason.REFUSED, words)


def _last_before(revisions: Iterable[Revision], active: Revision) -> Revision | None:
    """What would be restored if `active` were rolled back."""
    earlier = [item for item in revisions if item.phase is RevisionPhase.SUPERSEDED and item.promoted]
    return max((item for item in earlier if item is not active), key=lambda item: item.number, default=None)


def _remarks(snapshot: Snapshot, tried: Revision | None, verdict: Verdict | None) -> tuple[Remark, ...]:
    """What people asked for and did not get, and what the operator leaves to them."""
    found = [
        Remark(
            reason=EventReason.RELEASE_IGNORED,
            subject=f"{item.name}/{annotation}",
            message=f'Annotation {annotation} of {item.name} does nothing: its value must be "true"',
        )
        for item in snapshot.revisions
        for annotation in item.odd_wishes
    ]
    pin = snapshot.job.spec.release.pin
    for item in snapshot.revisions:
        why = _why_not(item, pin)
        if why is not None:
            found.append(Remark(reason=EventReason.RELEASE_IGNORED, subject=f"{item.name}/wish", message=why))
    if (missing := _missing_pin(snapshot)) is not None:
        message = f"spec.release.pin names {missing}, which is no DrafterRevision of this job; nothing is pinned"
        found.append(Remark(reason=EventReason.RELEASE_IGNORED, subject="pin", message=message))
    if tried is not None and verdict is not None and verdict.held:
        found.append(Remark(reason=EventReason.REVISION_HELD, subject=tried.name, message=verdict.message))
    return tuple(found)


def _why_not(revision: Revision, pin: str | None) -> str | None:
    """Why a wish is not fulfilled; None when it is, or there is none."""
    name = revision.name
    if revision.wish is Wish.ROLL_BACK and name == pin:
        return f"{name} is not rolled back while spec.release.pin names it"
    if revision.wish is Wish.PROMOTE:
        if pin is not None and name != pin:
            return f"{name} is not promoted while spec.release.pin holds the job to {pin}"
        if revision.phase is RevisionPhase.ROLLED_BACK and name != pin:
            return f"{name} was rolled back and is not promoted; set spec.release.pin to {name} to use it all the same"
        if revision.phase is RevisionPhase.SUPERSEDED and not revision.promoted:
            return f"{name} was overtaken by a newer revision; set spec.release.pin to {name} to use it all the same"
    return None


def _missing_pin(snapshot: Snapshot) -> str | None:
    pin = snapshot.job.spec.release.pin
    return pin if pin is not None and all(item.name != pin for item in snapshot.revisions) else None


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
