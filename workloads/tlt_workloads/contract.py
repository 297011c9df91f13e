"""What operator and workloads must agree on: names, routes and payloads.  Standard library only.

Every route below `/tlt/v1` asks for `Authorization: Bearer <token>` with the per-job token and speaks JSON.
Long polls take `?seq=N&wait=S`: the answer comes at once when the server's sequence number differs from N, else at
the next change, and after S seconds at the latest.  `boot` changes when the process restarts; a caller that sees a new
`boot` starts again from `seq=0`.  Errors are `{"error": {"reason": CamelCase, "message": sentence}}`.

Durations are seconds (float), sizes are bytes, ages count backwards from the moment of the answer, so that no two
clocks are ever compared.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tlt_workloads.codec import ContractError as ContractError
from tlt_workloads.codec import decode as decode
from tlt_workloads.codec import encode as encode
from tlt_workloads.codec import limits

API_PREFIX = "/tlt/v1"
STATE_ROUTE = f"{API_PREFIX}/state"  # rollout pod: GET -> RolloutState, long poll
LEASE_ROUTE = f"{API_PREFIX}/lease"  # rollout pod: POST LeaseRequest; see LeaseView for GET and DELETE
DRAFTER_ROUTE = f"{API_PREFIX}/drafter"  # rollout pod: POST DrafterLoad -> DrafterLoaded; DELETE, see DrafterLoad
SPECULATION_ROUTE = f"{API_PREFIX}/speculation"  # rollout pod: POST SpeculationSettings, GET -> SpeculationReport
CONFIG_ROUTE = f"{API_PREFIX}/config"  # rollout pod: POST RolloutConfig, idempotent
TRAINER_ROUTE = f"{API_PREFIX}/trainer"  # trainer pod: GET -> TrainerState, long poll
GATEWAY_ROUTE = f"{API_PREFIX}/gateway"  # gateway: GET -> GatewayState, long poll

ROLLOUT_PORT = 8000
TRAINER_PORT = 8001
GATEWAY_PORT = 8000

# Keys of the job's Secret, and so names of files where it is mounted; `tlt_workloads.tokens` says what each is for.
TOKEN_KEY = "token"  # noqa: S105 - a name, not a secret
TOKEN_NEXT_KEY = "token-next"  # noqa: S105
TOKEN_PREVIOUS_KEY = "token-previous"  # noqa: S105
TOKEN_FILE_VARIABLE = "TLT_TOKEN_FILE"  # noqa: S105 - the name of a variable, not a secret
TOKEN_FILE_DEFAULT = "/var/run/secrets/tlt/token"  # noqa: S105 - a path, not a secret
STORE_URL_VARIABLE = "TLT_STORE_URL"
JOB_VARIABLE = "TLT_JOB"  # "<namespace>/<name>"
POD_NAME_VARIABLE = "TLT_POD_NAME"
ROLLOUT_URL_VARIABLE = "TLT_ROLLOUT_URL"
HOLDER_VARIABLE = "TLT_HOLDER"
TRAINER_CONFIG_VARIABLE = "TLT_TRAINER_CONFIG"  # JSON of TrainerConfig
GATEWAY_BACKEND_VARIABLE = "TLT_GATEWAY_BACKEND"  # host:port whose DNS name resolves to all rollout pods
GATEWAY_CONCURRENCY_VARIABLE = "TLT_GATEWAY_CONCURRENCY"  # requests in flight per pod, 0 = no limit

# Below the store URL each job owns one folder, `<namespace>/<job>/`.
HIDDEN_STATES_FOLDER = "hidden-states"  # <pod>/<number>.safetensors
CHECKPOINT_FOLDER = "checkpoints"
REVISION_FOLDER = "revisions"  # <revision>/{model.safetensors, config.json, manifest.json}
POLICY_FOLDER = "policy"  # policy-<N>.safetensors, written by the learner
REVISION_WEIGHTS = "model.safetensors"
REVISION_SHAPE = "config.json"
REVISION_MANIFEST = "manifest.json"

JOB_PATTERN = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?"  # two Kubernetes names
SHA256_PATTERN = "[0-9a-fA-F]{64}"


class SpeculationMode(enum.StrEnum):
    """How draft lengths are chosen; `ADAPTIVE` learns from the engine which length and which drafter pay."""

    ADAPTIVE = "Adaptive"
    STATIC = "Static"
    NGRAM = "NGram"
    OFF = "Off"


class DraftSource(enum.StrEnum):
    """Who drafts."""

    LEARNED = "Learned"  # the trained drafter
    NGRAM = "NGram"  # what followed the same words before, in the request itself


class MemoryMode(enum.StrEnum):
    """What a lease does with the engine's memory: keep it (`RESERVE`) or put the engine to sleep (`SLEEP`)."""

    RESERVE = "Reserve"
    SLEEP = "Sleep"


class ElementType(enum.StrEnum):
    """How a recorded number is stored: two bytes, or one (e4m3) with a scale per token and layer."""

    BFLOAT16 = "Bfloat16"
    FLOAT8 = "Float8"


class LeasePhase(enum.StrEnum):
    """A lease is granted, then asked back (`REVOKING`), then gone."""

    GRANTED = "Granted"
    REVOKING = "Revoking"


class RevokeReason(enum.StrEnum):
    """Why a lease was asked back."""

    REQUEST = "Request"  # a generation request arrived
    POLICY_UPDATE = "PolicyUpdate"
    OPERATOR = "Operator"  # suspended, deleted, drained, out of budget
    WINDOW_END = "WindowEnd"
    EXPIRED = "Expired"  # no heartbeat within the time to live
    SHUTDOWN = "Shutdown"


class DrafterRefusal(enum.StrEnum):
    """Why a rollout pod does not take a drafter; the old one stays, and the rollout goes on."""

    OUTSIDE_STORE = "OutsideStore"  # not below the job's folder, or by a link that leads out of it
    NOT_A_FILE = "NotAFile"  # a link, a folder, a pipe or a device
    UNREADABLE = "Unreadable"  # missing, no permission, or the store does not answer
    TOO_LARGE = "TooLarge"  # more bytes than a drafter of this shape has; nothing was read
    DIGEST_MISMATCH = "DigestMismatch"  # other bytes than were announced
    NOT_SAFETENSORS = "NotSafetensors"  # a pickle, an archive or something else
    OVERSIZED_HEADER = "OversizedHeader"  # the header claims more bytes than one of a drafter has
    TRUNCATED = "Truncated"  # fewer bytes than the header promises
    WRONG_TARGET = "WrongTarget"  # made for a model of another shape
    WRONG_VOCABULARY = "WrongVocabulary"  # another draft vocabulary, or a map that leads nowhere
    UNKNOWN_TENSOR = "UnknownTensor"  # more than a drafter has, the policy's embedding for instance
    MISSING_TENSOR = "MissingTensor"
    WRONG_SHAPE = "WrongShape"
    WRONG_TYPE = "WrongType"
    NOT_FINITE = "NotFinite"  # NaN or infinity
    UNKNOWN_DRAFTER = "UnknownDrafter"  # the drafter that the server started with cannot be read
    NOT_STAGED = "NotStaged"
    LOAD_FAILED = "LoadFailed"  # the engine did not take it; the drafter before is back
    POLICY_TOUCHED = "PolicyTouched"  # loading it changed the policy; both were put back


class TrainerPhase(enum.StrEnum):
    """What the supervisor of a trainer pod does."""

    STARTING = "Starting"  # importing, reading the target's embeddings
    WAITING = "Waiting"  # warm, holds no lease
    TRAINING = "Training"  # a worker has the device
    STOPPING = "Stopping"  # asked back, or given back while the worker still writes its checkpoint
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class LeaseRequest:
    """Body of `POST lease`; 201 LeaseView, or 409 with reason NotIdle | Held | Paused | Updating."""

    holder: str = field(metadata=limits(min_length=1))  # unique per trainer pod: "<pod name>/<pod uid>"
    ttl: float = field(default=10.0, metadata=limits(exclusive_minimum=0))  # ends after so long without a heartbeat
    window: float = field(default=0.0, metadata=limits(minimum=0))  # asked back after this long; 0 = no bound
    memory: MemoryMode = MemoryMode.RESERVE


@dataclass(frozen=True, kw_only=True)
class LeaseView:
    """A lease as the rollout pod shows it.

    `GET lease?holder=H` answers `{"seq", "boot", "lease": LeaseView | null}`, is a long poll and H's heartbeat.
    `DELETE lease?holder=H` ends H's lease; `DELETE lease?revoke=<RevokeReason>` asks it back from whoever holds it.
    """

    id: str
    holder: str
    phase: LeasePhase
    age: float
    expires_in: float
    reason: RevokeReason | None = None  # set while revoking
    revoking_for: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EndedLease:
    """The last lease that ended, kept so that nobody needs to have watched."""

    id: str
    holder: str
    duration: float  # granted to ended
    hand_back: float  # revoking to ended; 0 when the holder gave it back unasked
    reason: RevokeReason | None
    ended_ago: float


@dataclass(frozen=True, kw_only=True)
class CaptureDrops:
    """Tokens that were not recorded, by reason; totals since boot."""

    behind: int = 0  # the writer is slower than the engine: a slow store, or too few processors
    step_budget: int = 0  # the policy version's budget is used up, or kept for longer sequences
    memory: int = 0  # too many long requests run at once
    store_full: int = 0
    store_read_only: int = 0
    store_denied: int = 0  # wrong credentials, or no right to write
    store_gone: int = 0  # not mounted, not reachable, no such bucket
    store_failed: int = 0  # anything else


@dataclass(frozen=True, kw_only=True)
class CaptureCounters:
    """Totals since boot."""

    tokens: int = 0
    bytes: int = 0
    dropped_tokens: int = 0  # the sum of `drops`
    sequences: int = 0
    shards: int = 0
    steps: int = 0  # of the engine, seen by the capture
    seconds: float = 0.0  # time taken on the decode path, all steps together
    drops: CaptureDrops = field(default_factory=CaptureDrops)


@dataclass(frozen=True, kw_only=True)
class LengthCounters:
    """Drafts of one length."""

    draft_length: int
    drafts: int
    accepted_tokens: int


@dataclass(frozen=True, kw_only=True)
class AcceptanceCounters:
    """Totals of the learned drafter since it was loaded.  Mean accept length = 1 + accepted_tokens / drafts."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    by_length: tuple[LengthCounters, ...] = ()  # the same drafts by what was asked for; lengths never used are absent


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What the engine decided for its last step."""

    batch: int  # requests in it
    source: DraftSource
    draft_length: int  # 0 = no speculation


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """Facts about one rollout pod.  The pod reports facts only; what to do with them is decided elsewhere."""

    seq: int
    boot: str
    running: int  # requests in the engine, waiting ones included in `waiting`
    waiting: int
    idle: bool  # nothing running, waiting, paused or updating for at least `idle_after`
    idle_for: float  # 0 while not idle
    paused: bool
    updating: bool  # a policy or drafter update is in flight
    lease: LeaseView | None
    last_lease: EndedLease | None
    policy_version: int
    drafter_revision: str | None  # None = the drafter that the server started with
    drafter_digest: str | None  # sha256 of the loaded weights file
    drafter_method: str | None  # None = the server was started without speculation
    speculation: SpeculationMode
    draft_length: int  # as set: the longest one in mode Adaptive
    config_digest: str | None  # digest of the RolloutConfig in force
    served_names: tuple[str, ...]
    requests: int  # accepted since boot
    failed_requests: int
    aborted_requests: int
    generated_tokens: int
    busy_seconds: float  # since boot; busy + idle = time since the first answer
    idle_seconds: float
    lent_seconds: float  # part of idle_seconds
    capture: CaptureCounters
    acceptance: AcceptanceCounters
    engine_version: str
    plugin_version: str
    swap_stall: float | None = None  # longest gap in running requests during the last drafter load
    drafter_lag: int | None = None  # policy updates since the last that the drafter was trained on; None: unknown
    drafter_refusals: Mapping[str, int] = field(default_factory=dict)  # drafters refused since boot, by DrafterRefusal
    visible_devices: tuple[str, ...] = ()  # ids by which the container got devices without a claim
    drafting: Drafting | None = None  # None = no step yet
    ngram: AcceptanceCounters = field(default_factory=AcceptanceCounters)  # of the n-gram drafter, since boot


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What the rollout engine records for training.

    A step is a policy version; both of its budgets hold.  By default the ring has room for the steps that a trainer
    looks back on (`TrainerConfig.max_policy_lag`).
    """

    enabled: bool = True
    max_tokens_per_step: int = field(default=65536, metadata=limits(minimum=0))
    max_bytes_per_step: int = field(default=2 << 30, metadata=limits(minimum=0))
    max_bytes: int = field(default=8 << 30, metadata=limits(minimum=0))  # the pod's share of the ring in the store
    sample_rate: float = field(default=1.0, metadata=limits(minimum=0, maximum=1))  # of sequences
    prompt_rows: int = field(default=128, metadata=limits(minimum=0))  # of the prompt's end; all its ids are kept
    element_type: ElementType = ElementType.BFLOAT16


@dataclass(frozen=True, kw_only=True)
class SpeculationSettings:
    """Body of `POST speculation`."""

    mode: SpeculationMode = SpeculationMode.ADAPTIVE
    draft_length: int = field(default=3, metadata=limits(minimum=0))


@dataclass(frozen=True, kw_only=True)
class ArmReport:
    """One draft length of one drafter, as measured at a batch size."""

    source: DraftSource
    draft_length: int
    step_seconds: float  # median
    accept_length: float  # mean tokens of a step and request, bonus token counted


@dataclass(frozen=True, kw_only=True)
class BucketReport:
    """Batch sizes that are decided together."""

    largest_batch: int
    source: DraftSource  # of the arm in use
    draft_length: int
    arms: tuple[ArmReport, ...]


@dataclass(frozen=True, kw_only=True)
class SpeculationReport:
    """Answer of `GET speculation`: what is in force, and what adaptive speculation knows."""

    mode: SpeculationMode
    draft_length: int
    sources: tuple[DraftSource, ...]  # drafters that there are now
    lost_share: float  # of the time of all steps, lost by trying what was not the best
    buckets: tuple[BucketReport, ...]


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Body of `POST config`: what a rollout pod needs to know of its job.  Sent again after each reboot."""

    job: str = field(metadata=limits(pattern=JOB_PATTERN))  # "<namespace>/<name>"
    store_url: str = field(metadata=limits(min_length=1))
    idle_after: float = field(default=0.5, metadata=limits(minimum=0))
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)


@dataclass(frozen=True, kw_only=True)
class DrafterLoad:
    """Body of `POST drafter`.  409 while a policy update runs, 422 with the reason when the weights are refused.

    `DELETE drafter` puts the drafter back that the server started with, and answers as `GET state` does.
    """

    revision: str = field(metadata=limits(min_length=1))
    url: str = field(metadata=limits(min_length=1))  # folder that holds model.safetensors and manifest.json
    sha256: str = field(metadata=limits(pattern=SHA256_PATTERN))  # of model.safetensors


@dataclass(frozen=True, kw_only=True)
class DrafterLoaded:
    """Answer of `POST drafter`."""

    revision: str
    seconds: float  # whole load
    stall: float  # the engine could not step for this long
    policy_checksum_before: str
    policy_checksum_after: str  # equal, or the load was undone and refused


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a job's trainers learn; the operator passes it in `TLT_TRAINER_CONFIG`."""

    target_model: str
    method: str = "Eagle3"
    draft_vocab_size: int = 8192
    draft_length: int = 3
    learning_rate: float = 1e-4
    max_policy_lag: int = 4
    min_new_tokens: int = 20000  # a window starts only with at least this many tokens not yet trained on
    checkpoint_interval: float = 5.0
    micro_batch_tokens: int = 0  # 0 = measured so that one micro-step takes at most 200 ms
    initial_revision: str | None = None
    keep_warm: float = 600.0
    grace: float = 2.0  # from revoke to SIGKILL of the worker


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out quality of a drafter: simulated mean accept length, bonus token counted, with its standard error."""

    accept_length: float
    standard_error: float
    parent_accept_length: float | None
    sequences: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class RevisionManifest:
    """Content of `manifest.json` beside the weights."""

    revision: str  # "<job>-r<number>", unique in the job
    job: str
    sha256: str
    parent: str | None
    method: str
    policy_versions: tuple[int, int]  # first and last trained on
    trained_tokens: int  # in total, the parents' tokens included
    evaluation: Evaluation
    draft_vocab_size: int
    trainer_version: str
    created_at: str  # RFC 3339


@dataclass(frozen=True, kw_only=True)
class WindowReport:
    """One idle window used (or not) by a trainer."""

    lease_id: str
    started_ago: float
    seconds: float
    lease_to_first_step: float | None  # None: ended before a step
    steps: int
    tokens: int
    loss_first: float | None
    loss_last: float | None
    stop_reason: str  # RevokeReason value, or "NoData", "Done", "Error: ..."
    stop_seconds: float  # revoke seen to worker gone


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Facts about one trainer pod.  `candidates` lists every revision in the store, oldest first."""

    seq: int
    boot: str
    phase: TrainerPhase
    holder: str
    message: str
    windows: int
    trained_tokens: int
    available_tokens: int  # captured, fresh enough and not yet trained on
    trained_seconds: float
    last_window: WindowReport | None
    candidates: tuple[RevisionManifest, ...]
    peak_memory: int
    skipped_shards: int = 0  # different ones since the pod's boot: cut off, of another model, or gone when wanted


@dataclass(frozen=True, kw_only=True)
class GatewayBackend:
    """One rollout pod as the gateway sees it."""

    address: str
    outstanding: int
    healthy: bool


@dataclass(frozen=True, kw_only=True)
class GatewayState:
    """What is left of the current batch of completions."""

    seq: int
    boot: str
    queued: int
    outstanding: int
    batch_size: int  # completions in the batches now open
    completed: int  # of these
    backends: tuple[GatewayBackend, ...]
    requests: int  # since boot
    retried_requests: int
    failed_requests: int
    policy_version: int
    remaining: float | None = None  # expected seconds until the last outstanding one is answered; None = unknown


def config_digest(config: RolloutConfig) -> str:
    """The sha256 (hex) of a configuration in canonical JSON; a pod reports the one in force in `configDigest`."""
    canonical = json.dumps(encode(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
