"""What a decision may ask for.  Each action names its target by uid, so that a pod reborn under one name is another."""

from __future__ import annotations

from dataclasses import dataclass, field

from tlt_operator.api.names import Reason, RevisionPhase, RevisionReason
from tlt_operator.api.revision import Revision
from tlt_operator.plan.trial import Trial
from tlt_workloads.contract import DrafterLoad, LeaseRequest, RevisionManifest, RevokeReason, RolloutConfig


@dataclass(frozen=True, kw_only=True)
class GrantLease:
    """Lend the pod's device to the holder."""

    rollout_uid: str
    trainer_uid: str
    request: LeaseRequest


@dataclass(frozen=True, kw_only=True)
class RevokeLease:
    """Ask the pod's device back."""

    rollout_uid: str
    reason: RevokeReason
    why: str


@dataclass(frozen=True, kw_only=True)
class CreateTrainer:
    """Start a trainer pod on the device of the rollout pod."""

    rollout_uid: str


@dataclass(frozen=True, kw_only=True)
class DeleteTrainer:
    """Delete a trainer pod; `failure` tells what it died of, when it did."""

    trainer_uid: str
    why: str
    failure: str | None = None
    reason: Reason = Reason.TRAINER_FAILED  # of the failure


@dataclass(frozen=True, kw_only=True)
class Configure:
    """Tell a rollout pod what it needs to know of its job."""

    rollout_uid: str
    config: RolloutConfig


@dataclass(frozen=True, kw_only=True)
class LoadDrafter:
    """Load a revision into a rollout pod, `delay` seconds from now."""

    rollout_uid: str
    load: DrafterLoad
    delay: float = field(default=0.0, compare=False)


@dataclass(frozen=True, kw_only=True)
class UnloadDrafter:
    """Give a rollout pod back the drafter that its server started with; `why` names what it has instead."""

    rollout_uid: str
    why: str


@dataclass(frozen=True, kw_only=True)
class CreateRevision:
    """Make the DrafterRevision of a candidate in the store."""

    manifest: RevisionManifest


@dataclass(frozen=True, kw_only=True)
class PodCounts:
    """How far a revision has come."""

    total: int = 0
    loaded: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class LiveEvidence:
    """What the pods measured with a revision; accept lengths count the bonus token."""

    drafts: int = 0
    accept_length: float | None = None
    swap_stall: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """Why a revision is in its phase: a listed reason that tells who decided, and a sentence with the figures."""

    reason: RevisionReason
    words: str


@dataclass(frozen=True, kw_only=True)
class MarkRevision:
    """Write the status of a DrafterRevision; without a ruling the one that was written before stands."""

    revision: Revision
    phase: RevisionPhase
    message: str
    ruling: Ruling | None = None
    pods: PodCounts | None = None
    evidence: LiveEvidence | None = None
    trial: Trial | None = None


@dataclass(frozen=True, kw_only=True)
class ApplyPool:
    """Write the StatefulSet of the pool; `removed` are the pods (uids) that fewer replicas cost."""

    replicas: int
    template: str
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReplacePod:
    """Delete an idle pod of the pool, so that one of the new template takes its place."""

    rollout_uid: str
    template: str


Action = (
    GrantLease
    | RevokeLease
    | CreateTrainer
    | DeleteTrainer
    | Configure
    | LoadDrafter
    | UnloadDrafter
    | CreateRevision
    | MarkRevision
    | ApplyPool
    | ReplacePod
)


GRANT = "grant lease"
CREATE_TRAINER = "create trainer"
LOAD = "load drafter"


def action_key(action: Action) -> tuple[str, str]:
    """Two actions with one key are never in flight at the same time."""
    match action:
        case GrantLease():
            return (GRANT, action.rollout_uid)
        case RevokeLease():
            return ("revoke lease", action.rollout_uid)
        case CreateTrainer():
            return (CREATE_TRAINER, action.rollout_uid)
        case DeleteTrainer():
            return ("delete trainer", action.trainer_uid)
        case Configure():
            return ("configure", action.rollout_uid)
        case LoadDrafter() | UnloadDrafter():
            return (LOAD, action.rollout_uid)
        case CreateRevision():
            return ("create revision", action.manifest.revision)
        case MarkRevision():
            return ("mark revision", action.revision.name)
        case ApplyPool():
            return ("apply pool", "")
        case ReplacePod():
            return ("replace pod", "")  # one of the whole pool at a time
