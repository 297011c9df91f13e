"""The schemas say what the codec takes: what one refuses the other refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jsonschema
import pytest

from tlt_workloads import contract
from tlt_workloads.rollout.openapi import documented, schema_of

BODIES = (contract.LeaseRequest, contract.RolloutConfig, contract.DrafterLoad, contract.SpeculationSettings)
GOOD: dict[type[Any], dict[str, Any]] = {
    contract.LeaseRequest: {"holder": "pod/1", "ttl": 5, "window": 0.0, "memory": "Reserve"},
    contract.RolloutConfig: {
        "job": "team/math-1",
        "storeUrl": "file:///tlt",
        "idleAfter": 0,
        "capture": {"enabled": True, "maxTokensPerStep": 1, "maxBytes": 5, "sampleRate": 0.5},
        "speculation": {"mode": "Off", "draftLength": 0},
    },
    contract.DrafterLoad: {"revision": "r1", "url": "file:///tlt/r1", "sha256": "aB" * 32},
    contract.SpeculationSettings: {"mode": "Adaptive", "draftLength": 3},
}
BAD: tuple[tuple[type[Any], dict[str, Any]], ...] = (
    (contract.LeaseRequest, {}),
    (contract.LeaseRequest, {"holder": ""}),
    (contract.LeaseRequest, {"holder": "a", "ttl": 0}),
    (contract.LeaseRequest, {"holder": "a", "ttl": "5"}),
    (contract.LeaseRequest, {"holder": "a", "window": -1}),
    (contract.LeaseRequest, {"holder": "a", "memory": "reserve"}),
    (contract.LeaseRequest, {"holder": None}),
    (contract.RolloutConfig, {"job": "math", "storeUrl": "file:///tlt"}),
    (contract.RolloutConfig, {"job": "team/../other", "storeUrl": "file:///tlt"}),
    (contract.RolloutConfig, {"job": "team/math", "storeUrl": ""}),
    (contract.RolloutConfig, {"job": "team/math", "storeUrl": "file:///tlt", "capture": {"sampleRate": 1.5}}),
    (contract.RolloutConfig, {"job": "team/math", "storeUrl": "file:///tlt", "capture": {"maxBytes": -1}}),
    (contract.RolloutConfig, {"job": "team/math", "storeUrl": "file:///tlt", "capture": []}),
    (contract.DrafterLoad, {"revision": "r", "url": "u", "sha256": "0" * 63}),
    (contract.DrafterLoad, {"revision": "r", "url": "u", "sha256": "g" * 64}),
    (contract.DrafterLoad, {"revision": "", "url": "u", "sha256": "0" * 64}),
    (contract.SpeculationSettings, {"draftLength": -1}),
    (contract.SpeculationSettings, {"draftLength": 1.5}),
)


def fits(kind: type[Any], data: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema_of(kind)).is_valid(data)


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_good_is_good_for_both(kind: type[Any]) -> None:
    contract.decode(kind, GOOD[kind])
    assert fits(kind, GOOD[kind])
    assert fits(kind, GOOD[kind] | {"colour": "blue"})  # of a newer peer


@pytest.mark.parametrize(("kind", "data"), BAD)
def test_what_is_bad_is_bad_for_both(kind: type[Any], data: dict[str, Any]) -> None:
    with pytest.raises(contract.ContractError):
        contract.decode(kind, data)
    assert not fits(kind, data)


@pytest.mark.parametrize("kind", BODIES)
def test_every_field_has_its_name_on_the_wire_and_its_default(kind: type[Any]) -> None:
    properties = schema_of(kind)["properties"]
    for item in dataclasses.fields(kind):
        first, *rest = item.name.split("_")
        found = properties[first + "".join(part.capitalize() for part in rest)]
        if item.default is not dataclasses.MISSING:
            assert found["default"] == item.default


def test_answers_are_described_as_they_are_encoded() -> None:
    lease = contract.LeaseView(
        id="1", holder="a", phase=contract.LeasePhase.REVOKING, age=1.0, expires_in=2.0, reason=None
    )
    jsonschema.validate(contract.encode(lease), schema_of(contract.LeaseView))
    evaluation = contract.Evaluation(
        accept_length=2.0, standard_error=0.1, parent_accept_length=None, sequences=1, tokens=2
    )
    manifest = contract.RevisionManifest(
        revision="r1",
        job="team/job",
        sha256="0" * 64,
        parent=None,
        method="Eagle3",
        policy_versions=(1, 2),
        trained_tokens=1,
        evaluation=evaluation,
        draft_vocab_size=8,
        trainer_version="0",
        created_at="2026-01-01T00:00:00+00:00",
    )
    jsonschema.validate(contract.encode(manifest), schema_of(contract.RevisionManifest))


def test_a_route_tells_of_its_body_its_answers_and_its_refusals() -> None:
    told = documented(body=contract.LeaseRequest, answer=contract.LeaseView, status=201, refusals={409: "NotIdle"})
    extra = told["openapi_extra"]
    assert told["status_code"] == 201
    assert extra["requestBody"]["required"]
    assert set(extra["responses"]) == {"201", "400", "401", "409", "413", "429", "503"}
    assert extra["responses"]["409"]["description"] == "NotIdle"
