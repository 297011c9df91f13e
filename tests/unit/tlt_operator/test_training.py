"""Which trainer pods exist."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.snapshots import (
    busy,
    idle,
    lent,
    make_job,
    make_lease,
    make_pod,
    make_rollout,
    make_snapshot,
    make_state,
    make_trainer,
    make_trainer_pod,
)
from tlt_operator.api.claim import Claim, Consumer
from tlt_operator.api.names import Reason, trainer_name
from tlt_operator.api.pod import DeviceClaim
from tlt_operator.placement.strategy import Site
from tlt_operator.plan.actions import Action, CreateTrainer, DeleteTrainer
from tlt_operator.plan.generation import observe_generation
from tlt_operator.plan.recalls import decide_recalls
from tlt_operator.plan.snapshot import Fault, Snapshot
from tlt_operator.plan.training import decide_trainers
from tlt_operator.plan.worker import classify_all
from tlt_workloads.contract import LeasePhase, TrainerPhase, WindowReport


def decide(snapshot: Snapshot, *, tokens: int = 1000, due: bool = False) -> tuple[Action, ...]:
    workers = classify_all(snapshot)
    recalls = decide_recalls(snapshot, workers, observe_generation(snapshot, workers), before={})
    return decide_trainers(snapshot, workers, available_tokens=tokens, due=due, recalls=recalls.open)


def created(actions: tuple[Action, ...]) -> list[str]:
    return [item.rollout_uid for item in actions if isinstance(item, CreateTrainer)]


def deleted(actions: tuple[Action, ...]) -> dict[str, str | None]:
    return {item.trainer_uid: item.failure for item in actions if isinstance(item, DeleteTrainer)}


def test_every_pod_gets_a_trainer_before_there_is_enough_data() -> None:
    old = {"idle_seconds": 600.0}  # serving for longer than keepWarm
    assert created(decide(make_snapshot(idle("a", **old), idle("b", **old)), tokens=50)) == ["a-uid", "b-uid"]
    assert created(decide(make_snapshot(idle("a", **old), idle("b", **old)), tokens=49)) == []


def test_trainers_start_while_the_job_generates() -> None:
    old = {"busy_seconds": 600.0}
    assert created(decide(make_snapshot(busy("a", **old), idle("b", **old)), tokens=0)) == ["b-uid", "a-uid"]


def test_trainers_start_with_the_rollout_pods() -> None:
    assert created(decide(make_snapshot(idle("a", idle_seconds=1.0)), tokens=0)) == ["a-uid"]
    assert created(decide(make_snapshot(make_rollout("a"), idle("b", idle_seconds=600.0)), tokens=0)) == []


def test_max_trainers_bounds_their_number_and_those_that_exist_come_first() -> None:
    job = make_job(training={"maxTrainers": 1, "trigger": {"minNewTokens": 100}})
    assert created(decide(make_snapshot(busy("a"), idle("b"), job=job))) == ["b-uid"]
    assert created(decide(make_snapshot(busy("a"), idle("b"), make_trainer("a"), job=job))) == []


@pytest.mark.parametrize(
    "view",
    [
        make_rollout("a", make_state(), fault=Fault.UNREACHABLE),
        make_rollout("a", make_state(), pod=make_pod("a", claims=())),
        make_rollout("a", make_state(), pod=make_pod("a", claims=(DeviceClaim(name="gpu", claim=None),))),
        make_rollout("a", make_state(), pod=make_pod("a", deleting=True)),
    ],
    ids=["unknown", "no claim", "claim not made yet", "deleting"],
)
def test_no_trainer_where_none_can_run(view: object) -> None:
    assert created(decide(make_snapshot(view))) == []


def test_trainer_goes_with_its_rollout_pod() -> None:
    assert set(deleted(decide(make_snapshot(make_trainer("a"))))) == {"trainer-of-a-uid"}
    going = make_rollout("a", make_state(), pod=make_pod("a", deleting=True))
    assert set(deleted(decide(make_snapshot(going, make_trainer("a"))))) == {"trainer-of-a-uid"}


def test_trainer_that_ended_is_deleted_with_what_it_died_of() -> None:
    failed = make_trainer("a", pod=make_trainer_pod("a", phase="Failed", trouble="exit code 1: no model"))
    assert deleted(decide(make_snapshot(busy("a"), failed))) == {"trainer-of-a-uid": "exit code 1: no model"}
    done = make_trainer("a", pod=make_trainer_pod("a", phase="Succeeded"))
    assert deleted(decide(make_snapshot(busy("a"), done))) == {"trainer-of-a-uid": None}


def test_trainer_is_replaced_when_it_says_for_long_that_it_failed() -> None:
    failed = make_trainer("a", phase=TrainerPhase.FAILED, message="no model", failed_for=10.0)
    assert deleted(decide(make_snapshot(busy("a"), failed))) == {}
    longer = dataclasses.replace(failed, failed_for=301.0)
    assert deleted(decide(make_snapshot(busy("a"), longer))) == {"trainer-of-a-uid": "no model"}


def test_suspended_job_keeps_a_trainer_until_it_has_handed_back() -> None:
    job = make_job(suspend=True)
    assert deleted(decide(make_snapshot(lent("a"), make_trainer("a"), job=job))) == {}
    assert set(deleted(decide(make_snapshot(idle("a"), make_trainer("a"), job=job)))) == {"trainer-of-a-uid"}


def test_trainer_that_does_not_hand_back_is_deleted() -> None:
    lease = make_lease(make_trainer_pod("a").holder, phase=LeasePhase.REVOKING, revoking_for=6.9)
    within = make_rollout("a", make_state(lease=lease))
    assert deleted(decide(make_snapshot(within, make_trainer("a")))) == {}
    beyond = make_rollout("a", make_state(lease=dataclasses.replace(lease, revoking_for=7.1)))
    assert set(deleted(decide(make_snapshot(beyond, make_trainer("a"))))) == {"trainer-of-a-uid"}


def test_warm_trainer_is_kept_for_keep_warm_after_its_last_window() -> None:
    window = WindowReport(
        lease_id="x",
        started_ago=650.0,
        seconds=60.0,
        lease_to_first_step=1.0,
        steps=1,
        tokens=1,
        loss_first=None,
        loss_last=None,
        stop_reason="Done",
        stop_seconds=0,
    )
    used = make_trainer("a", last_window=window, known_for=5000.0)
    assert deleted(decide(make_snapshot(idle("a", idle_seconds=5000.0), used), tokens=0)) == {}
    assert set(
        deleted(decide(make_snapshot(idle("a", idle_seconds=5000.0), dataclasses.replace(used, age=20.0)), tokens=0))
    )
    assert (
        deleted(decide(make_snapshot(idle("a", idle_seconds=5000.0), dataclasses.replace(used, age=20.0)), tokens=1000))
        == {}
    )


def test_outdated_trainer_is_replaced_but_never_while_it_holds_a_device() -> None:
    assert set(deleted(decide(make_snapshot(idle("a"), make_trainer("a", outdated=True)))))
    assert deleted(decide(make_snapshot(lent("a"), make_trainer("a", outdated=True)))) == {}


@pytest.mark.parametrize("change", ["outdated", "suspended", "claim deleted"])
def test_nothing_is_taken_from_a_pod_that_an_operator_which_has_just_started_did_not_hear_yet(change: str) -> None:
    """It may be lent by the operator before this one, and its trainer in the middle of a window."""
    trainer = make_trainer("a", outdated=change == "outdated")
    fields: dict[str, Any] = {"job": make_job(suspend=change == "suspended")}
    if change == "claim deleted":
        fields["site"] = Site(claims={"a-gpu": Claim(name="a-gpu", uid="claim-uid", deleting=True)})
    assert deleted(decide(make_snapshot(make_rollout("a", silent_for=1.0), trainer, **fields))) == {}
    assert set(deleted(decide(make_snapshot(make_rollout("a", silent_for=31.0), trainer, **fields))))


def test_next_trainer_on_a_claim_waits_until_the_last_one_is_gone() -> None:
    """A rollout pod of a StatefulSet comes back under another uid and uses the claim of the one before."""
    claim = (DeviceClaim(name="gpu", claim="gpu-of-a", requests=()),)
    reborn = make_rollout("a", make_state(), pod=make_pod("a", uid="a-again", claims=claim))
    last = make_pod("trainer-of-a", claims=claim, labels=make_trainer_pod("a").labels, deleting=True)
    assert created(decide(make_snapshot(reborn, make_trainer("a", pod=last)))) == []
    assert created(decide(make_snapshot(reborn))) == ["a-again"]


def test_pods_that_share_a_claim_get_one_trainer() -> None:
    claim = (DeviceClaim(name="gpu", claim="one-gpu", requests=()),)
    pods = [make_rollout(name, make_state(), pod=make_pod(name, claims=claim)) for name in ("a", "b")]
    assert created(decide(make_snapshot(*pods))) == ["a-uid"]


def test_next_trainer_on_a_claim_waits_until_the_claim_has_forgotten_the_last_one() -> None:
    """The API server knows nothing of the last one any more; the kubelet may still take its devices from it."""
    gone = Consumer(name=trainer_name("demo", rollout_uid="earlier"), uid="gone")
    others = (Consumer(name="a", uid="a-uid"), Consumer(name="debugger", uid="somebody-else"))
    claim = Claim(name="a-gpu", uid="claim-uid", consumers=(*others, gone))
    held = make_snapshot(idle("a"), idle("b"), site=Site(claims={"a-gpu": claim}))
    assert created(decide(held)) == ["b-uid"]
    free = Site(claims={"a-gpu": dataclasses.replace(claim, consumers=others)})
    assert created(decide(dataclasses.replace(held, site=free))) == ["a-uid", "b-uid"]


def test_trainer_leaves_a_claim_that_is_being_deleted_once_it_holds_no_lease() -> None:
    site = Site(claims={"a-gpu": Claim(name="a-gpu", uid="claim-uid", deleting=True)})
    assert set(deleted(decide(make_snapshot(idle("a"), make_trainer("a"), site=site)))) == {"trainer-of-a-uid"}
    assert deleted(decide(make_snapshot(lent("a"), make_trainer("a"), site=site))) == {}
    assert created(decide(make_snapshot(idle("a"), idle("b"), site=site))) == ["b-uid"]


def test_trainer_in_a_queue_is_given_up_with_the_reason() -> None:
    queued = make_trainer("a", pod=make_trainer_pod("a", queued=True))
    (action,) = decide(make_snapshot(idle("a"), queued))
    assert isinstance(action, DeleteTrainer)
    assert action.reason is Reason.QUEUED
    assert "managedJobsNamespaceSelector" in (action.failure or "")


def test_pods_that_name_one_device_get_one_trainer_at_a_time() -> None:
    site, job = Site(visible_devices=True), make_job(placement={"strategy": "VisibleDevices"})
    device: dict[str, Any] = {"claims": (), "node": "node", "visible_devices": ("0",), "plugin_devices": 1}
    pods = [make_rollout(name, make_state(), pod=make_pod(name, **device)) for name in ("a", "b")]
    assert created(decide(make_snapshot(*pods, job=job, site=site))) == ["a-uid"]
    last = make_trainer("earlier", pod=make_pod("trainer", labels=make_trainer_pod("earlier").labels, **device))
    assert created(decide(make_snapshot(*pods, last, job=job, site=site))) == []
    elsewhere = make_rollout("c", make_state(), pod=make_pod("c", **{**device, "node": "other"}))
    assert created(decide(make_snapshot(pods[0], elsewhere, job=job, site=site))) == ["a-uid", "c-uid"]


def test_training_that_is_due_is_reason_enough_for_a_trainer() -> None:
    old = {"idle_seconds": 600.0}
    assert created(decide(make_snapshot(idle("a", **old)), tokens=10)) == []
    assert created(decide(make_snapshot(idle("a", **old)), tokens=10, due=True)) == ["a-uid"]
