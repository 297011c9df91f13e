"""Public words: group, kinds, labels, annotations, condition types and reasons.  To change one is to change the API."""

from __future__ import annotations

import enum
import hashlib

GROUP = "tlt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
JOB_KIND = "TLTJob"
JOB_PLURAL = "tltjobs"
REVISION_KIND = "DrafterRevision"
REVISION_PLURAL = "drafterrevisions"

FIELD_MANAGER = "tlt-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"
JOB_LABEL = f"{GROUP}/job"
COMPONENT_LABEL = f"{GROUP}/component"
ROLLOUT_UID_LABEL = f"{GROUP}/rollout-uid"  # on a trainer pod: the rollout pod whose device it shares
ROLLOUT_POD_ANNOTATION = f"{GROUP}/rollout-pod"  # its name, for people (a pod name may be too long for a label)
TEMPLATE_ANNOTATION = f"{GROUP}/template"  # digest of the manifest that a pod was made from
DEVICES_ANNOTATION = f"{GROUP}/visible-devices"  # devices of a pod that has them from a device plugin
ROTATE_ANNOTATION = (
    f"{GROUP}/rotate-token"  # on a TLTJob: a new value asks for another token; on the Secret: the last one met
)
ROTATED_AT_ANNOTATION = f"{GROUP}/token-changed-at"  # on the Secret: when the last step of a rotation was made
PROMOTE_ANNOTATION = f"{GROUP}/promote"  # on a DrafterRevision, "true": make it the active one now
ROLL_BACK_ANNOTATION = f"{GROUP}/rollback"  # on a DrafterRevision, "true": withdraw it for good
ORDINAL_LABEL = "apps.kubernetes.io/pod-index"  # set by Kubernetes on the pods of a StatefulSet

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_GATE = "kueue.x-k8s.io/admission"


class Component(enum.StrEnum):
    """Value of the component label."""

    TRAINER = "trainer"
    GATEWAY = "gateway"
    LIGHTHOUSE = "lighthouse"
    ROLLOUT = "rollout"


class ConditionType(enum.StrEnum):
    """The conditions of a TLTJob."""

    ROLLOUT_READY = "RolloutReady"
    DATA_READY = "DataReady"
    HARVESTING = "Harvesting"
    DRAFTER_READY = "DrafterReady"
    DEGRADED = "Degraded"


class Reason(enum.StrEnum):
    """Why a condition is what it is; `tlt_operator.api.reasons` says what each means."""

    # RolloutReady
    PODS_READY = "PodsReady"
    SOME_PODS_READY = "SomePodsReady"
    NO_PODS_MATCH = "NoPodsMatch"
    PODS_NOT_READY = "PodsNotReady"
    PLUGIN_MISSING = "PluginMissing"
    TOKEN_REFUSED = "TokenRefused"  # noqa: S105 - a reason, not a secret
    INCOMPATIBLE = "IncompatiblePlugin"
    POOL_SCALING = "PoolScaling"
    POOL_ROLLING = "PoolRolling"
    INVALID_SPEC = "InvalidSpec"
    # DataReady
    ENOUGH_TOKENS = "EnoughTokens"
    NOT_ENOUGH_TOKENS = "NotEnoughTokens"
    ACCEPTANCE_DROPPED = "AcceptanceDropped"
    POLICY_LAG = "PolicyLag"
    CAPTURE_OFF = "CaptureOff"
    NO_ANSWER = "NoAnswer"
    # Harvesting
    LEASE_HELD = "LeaseHeld"
    NO_IDLE_POD = "NoIdlePod"
    WAITING_FOR_DATA = "WaitingForData"
    GIVEN_BACK = "GivenBack"
    OFTEN_INTERRUPTED = "OftenInterrupted"
    TRAINER_STARTING = "TrainerStarting"
    OUT_OF_SCOPE = "OutOfScope"
    WINDOW_TOO_SHORT = "WindowTooShort"
    BUDGET_SPENT = "BudgetSpent"
    SUSPENDED = "Suspended"
    DELETING = "Deleting"
    NO_CLAIM = "NoResourceClaim"
    NO_DRA = "ClusterWithoutDRA"
    CLAIMS_HIDDEN = "ResourceClaimsHidden"
    NO_SUCH_REQUEST = "NoSuchRequest"
    CLAIM_DELETED = "ResourceClaimDeleted"
    EXTENDED_RESOURCE = "ExtendedResource"
    VISIBLE_DEVICES_OFF = "VisibleDevicesOff"
    NO_DEVICES = "NoVisibleDevices"
    QUEUED = "QueuedByKueue"
    QUOTA_EXCEEDED = "QuotaExceeded"
    NO_PRIORITY_CLASS = "NoPriorityClass"
    TRAINER_FAILED = "TrainerFailed"
    # DrafterReady
    REVISION_ACTIVE = "RevisionActive"
    REVISION_ON_TRIAL = "RevisionOnTrial"
    REVISION_LOADING = "RevisionLoading"
    PIN_NOT_FOUND = "PinNotFound"
    NO_REVISION = "NoRevision"
    REVISION_REFUSED = "RevisionRefused"
    SPECULATION_OFF = "SpeculationOff"
    # Degraded
    AS_EXPECTED = "AsExpected"
    POOL_STUCK = "PoolStuck"
    PODS_REFUSED = "PodsRefused"
    PODS_UNREACHABLE = "PodsUnreachable"
    CHILD_NOT_APPLIED = "ChildNotApplied"
    GATEWAY_UNREACHABLE = "GatewayUnreachable"


class Phase(enum.StrEnum):
    """The one word that `kubectl get` shows.  Computed from the conditions and never read back."""

    PENDING = "Pending"
    READY = "Ready"
    HARVESTING = "Harvesting"
    SUSPENDED = "Suspended"
    DEGRADED = "Degraded"


class RevisionPhase(enum.StrEnum):
    """How far a DrafterRevision has come."""

    CANDIDATE = "Candidate"
    CANARY = "Canary"
    ACTIVE = "Active"
    SUPERSEDED = "Superseded"
    ROLLED_BACK = "RolledBack"


class RevisionCondition(enum.StrEnum):
    """The conditions of a DrafterRevision."""

    LOADED = "Loaded"
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"


class RevisionReason(enum.StrEnum):
    """Why a condition of a DrafterRevision is what it is; `tlt_operator.api.reasons` says what each means."""

    # Loaded
    PODS_LOADED = "PodsLoaded"
    PODS_MISSING = "PodsMissing"
    # Promoted
    TEST_PASSED = "TestPassed"
    NO_REGRESSION = "NoRegressionShown"
    WITHOUT_CANARY = "WithoutCanary"
    BY_HAND = "ByHand"
    PINNED = "Pinned"
    RESTORED = "Restored"
    WAITING = "Waiting"
    ON_TRIAL = "OnTrial"
    OVERTAKEN = "Overtaken"
    WITHDRAWN = "Withdrawn"
    # RolledBack
    WORSE = "Worse"
    SEEMS_WORSE = "SeemsWorse"
    AVOIDED = "Avoided"
    REFUSED = "Refused"
    CRASH_LOOP = "CrashLoop"
    NOT_WITHDRAWN = "NotWithdrawn"


class EventReason(enum.StrEnum):
    """Reasons of the Kubernetes Events that the operator writes."""

    LEASE_GRANTED = "LeaseGranted"
    LEASE_ENDED = "LeaseEnded"
    LEASE_REVOKED = "LeaseRevoked"
    TRAINER_CREATED = "TrainerCreated"
    TRAINER_DELETED = "TrainerDeleted"
    TRAINER_FAILED = "TrainerFailed"
    POOL_APPLIED = "PoolApplied"
    POD_REPLACED = "PodReplaced"
    TRAINER_REFUSED = "TrainerRefused"
    POD_SKIPPED = "PodSkipped"
    REVISION_CREATED = "RevisionCreated"
    REVISION_ON_TRIAL = "RevisionOnTrial"
    REVISION_ACTIVE = "RevisionActive"
    REVISION_ROLLED_BACK = "RevisionRolledBack"
    REVISION_HELD = "RevisionHeld"
    RELEASE_IGNORED = "ReleaseIgnored"
    TOKEN_ROTATED = "TokenRotated"  # noqa: S105 - a reason, not a secret
    ACTION_FAILED = "ActionFailed"
    FIELD_SET_BACK = "FieldSetBack"


def gateway_name(job: str) -> str:
    """Deployment and Service of the gateway."""
    return f"{job}-gateway"


def lighthouse_name(job: str) -> str:
    """Deployment, Service and NetworkPolicy of the lighthouse."""
    return f"{job}-lighthouse"


def rollout_service_name(job: str) -> str:
    """Headless Service over the rollout pods; the gateway resolves it."""
    return f"{job}-rollout"


def pool_name(job: str) -> str:
    """StatefulSet of a pool and its PodDisruptionBudget; the pods are called `<name>-0`, `<name>-1`, ..."""
    return f"{job}-rollout"


def trainer_policy_name(job: str) -> str:
    """NetworkPolicy of the trainers."""
    return f"{job}-trainers"


def gateway_policy_name(job: str) -> str:
    """NetworkPolicy of the gateway."""
    return f"{job}-gateway"


def token_secret_name(job: str) -> str:
    """Secret with the token of the job's control routes."""
    return f"{job}-tlt-control"


def trainer_name(job: str, *, rollout_uid: str) -> str:
    """One name per rollout pod, so that the API server itself refuses a second trainer on one device."""
    return f"{_trainer_prefix(job)}{hashlib.sha256(rollout_uid.encode()).hexdigest()[:8]}"


def is_trainer_name(name: str, *, job: str) -> bool:
    """Whether a pod of this name is a trainer of the job, also one that is gone."""
    prefix = _trainer_prefix(job)
    return name.startswith(prefix) and len(name) == len(prefix) + 8


def _trainer_prefix(job: str) -> str:
    return f"{job}-trainer-"
