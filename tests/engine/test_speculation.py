"""Draft lengths change while the server runs."""

from __future__ import annotations

import pytest

from tests.engine.conftest import PROMPTS
from tests.support.rollout_server import RolloutServer


def drafted(server: RolloutServer) -> tuple[int, int]:
    before = server.state()["acceptance"]
    server.generate(PROMPTS[:4], max_tokens=32)
    after = server.state()["acceptance"]
    return after["drafts"] - before["drafts"], after["draftTokens"] - before["draftTokens"]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_draft_has_the_length_that_was_asked_for(server: RolloutServer, length: int) -> None:
    status, state = server.call("POST", "/tlt/v1/speculation", {"mode": "Static", "draftLength": length})
    assert (status, state["speculation"], state["draftLength"]) == (200, "Static", length)
    drafts, tokens = drafted(server)
    assert drafts > 0
    assert tokens == pytest.approx(drafts * length, rel=0.1)  # the last drafts of a request are cut short


def test_off_means_off_and_can_be_undone(server: RolloutServer) -> None:
    server.call("POST", "/tlt/v1/speculation", {"mode": "Off", "draftLength": 0})
    server.generate(PROMPTS[:1], max_tokens=4)  # drafts of the step before may still be counted
    assert drafted(server) == (0, 0)
    server.call("POST", "/tlt/v1/speculation", {"mode": "Adaptive", "draftLength": 3})
    assert drafted(server)[0] > 0


def test_what_the_engine_cannot_do_is_refused(server: RolloutServer) -> None:
    before = server.state()
    for body, word in (({"draftLength": 9}, "draftLength"), ({"mode": "NGram"}, "NGram"), ({"mode": "Fast"}, "mode")):
        status, answer = server.call("POST", "/tlt/v1/speculation", body)
        assert status == 400
        assert word in answer["error"]["message"]
    after = server.state()
    assert (after["speculation"], after["draftLength"]) == (before["speculation"], before["draftLength"])
