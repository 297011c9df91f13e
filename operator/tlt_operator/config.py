"""The operator's own options: one frozen dataclass, read once from the environment."""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.errors import InvalidSettingsError

PREFIX = "TLT_"


class LogFormat(enum.StrEnum):
    """How log lines look."""

    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True)
class Peers:
    """Sides of a NetworkPolicy's rules, each a NetworkPolicyPeer as in the Kubernetes API."""

    items: tuple[Mapping[str, typing.Any], ...] = ()

    @classmethod
    def parse(cls, variable: str, text: str) -> Peers:
        """Reads a JSON list of objects.

        Raises:
            InvalidSettingsError: it is not one.
        """
        try:
            items = json.loads(text)
        except ValueError as error:
            raise InvalidSettingsError(f"{variable}: not JSON: {error}") from None
        if not isinstance(items, list) or not all(isinstance(item, dict) and item for item in items):
            raise InvalidSettingsError(f"{variable}: expected a JSON list of NetworkPolicy peers, got {text!r}")
        return cls(tuple(items))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each field is read from `TLT_<NAME IN CAPITALS>`; durations are seconds, lists are separated by commas."""

    workloads_image: str = ""  # trainer pods whose job names no image of its own
    operator_image: str = ""  # the gateway runs from the operator's image
    image_pull_policy: str = "IfNotPresent"
    watch_namespaces: tuple[str, ...] = ()  # empty = the whole cluster
    trainer_priority_class: str = ""  # empty = the namespace's default
    trainer_cpu_request: str = "10m"  # small, so that the kernel gives the core to the rollout when both want it
    trainer_memory_request: str = "512Mi"
    probe_port: int = 8080
    metrics_port: int = 9090
    log_format: LogFormat = LogFormat.JSON
    log_level: str = "INFO"
    poll_wait: float = 20.0  # a pod answers an unchanged long poll after this long
    tick: float = 1.0  # a job is looked at this often even when nothing was heard
    status_interval: float = 2.0  # at least this long between two status writes of one job
    counter_interval: float = 15.0  # at least this long between two writes that only move counters
    resync_interval: float = 300.0  # children are applied again this often, in case somebody changed them
    recheck_interval: float = 15.0  # jobs are looked for this often, in case nobody told of their coming or going
    lease_ttl: float = 10.0  # a lease ends without a heartbeat from its trainer for this long
    lease_window: float = 600.0  # a lease ends after this long whatever happens; it may be granted again
    leader_lease: str = ""  # name of the Lease by which one of several operators acts; empty = this one always does
    leader_namespace: str = "default"  # where that Lease is
    leader_identity: str = ""  # as which this process holds it; empty = one that no other process ever has
    max_leases: int = 0  # devices lent at one time, of all jobs together; 0 = no limit
    teams: bool = False  # several devices of a job are lent at once, to trainers that find each other
    visible_devices: bool = False  # jobs may use this placement: the policy that guards it is installed
    network_policies: bool = False  # makes NetworkPolicies for trainers and gateways
    operator_peers: Peers = Peers()  # where operators call from
    metrics_peers: Peers = Peers()  # who reads the gateways' metrics
    store_peers: Peers = Peers()  # where object stores are; none = any address, by TLS
    token_overlap: float = 120.0  # each step of a token's rotation waits this long, for kubelets to bring it into pods
    token_lifetime: float = 0.0  # a job's token is replaced when it is this old; 0 = only when asked for
    request_timeout: float = 10.0  # of calls to pods and to the API server, long polls excepted

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Reads every field that is set.

        Raises:
            InvalidSettingsError: a value does not fit its field; the message names the variable.
        """
        hints = typing.get_type_hints(cls)
        values: dict[str, typing.Any] = {}
        for item in dataclasses.fields(cls):
            variable = PREFIX + item.name.upper()
            text = environment.get(variable)
            if text is not None and text.strip():
                values[item.name] = _parse(variable, text.strip(), hints[item.name])
        return cls(**values)


def _parse(variable: str, text: str, kind: typing.Any) -> typing.Any:
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is Peers:
        return Peers.parse(variable, text)
    if kind is bool:
        return _parse_bool(variable, text)
    try:
        return kind(text)
    except ValueError:
        if issubclass(kind, enum.Enum):
            expected = "one of " + ", ".join(str(item.value) for item in kind)
        else:
            expected = "a number" if kind is float else "a whole number"
        raise InvalidSettingsError(f"{variable}: expected {expected}, got {text!r}") from None


def _parse_bool(variable: str, text: str) -> bool:
    choices = {"true": True, "false": False}
    if text.lower() not in choices:
        raise InvalidSettingsError(f"{variable}: expected true or false, got {text!r}")
    return choices[text.lower()]
