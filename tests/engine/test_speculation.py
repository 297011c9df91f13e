"""Draft lengths and drafters change while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import PROMPTS
from tests.support.eventually import eventually
from tests.support.programs import answer_of
from tests.support.rollout_server import RolloutServer
from tlt_workloads.drafter import write_initial_drafter


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
    server.call("POST", "/tlt/v1/speculation", {"mode": "Static", "draftLength": 3})
    assert drafted(server)[0] > 0


def test_what_the_engine_cannot_do_is_refused(server: RolloutServer) -> None:
    before = server.state()
    for body, word in (({"draftLength": 9}, "draftLength"), ({"mode": "Fast"}, "mode")):
        status, answer = server.call("POST", "/tlt/v1/speculation", body)
        assert status == 400
        assert word in answer["error"]["message"]
    after = server.state()
    assert (after["speculation"], after["draftLength"]) == (before["speculation"], before["draftLength"])


def test_ngrams_draft_what_followed_the_same_words_before(server: RolloutServer) -> None:
    """A prompt that repeats itself; the drafter's own counters stay as they are."""
    status, _ = server.call("POST", "/tlt/v1/speculation", {"mode": "NGram", "draftLength": 3})
    assert status == 200
    before = server.state()

    def drafts() -> int:
        server.generate([[5, 6, 7, 8] * 8], max_tokens=32)
        drafts: int = server.state()["ngram"]["drafts"]
        return drafts - int(before["ngram"]["drafts"])

    eventually(lambda: drafts() or None, deadline=120, reason="n-grams are compiled and drafted")
    after = server.state()
    assert after["drafting"]["source"] == "NGram"
    assert after["acceptance"]["drafts"] == before["acceptance"]["drafts"]


def test_adaptive_leaves_an_untrained_drafter_alone_and_tells_what_it_knows(server: RolloutServer) -> None:
    assert server.call("DELETE", "/tlt/v1/drafter")[0] == 200
    server.call("POST", "/tlt/v1/speculation", {"mode": "Adaptive", "draftLength": 3})
    server.generate(PROMPTS[:1], max_tokens=4)  # drafts of the step before may still be counted
    before = server.state()["acceptance"]["drafts"]
    for _ in range(3):
        server.generate(PROMPTS[:2], max_tokens=100)
    assert server.state()["acceptance"]["drafts"] == before
    status, report = server.call("GET", "/tlt/v1/speculation")
    assert (status, report["mode"], report["draftLength"]) == (200, "Adaptive", 3)
    assert "Learned" not in report["sources"]
    [bucket] = [bucket for bucket in report["buckets"] if bucket["largestBatch"] == 2]
    assert all(arm["stepSeconds"] > 0 for arm in bucket["arms"])
    assert 0 in {arm["draftLength"] for arm in bucket["arms"]}, "what not drafting costs is known in any case"


def test_a_revision_is_tried_as_soon_as_it_is_loaded(server: RolloutServer) -> None:
    server.call("POST", "/tlt/v1/speculation", {"mode": "Adaptive", "draftLength": 3})
    weights = (server.drafter / "model.safetensors").read_bytes()
    status, answer = server.call("POST", "/tlt/v1/drafter", server.revision("job-r77", weights))
    assert status == 200, answer
    server.generate(PROMPTS[:1], max_tokens=100)
    state = server.state()
    assert state["acceptance"]["drafts"] > 0
    assert 3 in [item["draftLength"] for item in state["acceptance"]["byLength"]]
    assert "Learned" in server.call("GET", "/tlt/v1/speculation")[1]["sources"]


# -- passes that wait ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drafter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafter") / "eagle3"
    write_initial_drafter(tiny_model, folder, draft_vocab_size=32)
    return folder


def scripted(model: Path, drafter: Path, script: str) -> dict[str, Any]:
    program = Path(__file__).with_name("scripted_drafts.py")
    result: dict[str, Any] = answer_of(str(program), str(model), str(drafter), script)
    return result


@pytest.fixture(scope="module")
def always(tiny_model: Path, drafter: Path) -> dict[str, Any]:
    """The drafter computes in each step, as vLLM has it."""
    return scripted(tiny_model, drafter, "Learned3*1")


@pytest.mark.parametrize(
    "script",
    [
        "Off*40,Learned3*1",  # longer than passes are kept
        "NGram2*25,Learned3*2,Off*5,NGram2*5,Learned3*3,Off*10,Learned3*1",
    ],
)
def test_a_drafter_that_was_left_out_drafts_as_if_it_had_not_been(
    tiny_model: Path, drafter: Path, always: dict[str, Any], script: str
) -> None:
    left_out = scripted(tiny_model, drafter, script)
    assert left_out["outputs"] == always["outputs"]
    learned = {key: draft for key, draft in left_out["drafts"].items() if len(draft) == 3}
    common = learned.keys() & always["drafts"].keys()
    assert len(common) > 100
    assert {key: learned[key] for key in common} == {key: always["drafts"][key] for key in common}
    assert left_out["passes"] < 0.85 * always["passes"]
