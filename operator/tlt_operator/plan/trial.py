"""A revision on trial: which pods try it, which go on with the last one, and what both count meanwhile.

The record of a trial is all that a decision about it needs.  It is kept in the revision's status, so that an operator
that starts in the middle counts on: of each pod it holds the totals that were counted last, and a pod's totals only
grow until its server, its drafter or its policy changes.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tlt_operator.api.revision import Revision
from tlt_operator.plan.acceptance import DraftCounts, counts_by_length
from tlt_operator.plan.sequential_test import Evidence, Stratum, lean, weigh
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_workloads.codec import ContractError, decode, encode
from tlt_workloads.contract import RolloutState

CONTROLS = 4  # control pods for each canary: more would hardly make the difference of the two sides more precise
MOST_CONTROLS = 64
MOST_STRATA = 256  # a trial with more has seen many policies and few drafts of each, and begins anew
LATE_AFTER = 30.0  # seconds that a canary may take to load the revision before another pod tries it
LOST_AFTER = 300.0  # seconds of silence after which a pod is no longer waited for


class Side(enum.StrEnum):
    """What a pod of a trial runs."""

    CANARY = "Canary"  # the revision on trial
    CONTROL = "Control"  # the active one, or the drafter that its server started with


class Comparison(enum.StrEnum):
    """Against what a revision is held."""

    SIDE_BY_SIDE = "SideBySide"  # other pods, at the same time
    BEFORE_AFTER = "BeforeAfter"  # the only pod there is, with the drafter of before


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A pod's totals for one draft length, as they were counted last."""

    draft_length: int
    drafts: int
    accepted: int


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One pod of a trial."""

    pod: str
    uid: str
    side: Side
    boot: str = ""
    policy_version: int = 0
    readings: tuple[Reading, ...] = ()
    generated: int = 0  # the pod's total of tokens, as it was counted last
    written: int = 0  # tokens of the trial, on this side
    restarts: int = 0  # of its containers, when it was looked at last
    loaded: bool = False  # it had the drafter of its side since then
    waited: float = 0.0  # seconds without the drafter of its side
    loading_under: int | None = None  # policy version at the last look, if it had yet to load the drafter of its side

    @property
    def late(self) -> bool:
        """Whether a canary has kept the others waiting for too long."""
        return self.waited > LATE_AFTER


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that is known of a trial; a new one knows nothing."""

    comparison: Comparison = Comparison.SIDE_BY_SIDE
    against: str | None = None  # the active revision; None is the drafter that the servers started with
    seconds: float = 0.0
    arms: tuple[Arm, ...] = ()
    strata: tuple[Stratum, ...] = ()
    crashes: int = 0  # restarts of canaries that had the revision

    @property
    def canaries(self) -> tuple[Arm, ...]:
        """The pods that are to have the revision."""
        return tuple(arm for arm in self.arms if arm.side is Side.CANARY)

    @property
    def evidence(self) -> Evidence:
        """What has been shown so far."""
        return weigh(self.strata)

    @property
    def lean(self) -> float:
        """What it looks like, without a promise; see `sequential_test.lean`."""
        return lean(self.strata)

    @property
    def canary(self) -> DraftCounts:
        """All that the canaries counted."""
        return sum((item.canary for item in self.strata), DraftCounts())

    @property
    def control(self) -> DraftCounts:
        """All that the other side counted."""
        return sum((item.control for item in self.strata), DraftCounts())

    def has_seen(self, drafts: int) -> bool:
        """Whether each side has made so many drafts under circumstances that the other one has met too."""
        met = [item for item in self.strata if item.canary.drafts and item.control.drafts]
        canary = sum(item.canary.drafts for item in met)
        control = sum(item.control.drafts for item in met)
        return canary >= drafts and control >= drafts


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a trial is about."""

    candidate: Revision
    active: Revision | None  # None: the drafter that the servers started with
    replicas: int
    min_drafts: int
    time_limit: float  # seconds


def read_trial(data: Mapping[str, Any] | None) -> Trial:
    """The record in a status; an empty one when there is none or it cannot be read, as after an upgrade."""
    try:
        return decode(Trial, data) if data else Trial()
    except ContractError:
        return Trial()


def write_trial(trial: Trial) -> dict[str, Any]:
    """The record as kept in a status."""
    return encode(trial)


def follow_trial(
    before: Trial, snapshot: Snapshot, setup: Setup, *, reachable: Sequence[RolloutView], elapsed: float
) -> Trial:
    """The trial after another look, `elapsed` seconds later."""
    present = [view for view in snapshot.rollouts if _is_present(view, snapshot)]
    comparison = Comparison.BEFORE_AFTER if len(present) == 1 else Comparison.SIDE_BY_SIDE
    against = setup.active.name if setup.active is not None else None
    same = (before.comparison, before.against) == (comparison, against)
    trial = before if same else Trial(comparison=comparison, against=against)
    trial = replace(trial, seconds=trial.seconds + elapsed)
    if comparison is Comparison.BEFORE_AFTER:
        arms = _alone(trial, present[0], setup)
    else:
        arms = _beside(trial, snapshot, setup, present=present, reachable=reachable)
    strata = {(item.policy_version, item.draft_length): item for item in trial.strata}
    looked: list[Arm] = []
    crashes = trial.crashes
    for arm in arms:
        view = snapshot.by_uid[arm.uid]
        crashed = arm.side is Side.CANARY and arm.loaded and view.pod.restarts > arm.restarts
        crashes += crashed
        arm = replace(arm, restarts=view.pod.restarts, loaded=arm.loaded and not crashed)
        counted = _count(arm, view, setup, comparison, strata)
        held = counted.boot != ""
        looked.append(replace(counted, waited=arm.waited if held else arm.waited + elapsed))
    kept = tuple(strata.values()) if len(strata) <= MOST_STRATA else ()
    return replace(trial, arms=tuple(looked), crashes=crashes, strata=kept)


def holds(view: RolloutView, revision: Revision | None) -> bool:
    """Whether the pod has the revision, or with None the drafter that its server started with."""
    if revision is not None:
        return view.has(revision)
    return view.state is not None and view.state.drafter_revision is None


def turn(view: RolloutView, revision: str) -> bytes:
    """A pod's place in an order that is another one for each revision: not the same pods always go first."""
    return hashlib.sha256(f"{revision}/{view.pod.uid}".encode()).digest()


def readings_of(state: RolloutState) -> tuple[Reading, ...]:
    """A pod's totals by draft length."""
    return tuple(
        Reading(draft_length=length, drafts=counts.drafts, accepted=counts.accepted)
        for length, counts in counts_by_length(state).items()
    )


def _is_present(view: RolloutView, snapshot: Snapshot) -> bool:
    if view.pod.deleting or view.pod.finished or snapshot.silence(view) > LOST_AFTER:
        return False
    return view.state is None or view.state.drafter_method is not None


def _alone(trial: Trial, view: RolloutView, setup: Setup) -> tuple[Arm, ...]:
    """The only pod is its own control first; what it guesses then is as fresh as what it guesses as a canary.

    It goes on with half of the time and drafts enough, or none because it drafts nothing without a revision.
    """
    known = next((arm for arm in trial.arms if arm.uid == view.pod.uid), None)
    drafts, half = trial.control.drafts, trial.seconds >= setup.time_limit / 2
    enough = drafts >= CONTROLS * setup.min_drafts or (half and (drafts >= setup.min_drafts or not drafts))
    side = Side.CANARY if enough else Side.CONTROL
    if known is not None and known.side is side:
        return (known,)
    return (_arm(view, side),)


def _beside(
    trial: Trial, snapshot: Snapshot, setup: Setup, *, present: Sequence[RolloutView], reachable: Sequence[RolloutView]
) -> tuple[Arm, ...]:
    """Pods stay on their side for as long as they answer; one at least is always a control."""
    wanted = min(setup.replicas, max(0, len(present) - 1))
    there = {view.pod.uid for view in present if snapshot.silence(view) <= snapshot.limits.silence}
    kept = [
        replace(arm, side=Side.CONTROL, boot="", readings=(), written=0)
        if arm.side is Side.CANARY and arm.late
        else arm
        for arm in trial.arms
        if arm.uid in there
    ]
    late = {arm.uid for arm in kept if arm.late}
    name = setup.candidate.name
    free = sorted(reachable, key=lambda view: (view.pod.uid in late, turn(view, name)))
    canaries = [arm for arm in kept if arm.side is Side.CANARY][:wanted]
    taken = {arm.uid for arm in canaries}
    fresh = [view for view in free if view.pod.uid not in taken][: wanted - len(canaries)]
    canaries += [_arm(view, Side.CANARY) for view in fresh]
    taken = {arm.uid for arm in canaries}
    most = min(MOST_CONTROLS, CONTROLS * len(canaries))
    controls = [arm for arm in kept if arm.side is Side.CONTROL and arm.uid not in taken][:most]
    taken |= {arm.uid for arm in controls}
    fresh = [view for view in free if view.pod.uid not in taken][: most - len(controls)]
    controls += [_arm(view, Side.CONTROL) for view in fresh]
    return (*canaries, *controls)


def _arm(view: RolloutView, side: Side) -> Arm:
    return Arm(pod=view.pod.name, uid=view.pod.uid, side=side, restarts=view.pod.restarts)


def _count(
    arm: Arm, view: RolloutView, setup: Setup, comparison: Comparison, strata: dict[tuple[int, int], Stratum]
) -> Arm:
    """Adds what the pod has done since it was looked at last; nothing when that was not all of one kind."""
    state = view.state
    if state is None or view.fault is not None:
        return arm
    if not holds(view, setup.candidate if arm.side is Side.CANARY else setup.active):
        return replace(arm, boot="", readings=(), loading_under=state.policy_version)
    readings = readings_of(state)
    is_counting = (arm.boot, arm.policy_version) == (state.boot, state.policy_version)
    # A pod counts from zero when it loads a drafter, so that all of it is this drafter's, and for this policy.
    if is_counting or arm.loading_under == state.policy_version:
        known = {item.draft_length: item for item in arm.readings}
        for item in readings:
            last = known.get(item.draft_length)
            if last is None and (state.acceptance.by_length or not is_counting):  # a length that it had not drafted yet
                last = Reading(draft_length=item.draft_length, drafts=0, accepted=0)
            if last is None or item.drafts <= last.drafts or item.accepted < last.accepted:
                continue
            version = 0 if comparison is Comparison.BEFORE_AFTER else state.policy_version
            more = DraftCounts(item.drafts - last.drafts, item.accepted - last.accepted)
            _add(strata, (version, item.draft_length), arm.side, more)
    if is_counting:
        arm = replace(arm, written=arm.written + max(0, state.generated_tokens - arm.generated))
    return replace(
        arm,
        loading_under=None,
        boot=state.boot,
        policy_version=state.policy_version,
        readings=readings,
        generated=state.generated_tokens,
        loaded=True,
    )


def _add(strata: dict[tuple[int, int], Stratum], key: tuple[int, int], side: Side, more: DraftCounts) -> None:
    version, length = key
    found = strata.get(key) or Stratum(policy_version=version, draft_length=length)
    if side is Side.CANARY:
        strata[key] = replace(found, canary=found.canary + more)
    else:
        strata[key] = replace(found, control=found.control + more)
