"""TLTJob: the custom resource as frozen dataclasses.  The schema itself is `crds/tltjobs.yaml`."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tlt_operator.api.names import ROTATE_ANNOTATION
from tlt_operator.api.quantities import parse_duration, parse_size
from tlt_operator.errors import InvalidSpecError
from tlt_workloads.contract import ContractError, ElementType, MemoryMode, SpeculationMode, decode

DEVICES_VARIABLE = "NVIDIA_VISIBLE_DEVICES"  # what NVIDIA's container runtime brings into a container
STORE_SCHEMES = ("file:///", "s3://", "gs://", "abfs://")
_CREDENTIALS = re.compile(r"(s3|gs)://[^/]*@|abfs://[^/]*:[^/]*@")  # Azure's container@account is no secret
LEAST_SHARE = 0.1  # of `minNewTokens`: a drafter that has fallen behind cannot be helped with less


class Scope(enum.StrEnum):
    """Which idle time may be lent."""

    TAIL = "Tail"  # only while other pods of the job still generate
    ANY_IDLE = "AnyIdle"


class Placement(enum.StrEnum):
    """How a trainer pod gets at the device of a rollout pod."""

    SHARED_CLAIM = "SharedClaim"  # by the pod's own ResourceClaim
    VISIBLE_DEVICES = "VisibleDevices"  # by the devices' ids, on clusters with a device plugin


@dataclass(frozen=True, kw_only=True)
class Target:
    """The policy model as rollout and trainer pods name it."""

    model: str
    served_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One line of `matchExpressions`."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A Kubernetes label selector."""

    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    def query(self) -> str:
        """The selector as the `labelSelector` parameter of a list or watch."""
        parts = [f"{key}={value}" for key, value in sorted(self.match_labels.items())]
        for item in self.match_expressions:
            match item.operator:
                case "In":
                    parts.append(f"{item.key} in ({','.join(item.values)})")
                case "NotIn":
                    parts.append(f"{item.key} notin ({','.join(item.values)})")
                case "Exists":
                    parts.append(item.key)
                case _:
                    parts.append(f"!{item.key}")
        return ",".join(parts)


@dataclass(frozen=True, kw_only=True)
class DeviceSelector:
    """One condition on a device, as Kubernetes has it in a device request."""

    cel: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PoolClaim:
    """The device claim of each pod of a pool."""

    device_class_name: str
    count: int = 1
    selectors: tuple[DeviceSelector, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PoolTemplate:
    """What a job may choose of the pods of its pool; the mappings are Kubernetes fields as written."""

    image: str
    image_pull_policy: str | None = None
    args: tuple[str, ...] = ()
    env: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    priority_class_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rollout pods that the operator runs."""

    replicas: int
    template: PoolTemplate
    claim: PoolClaim


@dataclass(frozen=True, kw_only=True)
class RolloutSource:
    """Where rollout pods come from; exactly one of the two is set."""

    selector: Selector | None = None
    pool: Pool | None = None


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """The URL for the learner."""

    enabled: bool = True
    max_concurrency_per_pod: int = 0  # 0 = no limit


@dataclass(frozen=True, kw_only=True)
class IdleRule:
    """When a pod counts as idle, and how its device is lent; durations in seconds."""

    after: float = 0.5
    min_window: float = 5.0
    scope: Scope = Scope.TAIL
    memory: MemoryMode = MemoryMode.RESERVE


@dataclass(frozen=True, kw_only=True)
class DrafterOptions:
    """The model that guesses tokens ahead."""

    method: str = "Eagle3"
    initial_revision: str | None = None
    draft_vocab_size: int = 8192
    speculative_tokens: int = 3


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """What makes training worth a window."""

    min_new_tokens: int = 20000
    acceptance_drop: float = 0.05
    max_policy_lag: int = 4

    @property
    def least_tokens(self) -> int:
        """Tokens not yet trained on without which no window is of use, whatever the trigger."""
        return max(1, round(LEAST_SHARE * self.min_new_tokens))


@dataclass(frozen=True, kw_only=True)
class TrainerTemplate:
    """What a job may choose of its trainer pods; the mappings are Kubernetes fields as written."""

    image: str | None = None
    image_pull_policy: str | None = None
    env: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    priority_class_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """When and how the drafter is trained."""

    trigger: Trigger = field(default_factory=Trigger)
    max_trainers: int = 8
    keep_warm: float = 600.0
    learning_rate: float = 1e-4
    template: TrainerTemplate = field(default_factory=TrainerTemplate)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What the rollout pods record."""

    max_tokens_per_step: int = 65536
    max_bytes_per_step: int = 2 << 30
    max_bytes: int = 8 << 30
    sample_rate: float = 1.0
    prompt_rows: int = 128
    element_type: ElementType = ElementType.BFLOAT16


@dataclass(frozen=True, kw_only=True)
class CanaryOptions:
    """The pods that try a revision before the others; `time_limit` in seconds."""

    replicas: int = 1  # 0 = no trial
    min_drafts: int = 500
    time_limit: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Release:
    """How a revision comes into the rollout pods."""

    canary: CanaryOptions = field(default_factory=CanaryOptions)
    max_unavailable: int = 0  # loads at one time; 0 = as many as the waves allow
    auto_rollback: bool = True
    pin: str | None = None  # the revision to stay with


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How draft lengths are chosen."""

    mode: SpeculationMode = SpeculationMode.ADAPTIVE


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """How trainer pods get at devices; each option belongs to one strategy."""

    strategy: Placement = Placement.SHARED_CLAIM
    requests: tuple[str, ...] = ()  # SharedClaim: the requests of the claims to lend; empty = all that the pod uses
    runtime_class_name: str | None = None  # VisibleDevices


@dataclass(frozen=True, kw_only=True)
class Reclaim:
    """How a lent device comes back."""

    grace: float = 2.0


@dataclass(frozen=True, kw_only=True)
class SecretReference:
    """A Secret in the job's namespace."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where records, checkpoints and revisions are kept."""

    url: str
    volume_claim: str | None = None
    secret_ref: SecretReference | None = None

    @property
    def mount_path(self) -> str | None:
        """Path of a `file:///` URL, where the volume must be mounted; None for an object store."""
        return self.url.removeprefix("file://") if self.url.startswith("file:///") else None


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """`spec` of a TLTJob with every default filled in."""

    target: Target
    rollout: RolloutSource
    store: Store
    port: int = 8000
    gateway: GatewayOptions = field(default_factory=GatewayOptions)
    idle: IdleRule = field(default_factory=IdleRule)
    drafter: DrafterOptions = field(default_factory=DrafterOptions)
    training: Training = field(default_factory=Training)
    capture: Capture = field(default_factory=Capture)
    release: Release = field(default_factory=Release)
    speculation: Speculation = field(default_factory=Speculation)
    placement: PlacementOptions = field(default_factory=PlacementOptions)
    reclaim: Reclaim = field(default_factory=Reclaim)
    suspend: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A TLTJob without its status."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: JobSpec
    deleting: bool = False
    token_request: str = ""  # a new value asks for another token of the control routes

    @property
    def key(self) -> str:
        """The job's name across namespaces, as the workloads know it (`TLT_JOB`)."""
        return f"{self.namespace}/{self.name}"

    @property
    def folder_url(self) -> str:
        """The job's folder in the store."""
        return f"{self.spec.store.url.rstrip('/')}/{self.namespace}/{self.name}"


_DURATIONS = (
    ("idle", "after"),
    ("idle", "minWindow"),
    ("training", "keepWarm"),
    ("release", "canary", "timeLimit"),
    ("reclaim", "grace"),
)
_SIZES = (("capture", "maxBytes"), ("capture", "maxBytesPerStep"))


def parse_job(body: Mapping[str, Any]) -> Job:
    """Reads a TLTJob.

    The API server has checked the schema already; what is checked again here is what a cluster with an older schema
    would let through.

    Raises:
        InvalidSpecError: a field cannot be used; the message names it and what to write instead.
    """
    metadata = body["metadata"]
    return Job(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=parse_spec(body.get("spec") or {}),
        deleting="deletionTimestamp" in metadata,
        token_request=(metadata.get("annotations") or {}).get(ROTATE_ANNOTATION, ""),
    )


def parse_spec(data: Mapping[str, Any]) -> JobSpec:
    """Reads `spec`; see `parse_job`."""
    plain: dict[str, Any] = dict(data)
    for path in _DURATIONS:
        plain = _replaced(plain, path, parse_duration)
    for path in _SIZES:
        plain = _replaced(plain, path, parse_size)
    try:
        spec = decode(JobSpec, plain, path="spec")
    except ContractError as error:
        where, _, what = str(error).partition(": ")
        raise InvalidSpecError(where, what) from None
    _check(spec)
    return spec


def _replaced(
    data: Mapping[str, Any], path: tuple[str, ...], parse: Callable[..., Any], *, where: str = "spec"
) -> dict[str, Any]:
    """A copy in which the text at `path`, when there is one, is parsed."""
    name, *rest = path
    found, field_name = dict(data), f"{where}.{name}"
    if name in found and not rest:
        found[name] = parse(found[name], field=field_name)
    elif isinstance(found.get(name), Mapping):
        found[name] = _replaced(found[name], tuple(rest), parse, where=field_name)
    return found


def _check(spec: JobSpec) -> None:
    if (spec.rollout.selector is None) == (spec.rollout.pool is None):
        raise InvalidSpecError(
            "spec.rollout", "set exactly one of selector (adopt pods that exist) and pool (let the operator run them)"
        )
    if spec.rollout.selector is not None and not spec.rollout.selector.query():
        raise InvalidSpecError("spec.rollout.selector", "name at least one label, else every pod would be adopted")
    if not spec.store.url.startswith(STORE_SCHEMES):
        raise InvalidSpecError(
            "spec.store.url", f"{spec.store.url!r} must begin with one of {', '.join(STORE_SCHEMES)}"
        )
    if _CREDENTIALS.match(spec.store.url) or "::" in spec.store.url:
        raise InvalidSpecError(
            "spec.store.url",
            "must name one place and hold no credentials; put those into the Secret that spec.store.secretRef names",
        )
    if spec.store.mount_path is not None and spec.store.volume_claim is None:
        raise InvalidSpecError(
            "spec.store.volumeClaim",
            f"spec.store.url is a file:/// URL; name the PersistentVolumeClaim that holds {spec.store.mount_path}",
        )
    _check_placement(spec)


def _check_placement(spec: JobSpec) -> None:
    """The operator may make pods that others may not, so a job must not choose their devices."""
    placement, template = spec.placement, spec.training.template
    if placement.requests and placement.strategy is not Placement.SHARED_CLAIM:
        raise InvalidSpecError("spec.placement.requests", "has a meaning with strategy SharedClaim only; leave it out")
    if placement.runtime_class_name is not None and placement.strategy is not Placement.VISIBLE_DEVICES:
        raise InvalidSpecError(
            "spec.placement.runtimeClassName", "has a meaning with strategy VisibleDevices only; leave it out"
        )
    if any(item.get("name") == DEVICES_VARIABLE for item in template.env):
        raise InvalidSpecError(
            "spec.training.template.env", f"must not set {DEVICES_VARIABLE}; spec.placement brings devices to trainers"
        )
    named = {name for group in template.resources.values() for name in group if "/" in name}
    if named:
        raise InvalidSpecError(
            "spec.training.template.resources",
            f"must not ask for devices ({', '.join(sorted(named))}); spec.placement brings them to trainers",
        )
