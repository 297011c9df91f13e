"""Which policy is in force and who may serve."""

from __future__ import annotations

import pytest

from tlt_workloads.gateway.policy import Admission, PolicyLedger

FILE = {"transport": "file", "path": "/tlt/policy-3.safetensors"}
NETWORK = {"names": ["a"], "dtype_names": ["bfloat16"], "shapes": [[1]]}


def updated(info: dict[str, object], version: str = "policy-3") -> PolicyLedger:
    ledger = PolicyLedger()
    ledger.start(["a", "b"])
    ledger.stage(info)
    ledger.finish(version)
    return ledger


def test_before_any_update_every_pod_serves() -> None:
    assert PolicyLedger().admission("default") is Admission.SERVE
    assert PolicyLedger().admission(None) is Admission.SERVE


def test_a_pod_that_missed_a_file_update_gets_it_again() -> None:
    ledger = updated(FILE)
    assert ledger.policy is not None
    assert ledger.policy.update_info == FILE
    assert ledger.admission("policy-2") is Admission.REPLAY
    assert ledger.admission(None) is Admission.REPLAY


def test_a_pod_that_has_the_policy_serves_at_once() -> None:
    assert updated(FILE).admission("policy-3") is Admission.SERVE


def test_a_pod_that_missed_a_network_update_waits_for_the_next() -> None:
    assert updated(NETWORK).admission("default") is Admission.WAIT


def test_several_updates_in_one_session_cannot_be_repeated() -> None:
    ledger = PolicyLedger()
    ledger.start(["a"])
    ledger.stage(FILE)
    ledger.stage(FILE)
    ledger.finish("policy-1")
    assert ledger.admission("default") is Admission.WAIT


def test_nobody_is_let_in_while_an_update_or_a_pause_is_under_way() -> None:
    ledger = updated(FILE)
    ledger.start(["a"])
    assert ledger.admission("policy-3") is Admission.WAIT
    ledger.abandon()
    assert ledger.admission("policy-3") is Admission.SERVE
    ledger.paused = True
    assert ledger.admission("policy-3") is Admission.WAIT


def test_an_abandoned_update_leaves_the_policy_before_in_force() -> None:
    ledger = updated(FILE)
    ledger.start(["a"])
    ledger.stage({**FILE, "path": "/tlt/policy-4.safetensors"})
    ledger.abandon()
    assert ledger.policy is not None
    assert ledger.policy.version == "policy-3"


def test_after_a_restart_the_newest_policy_of_the_pods_is_in_force() -> None:
    ledger = PolicyLedger()
    ledger.recognise(["policy-6", "policy-7", "default", None])
    assert ledger.number == 7
    assert ledger.admission("policy-7") is Admission.SERVE
    assert ledger.admission("policy-6") is Admission.WAIT


@pytest.mark.parametrize(("version", "number"), [("policy-41", 41), ("step_12", 12), ("best", 1)])
def test_the_number_is_the_learners_own_where_it_gives_one(version: str, number: int) -> None:
    assert updated(FILE, version).number == number


def test_versions_count_up_when_the_learner_gives_none() -> None:
    assert updated(FILE, "policy-41").next_version() == "policy-42"
