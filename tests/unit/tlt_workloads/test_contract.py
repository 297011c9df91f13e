"""The wire contract: what one side encodes the other side decodes, and what does not fit is refused by field name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads import contract

names = st.text(min_size=1, max_size=12)
seconds = st.floats(min_value=0, max_value=1e6, allow_nan=False)
counts = st.integers(min_value=0, max_value=2**53)
leases = st.builds(
    contract.LeaseView,
    id=names,
    holder=names,
    phase=st.sampled_from(contract.LeasePhase),
    age=seconds,
    expires_in=seconds,
    reason=st.none() | st.sampled_from(contract.RevokeReason),
    revoking_for=seconds,
)
manifests = st.builds(
    contract.RevisionManifest,
    revision=names,
    job=names,
    sha256=names,
    parent=st.none() | names,
    method=names,
    policy_versions=st.tuples(counts, counts),
    trained_tokens=counts,
    evaluation=st.builds(
        contract.Evaluation,
        accept_length=seconds,
        standard_error=seconds,
        parent_accept_length=st.none() | seconds,
        sequences=counts,
        tokens=counts,
    ),
    draft_vocab_size=counts,
    trainer_version=names,
    created_at=names,
)


def over_the_wire(payload: Any) -> Any:
    return json.loads(json.dumps(contract.encode(payload)))


@given(leases)
def test_a_lease_survives_the_wire(lease: contract.LeaseView) -> None:
    assert contract.decode(contract.LeaseView, over_the_wire(lease)) == lease


@given(manifests)
def test_a_manifest_survives_the_wire(manifest: contract.RevisionManifest) -> None:
    assert contract.decode(contract.RevisionManifest, over_the_wire(manifest)) == manifest


def test_names_on_the_wire_are_camel_case() -> None:
    assert contract.encode(contract.CaptureCounters(dropped_tokens=3))["droppedTokens"] == 3


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    data = {"holder": "pod/1", "colour": "blue"}
    assert contract.decode(contract.LeaseRequest, data) == contract.LeaseRequest(holder="pod/1")


def test_whole_numbers_are_accepted_where_seconds_are_expected() -> None:
    assert contract.decode(contract.LeaseRequest, {"holder": "pod/1", "ttl": 5}).ttl == 5.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "holder: required field is missing"),
        ({"holder": 7}, "holder: expected str, got int"),
        ({"holder": "a", "ttl": "soon"}, "ttl: expected float, got str"),
        ({"holder": "a", "ttl": True}, "ttl: expected float, got bool"),
        ({"holder": "a", "memory": "Swap"}, "memory: 'Swap' is not one of Reserve, Sleep"),
        ([], "LeaseRequest: expected an object, got list"),
        ({"holder": ""}, "holder: must not be empty"),
        ({"holder": "a\ud800"}, "holder: holds half a character (a lone surrogate)"),
        ({"holder": "a", "ttl": 0}, "ttl: must be above 0"),
        ({"holder": "a", "ttl": 10**400}, "ttl: expected a finite number"),
        ({"holder": "a", "ttl": float("nan")}, "ttl: expected a finite number"),
        ({"holder": "a", "ttl": float("inf")}, "ttl: expected a finite number"),
        ({"holder": "a", "window": -0.5}, "window: must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_field_name(data: Any, message: str) -> None:
    with pytest.raises(contract.ContractError) as refusal:
        contract.decode(contract.LeaseRequest, data)
    assert str(refusal.value) == message


def test_a_nested_field_is_named_with_its_path() -> None:
    data = {"job": "a/b", "storeUrl": "file:///tlt", "capture": {"maxBytes": "many"}}
    with pytest.raises(contract.ContractError, match=r"^capture\.maxBytes: expected int, got str$"):
        contract.decode(contract.RolloutConfig, data)


@dataclass(frozen=True)
class Tally:
    """A payload with numbers by name, as the state's refusals are."""

    by_reason: Mapping[str, int] = field(default_factory=dict)


def test_numbers_by_name_survive_the_wire() -> None:
    tally = Tally({"NotFinite": 2})
    assert contract.decode(Tally, over_the_wire(tally)) == tally
    with pytest.raises(contract.ContractError, match=r"^byReason: expected int, got str$"):
        contract.decode(Tally, {"byReason": {"NotFinite": "2"}})
    with pytest.raises(contract.ContractError, match=r"^byReason: expected an object, got list$"):
        contract.decode(Tally, {"byReason": []})


@pytest.mark.parametrize("job", ["math", "team/", "team/../x", "Team/math", "team/math\n", "/team/math", "team/ma th"])
def test_a_job_has_the_names_of_kubernetes(job: str) -> None:
    with pytest.raises(contract.ContractError, match=r"^job: must match"):
        contract.decode(contract.RolloutConfig, {"job": job, "storeUrl": "file:///tlt"})
