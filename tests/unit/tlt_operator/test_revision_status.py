"""The status of a DrafterRevision: conditions that keep what was decided, evidence that stays, a record that goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.snapshots import make_revision
from tlt_operator.api.names import RevisionCondition, RevisionPhase, RevisionReason
from tlt_operator.api.reasons import REVISION_EXPLANATIONS, REVISION_QUESTIONS
from tlt_operator.api.revision import Wish, parse_revision
from tlt_operator.plan.acceptance import DraftCounts
from tlt_operator.plan.actions import LiveEvidence, MarkRevision, PodCounts, Ruling
from tlt_operator.plan.revision_status import revision_status
from tlt_operator.plan.sequential_test import Stratum
from tlt_operator.plan.trial import Arm, Reading, Side, Trial, read_trial

CRD = Path(__file__).parents[3] / "crds" / "drafterrevisions.yaml"
TRIAL = Trial(
    against="demo-r1",
    seconds=12.5,
    crashes=1,
    arms=(
        Arm(
            pod="a",
            uid="a-uid",
            side=Side.CANARY,
            boot="b",
            policy_version=3,
            readings=(Reading(draft_length=3, drafts=9, accepted=4),),
            restarts=2,
            loaded=True,
            waited=1.5,
        ),
    ),
    strata=(Stratum(policy_version=3, draft_length=3, canary=DraftCounts(2000, 20), control=DraftCounts(8000, 3200)),),
)


def mark(phase: RevisionPhase, reason: RevisionReason | None, **fields: Any) -> MarkRevision:
    ruling = Ruling(reason=reason, words=f"because {reason.value}") if reason is not None else None
    return MarkRevision(revision=make_revision(2), phase=phase, message="so it is", ruling=ruling, **fields)


def status(item: MarkRevision, previous: Mapping[str, Any] | None = None, *, now: str = "T1") -> dict[str, Any]:
    return revision_status(item, previous=previous or {}, now=now)


def facts(found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in found["conditions"]}


CANARY = mark(
    RevisionPhase.CANARY,
    RevisionReason.ON_TRIAL,
    trial=TRIAL,
    pods=PodCounts(total=1, loaded=1),
    evidence=LiveEvidence(drafts=2000, accept_length=1.01),
)


def test_a_trial_is_kept_whole_and_its_figures_are_told() -> None:
    found = status(CANARY)
    assert read_trial(json.loads(json.dumps(found["trial"]))) == TRIAL
    evidence = found["evidence"]
    assert (evidence["canaryDrafts"], evidence["canaryAcceptLength"]) == (2000, 1.01)
    assert (evidence["baselineDrafts"], evidence["baselineAcceptLength"]) == (8000, 1.4)
    assert evidence["test"]["worse"] > evidence["test"]["worseDecides"] == 2.0
    assert facts(found) == {
        "Loaded": ("True", "PodsLoaded"),
        "Promoted": ("False", "OnTrial"),
        "RolledBack": ("False", "NotWithdrawn"),
    }


def test_the_schema_has_every_field_that_is_written() -> None:
    """The API server drops others without a word, and a trial would begin anew with each operator."""
    crd = yaml.safe_load(CRD.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]

    def check(value: Any, part: Mapping[str, Any], where: str) -> None:
        if isinstance(value, Mapping):
            assert value.keys() <= part["properties"].keys(), where
            for name, item in value.items():
                check(item, part["properties"][name], f"{where}.{name}")
        elif isinstance(value, list):
            for item in value:
                check(item, part["items"], f"{where}[]")

    check(status(CANARY), schema, "status")


@pytest.mark.parametrize("phase", [RevisionPhase.ACTIVE, RevisionPhase.ROLLED_BACK, RevisionPhase.SUPERSEDED])
def test_the_record_goes_with_the_trial(phase: RevisionPhase) -> None:
    assert status(mark(phase, RevisionReason.WORSE, trial=TRIAL), status(CANARY))["trial"] is None


def test_what_was_decided_stands_when_only_pods_change() -> None:
    promoted = status(mark(RevisionPhase.ACTIVE, RevisionReason.TEST_PASSED, pods=PodCounts(total=4, loaded=1)))
    later = status(
        mark(RevisionPhase.ACTIVE, None, pods=PodCounts(total=4, loaded=4)), json.loads(json.dumps(promoted)), now="T2"
    )
    assert facts(later)["Promoted"] == ("True", "TestPassed")
    assert facts(later)["Loaded"] == ("True", "PodsLoaded")
    moved = {item["type"]: item["lastTransitionTime"] for item in later["conditions"]}
    assert (moved["Loaded"], moved["Promoted"]) == ("T2", "T1")


def test_superseded_remembers_that_it_was_active_and_rolled_back_does_not() -> None:
    def reread(found: Mapping[str, Any]) -> bool:
        body = {
            "metadata": {"name": "demo-r2"},
            "spec": {"digest": "d", "url": "file:///x", "policyVersions": {"first": 1, "last": 4}},
            "status": json.loads(json.dumps(found)),
        }
        return parse_revision(body).promoted

    promoted = status(mark(RevisionPhase.ACTIVE, RevisionReason.TEST_PASSED))
    assert reread(promoted)
    assert reread(status(mark(RevisionPhase.SUPERSEDED, None), promoted))
    assert not reread(status(mark(RevisionPhase.ROLLED_BACK, RevisionReason.WORSE), promoted))
    assert not reread(status(mark(RevisionPhase.SUPERSEDED, RevisionReason.OVERTAKEN)))


@pytest.mark.parametrize(
    ("annotations", "wish", "odd"),
    [
        ({}, None, ()),
        ({"tlt.dev/promote": "true"}, Wish.PROMOTE, ()),
        ({"tlt.dev/promote": "true", "tlt.dev/rollback": "true"}, Wish.ROLL_BACK, ()),
        ({"tlt.dev/promote": "false"}, None, ()),
        ({"tlt.dev/rollback": "True"}, None, ("tlt.dev/rollback",)),
    ],
)
def test_wishes_are_read_from_annotations(annotations: dict[str, str], wish: Wish | None, odd: tuple[str, ...]) -> None:
    found = parse_revision(
        {
            "metadata": {"name": "demo-r2", "annotations": annotations},
            "spec": {"digest": "d", "url": "file:///x", "policyVersions": {"first": 1, "last": 4}},
        }
    )
    assert (found.wish, found.odd_wishes) == (wish, odd)


def test_every_condition_and_reason_is_explained() -> None:
    assert set(REVISION_EXPLANATIONS) == set(REVISION_QUESTIONS) == set(RevisionCondition)
    assert {reason for listed in REVISION_EXPLANATIONS.values() for reason in listed} == set(RevisionReason)
