"""A token is replaced step by step, and nobody is locked out on the way."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.snapshots import make_job
from tlt_operator.api.token import Tokens, TokenStage, parse_tokens
from tlt_operator.errors import InvalidSpecError
from tlt_operator.manifests.token_secret import token_secret, with_tokens
from tlt_operator.plan.rotation import RotationRule, due_in, next_tokens

RULE = RotationRule(overlap=120.0, lifetime=0.0)
STEADY = Tokens(current="old", changed_at=1000.0)


def step(tokens: Tokens, *, now: float, request: str = "", rule: RotationRule = RULE, fresh: str = "new") -> Tokens:
    return next_tokens(tokens, request=request, now=now, rule=rule, fresh=fresh)


def test_a_rotation_from_the_request_to_its_end() -> None:
    announced = step(STEADY, now=2000.0, request="please")
    assert (announced.known, announced.stage) == (("old", "new"), TokenStage.ANNOUNCED)
    assert step(announced, now=2119.0, request="please") == announced
    switched = step(announced, now=2120.0, request="please")
    assert (switched.known, switched.stage) == (("new", "old"), TokenStage.SWITCHED)
    assert step(switched, now=2239.0, request="please") == switched
    steady = step(switched, now=2240.0, request="please")
    assert (steady.known, steady.stage) == (("new",), TokenStage.STEADY)
    assert step(steady, now=1e9, request="please") == steady, "one request is one rotation"


def test_a_second_request_during_a_rotation_is_met_after_it() -> None:
    tokens = step(STEADY, now=2000.0, request="one")
    for now in (2010.0, 2120.0, 2240.0):
        tokens = step(tokens, now=now, request="two")
    assert (tokens.known, tokens.request) == (("new",), "one")
    assert step(tokens, now=2241.0, request="two", fresh="newer").following == "newer"


def test_taking_the_annotation_away_asks_for_nothing() -> None:
    tokens = Tokens(current="old", changed_at=0.0, request="once")
    assert step(tokens, now=1e9, request="") == tokens


def test_an_old_token_is_replaced_unasked_where_the_operator_made_it() -> None:
    rule = RotationRule(overlap=120.0, lifetime=3600.0)
    assert due_in(STEADY, now=1600.0, rule=rule) == 3000.0
    assert step(STEADY, now=4599.0, rule=rule) == STEADY
    assert step(STEADY, now=4600.0, rule=rule).stage is TokenStage.ANNOUNCED
    theirs = Tokens(current="old", changed_at=0.0, is_ours=False)
    assert step(theirs, now=1e9, rule=rule) == theirs
    assert due_in(theirs, now=1e9, rule=rule) == float("inf")
    assert step(theirs, now=1e9, rule=rule, request="please").stage is TokenStage.ANNOUNCED


@given(
    steps=st.lists(st.tuples(st.floats(0, 400), st.sampled_from(["", "a", "b", "c"])), max_size=30),
    lifetime=st.sampled_from([0.0, 300.0, 5000.0]),
)
def test_a_token_is_sent_only_when_it_was_accepted_for_the_whole_overlap_before(
    steps: list[tuple[float, str]], lifetime: float
) -> None:
    rule = RotationRule(overlap=120.0, lifetime=lifetime)
    fresh = (f"token-{number}" for number in itertools.count())
    tokens, now, request = Tokens(current="first", changed_at=0.0), 0.0, ""
    accepted_since = {"first": float("-inf")}
    sent_until: dict[str, float] = {}
    for pause, wanted in steps:
        now, request = now + pause, wanted or request
        before, tokens = tokens, step(tokens, now=now, request=request, rule=rule, fresh=next(fresh))
        for token in tokens.known:
            accepted_since.setdefault(token, now)
        if tokens.current != before.current:
            sent_until[before.current] = now
            assert now - accepted_since[tokens.current] >= rule.overlap
        for token in set(before.known) - set(tokens.known):
            assert now - sent_until[token] >= rule.overlap
        assert len(tokens.known) <= 2
        assert due_in(tokens, now=now, rule=rule) >= 0
    for _ in range(6):  # and it comes to an end
        now += 120.0
        tokens = step(tokens, now=now, request=request, rule=RULE, fresh=next(fresh))
    assert tokens.stage is TokenStage.STEADY
    assert tokens.request in (request, tokens.request)


def as_read(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "metadata": {**body["metadata"], "creationTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    "tokens",
    [
        Tokens(current="a", changed_at=1.0),
        Tokens(current="a", following="b", changed_at=2.0, request="once"),
        Tokens(current="b", previous="a", changed_at=3.0, request="once"),
    ],
)
def test_what_is_written_is_read_again(tokens: Tokens) -> None:
    body = as_read(token_secret(make_job(), tokens))
    assert parse_tokens(body) == tokens
    steady = Tokens(current="c", changed_at=4.0, request="twice")
    assert parse_tokens(with_tokens(body, steady)) == steady, "keys of a step that is over are gone"


def test_all_else_in_the_secret_stays() -> None:
    body: dict[str, Any] = {
        "metadata": {"name": "s", "resourceVersion": "7", "annotations": {"theirs": "x"}, "labels": {"theirs": "y"}},
        "type": "Opaque",
        "data": {"token": "YQ==", "other": "eA=="},
    }
    after = with_tokens(body, Tokens(current="b", changed_at=0.0))
    assert after["data"] == {"token": "Yg==", "other": "eA=="}
    assert after["metadata"]["resourceVersion"] == "7"
    assert after["metadata"]["annotations"]["theirs"] == "x"
    assert after["metadata"]["labels"] == {"theirs": "y"}
    assert not parse_tokens(body).is_ours


@pytest.mark.parametrize("data", [{}, {"token": ""}, {"token": "%"}, {"token": base64.b64encode(b"a\nb").decode()}])
def test_a_secret_that_is_of_no_use_is_named_without_its_content(data: dict[str, str]) -> None:
    with pytest.raises(InvalidSpecError, match="Secret demo-tlt-control") as caught:
        parse_tokens({"metadata": {"name": "demo-tlt-control"}, "data": data})
    assert "a\nb" not in str(caught.value)
