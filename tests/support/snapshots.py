"""Builders of snapshots for tests of decisions: everything has a default, a test names what it is about."""

from __future__ import annotations

import dataclasses
from typing import Any

from tlt_operator.api.job import Job, JobSpec, parse_spec
from tlt_operator.api.names import JOB_LABEL, ROLLOUT_UID_LABEL, RevisionPhase
from tlt_operator.api.pod import DeviceClaim, Pod
from tlt_operator.api.revision import Revision
from tlt_operator.plan.decision import rollout_config
from tlt_operator.plan.snapshot import RolloutView, Snapshot, TrainerView
from tlt_workloads.contract import (
    AcceptanceCounters,
    CaptureCounters,
    LeasePhase,
    LeaseView,
    RevokeReason,
    RolloutState,
    SpeculationMode,
    TrainerPhase,
    TrainerState,
    config_digest,
)

NOW = 1000.0  # on the clock of the snapshots

SPEC: dict[str, Any] = {
    "target": {"model": "/models/policy"},
    "rollout": {"selector": {"matchLabels": {"app": "rollout"}}},
    "training": {"trigger": {"minNewTokens": 100}},
    "store": {"url": "file:///tlt", "volumeClaim": "tlt"},
}


def make_spec(**fields: Any) -> JobSpec:
    return parse_spec({**SPEC, **fields})


def make_job(*, deleting: bool = False, **fields: Any) -> Job:
    return Job(
        namespace="default", name="demo", uid="job-uid", generation=1, spec=make_spec(**fields), deleting=deleting
    )


DIGEST = config_digest(rollout_config(make_job()))


def make_state(**fields: Any) -> RolloutState:
    values: dict[str, Any] = {
        "seq": 1,
        "boot": "boot",
        "running": 0,
        "waiting": 0,
        "idle": False,
        "idle_for": 0.0,
        "paused": False,
        "updating": False,
        "lease": None,
        "last_lease": None,
        "policy_version": 1,
        "drafter_revision": None,
        "drafter_digest": None,
        "drafter_method": "eagle3",
        "speculation": SpeculationMode.ADAPTIVE,
        "draft_length": 3,
        "config_digest": DIGEST,
        "served_names": ("policy",),
        "requests": 0,
        "failed_requests": 0,
        "aborted_requests": 0,
        "generated_tokens": 0,
        "busy_seconds": 0.0,
        "idle_seconds": 0.0,
        "lent_seconds": 0.0,
        "capture": CaptureCounters(),
        "acceptance": AcceptanceCounters(),
        "engine_version": "0",
        "plugin_version": "0",
    }
    return RolloutState(**{**values, **fields})


def make_lease(holder: str, *, phase: LeasePhase = LeasePhase.GRANTED, **fields: Any) -> LeaseView:
    reason = RevokeReason.REQUEST if phase is LeasePhase.REVOKING else None
    values: dict[str, Any] = {"id": "lease", "age": 1.0, "expires_in": 9.0, "reason": reason, **fields}
    return LeaseView(holder=holder, phase=phase, **values)


def make_pod(name: str, **fields: Any) -> Pod:
    values: dict[str, Any] = {
        "namespace": "default",
        "uid": f"{name}-uid",
        "ip": "10.0.0.1",
        "phase": "Running",
        "ready": True,
        "claims": (DeviceClaim(name="gpu", claim=f"{name}-gpu", requests=("gpu-0",)),),
    }
    return Pod(name=name, **{**values, **fields})


def make_rollout(
    name: str,
    state: RolloutState | None = None,
    *,
    age: float | None = None,
    silent_for: float = 0.0,
    **fields: Any,
) -> RolloutView:
    """`age` and `silent_for` count backwards from the time of the snapshot that the view is for."""
    pod = fields.pop("pod", None) or make_pod(name)
    age = age if age is not None else 0.0 if state is not None else float("inf")
    return RolloutView(pod=pod, state=state, heard_at=NOW - age, silent_since=NOW - silent_for, **fields)


def busy(name: str, **fields: Any) -> RolloutView:
    return make_rollout(name, make_state(running=2, **fields))


def idle(name: str, *, idle_for: float = 1.0, **fields: Any) -> RolloutView:
    return make_rollout(name, make_state(idle=True, idle_for=idle_for, **fields))


def lent(name: str, holder: str | None = None, **fields: Any) -> RolloutView:
    lease = make_lease(holder or make_trainer_pod(name).holder)
    return make_rollout(name, make_state(idle=True, idle_for=5.0, lease=lease, **fields))


def make_trainer_pod(rollout: str, **fields: Any) -> Pod:
    labels = {JOB_LABEL: "demo", ROLLOUT_UID_LABEL: f"{rollout}-uid"}
    return make_pod(f"trainer-of-{rollout}", claims=(), labels=labels, **fields)


def make_trainer(
    rollout: str, *, phase: TrainerPhase = TrainerPhase.WAITING, available: int = 1000, **fields: Any
) -> TrainerView:
    pod = fields.pop("pod", None) or make_trainer_pod(rollout)
    state_fields = {
        name: fields.pop(name) for name in ("candidates", "last_window", "message", "trained_tokens") if name in fields
    }
    state = TrainerState(
        **{
            "seq": 1,
            "boot": f"boot-{rollout}",
            "phase": phase,
            "holder": pod.holder,
            "message": "",
            "windows": 0,
            "trained_tokens": 0,
            "available_tokens": available,
            "trained_seconds": 0.0,
            "last_window": None,
            "candidates": (),
            "peak_memory": 0,
            **state_fields,
        }
    )
    values: dict[str, Any] = {"state": state, "age": 0.0, "known_for": 100.0, **fields}
    return TrainerView(pod=pod, **values)


def make_revision(number: int, phase: RevisionPhase | None = None, **fields: Any) -> Revision:
    values: dict[str, Any] = {
        "name": f"demo-r{number}",
        "digest": f"{number:064x}",
        "url": f"file:///tlt/default/demo/revisions/demo-r{number}",
        "parent": None,
        "last_policy_version": 1,
        "phase": phase,
    }
    return Revision(**{**values, **fields})


def holds(number: int) -> dict[str, Any]:
    """State fields of a pod that has this revision."""
    return {"drafter_revision": f"demo-r{number}", "drafter_digest": f"{number:064x}"}


def make_snapshot(*views: RolloutView | TrainerView, **fields: Any) -> Snapshot:
    """At another `now` the views are as old as they were made."""
    values: dict[str, Any] = {"job": make_job(), "now": NOW, **fields}
    later = values["now"] - NOW
    return Snapshot(
        rollouts=tuple(
            dataclasses.replace(view, heard_at=view.heard_at + later, silent_since=view.silent_since + later)
            for view in views
            if isinstance(view, RolloutView)
        ),
        trainers=tuple(view for view in views if isinstance(view, TrainerView)),
        **values,
    )
