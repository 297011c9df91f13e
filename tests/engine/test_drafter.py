"""A new drafter in a live engine: no request notices, the policy stays, bad ones are refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tests.engine.conftest import PROMPTS
from tests.support.rollout_server import RolloutServer
from tests.support.tiny_model import VOCABULARY, perturbed


def weights(server: RolloutServer) -> dict[str, torch.Tensor]:
    return load_file(server.drafter / "model.safetensors")


def test_running_requests_go_on_across_swaps(server: RolloutServer) -> None:
    expected = server.generate(PROMPTS, max_tokens=400)
    bodies = [
        server.revision(f"swap-{number}", save(perturbed(weights(server), seed=number, amount=0.05)))
        for number in range(4)
    ]
    before = server.state()
    with server.generating(PROMPTS, max_tokens=400) as results:
        for body in bodies:
            server.wait_until_running()
            status, answer = server.call("POST", "/tlt/v1/drafter", body)
            assert status == 200, answer
            assert answer["policyChecksumBefore"] == answer["policyChecksumAfter"]
            assert 0 < answer["stall"] <= answer["seconds"]
    after = server.state()
    assert results == [expected] * len(results)
    assert after["drafterRevision"] == "swap-3"
    assert after["drafterDigest"] != before["drafterDigest"]
    assert after["swapStall"] is not None
    assert (after["failedRequests"], after["abortedRequests"]) == (before["failedRequests"], before["abortedRequests"])


def test_another_drafter_drafts_differently(server: RolloutServer) -> None:
    """The swap is real: a drafter that scores one token above all others drafts nothing but that token."""
    blind = weights(server)
    blind["lm_head.weight"] = torch.zeros_like(blind["lm_head.weight"])
    status, answer = server.call("POST", "/tlt/v1/drafter", server.revision("blind", save(blind)))
    assert status == 200, answer
    assert server.state()["acceptance"] == {"drafts": 0, "draftTokens": 0, "acceptedTokens": 0, "byLength": []}
    only = int(blind["d2t"][0])  # with equal scores the first draft id wins
    outputs = server.generate(PROMPTS, max_tokens=64)
    accepted = server.state()["acceptance"]["acceptedTokens"]
    assert accepted <= sum(output.count(only) for output in outputs)


def test_the_servers_own_drafter_comes_back_and_drafts_as_before(server: RolloutServer) -> None:
    own = weights(server)
    status, answer = server.call("DELETE", "/tlt/v1/drafter")
    assert status == 200, answer
    digest = answer["drafterDigest"]
    assert server.call("POST", "/tlt/v1/drafter", server.revision("same", save(own)))[0] == 200
    expected = server.generate(PROMPTS, max_tokens=64)
    drafted = server.state()["acceptance"]
    body = server.revision("other", save(perturbed(own, seed=9, amount=0.5)))
    assert server.call("POST", "/tlt/v1/drafter", body)[0] == 200
    with server.generating(PROMPTS, max_tokens=64) as results:
        status, answer = server.call("DELETE", "/tlt/v1/drafter")
        assert status == 200, answer
    assert (answer["drafterRevision"], answer["drafterDigest"]) == (None, digest)
    assert results == [expected] * len(results)
    assert server.call("DELETE", "/tlt/v1/drafter")[0] == 200, "once more is no error"
    assert server.call("POST", "/tlt/v1/drafter", body)[0] == 200
    assert server.call("DELETE", "/tlt/v1/drafter")[0] == 200
    assert server.generate(PROMPTS, max_tokens=64) == expected
    assert server.state()["acceptance"] == drafted, "guess for guess what its weights guess"


def refused(server: RolloutServer, body: dict[str, str]) -> dict[str, str]:
    """What the server says of a drafter that it does not take; every refusal is counted."""
    before = server.state()["drafterRefusals"]
    status, answer = server.call("POST", "/tlt/v1/drafter", body)
    assert status == 422, answer
    error: dict[str, str] = answer["error"]
    after = server.state()["drafterRefusals"]
    assert after == before | {error["reason"]: before.get(error["reason"], 0) + 1}
    line = f'tlt:drafter_refusals_total{{reason="{error["reason"]}"}} {float(after[error["reason"]])}'
    assert line in server.call("GET", "/metrics", token=None)[1]
    return error


@pytest.fixture
def unchanged(server: RolloutServer) -> Iterator[None]:
    """The rollout goes on meanwhile; drafter and outputs are the same after as before."""
    before, outputs = server.state(), server.generate(PROMPTS[:2], max_tokens=20)
    with server.generating(PROMPTS[:2], max_tokens=20) as results:
        yield
    assert results == [outputs] * len(results)
    after = server.state()
    for name in ("drafterRevision", "drafterDigest", "failedRequests", "abortedRequests", "policyVersion"):
        assert after[name] == before[name]


def change(server: RolloutServer, name: str, act: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, str]:
    """A revision whose tensors are not as they should be."""
    tensors = weights(server)
    act(tensors)
    return server.revision(name, save(tensors))


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    def test_the_targets_embedding(self, server: RolloutServer) -> None:
        """Loading it would overwrite the policy, which shares the module with the drafter."""
        extra = {"embed_tokens.weight": torch.zeros(VOCABULARY, 64, dtype=torch.bfloat16)}
        error = refused(server, change(server, "embedding", lambda tensors: tensors.update(extra)))
        assert error["reason"] == "UnknownTensor"
        assert "embed_tokens.weight" in error["message"]

    @pytest.mark.parametrize(
        ("act", "reason", "message"),
        [
            (lambda it: it.update({"fc.weight": it["fc.weight"][:8].contiguous()}), "WrongShape", "fc.weight"),
            (lambda it: it.update({"fc.weight": it["fc.weight"].float()}), "WrongType", "fc.weight"),
            (lambda it: it.pop("norm.weight"), "MissingTensor", "norm.weight: missing"),
            (lambda it: it["norm.weight"].__setitem__(3, torch.nan), "NotFinite", "norm.weight"),
            (lambda it: it["norm.weight"].__setitem__(3, torch.inf), "NotFinite", "norm.weight"),
            (lambda it: it.update({"d2t": it["d2t"] + VOCABULARY}), "WrongVocabulary", "d2t"),
            (lambda it: it.update({"d2t": it["d2t"][:16].clone()}), "WrongVocabulary", "--draft-vocab-size"),
        ],
    )
    def test_other_tensors(
        self, server: RolloutServer, act: Callable[[dict[str, torch.Tensor]], Any], reason: str, message: str
    ) -> None:
        error = refused(server, change(server, "tensors", act))
        assert error["reason"] == reason
        assert message in error["message"]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "Truncated"),
            (pickle.dumps({"fc.weight": [0.5] * 64}), "NotSafetensors"),
            (b"PK" + bytes(500), "NotSafetensors"),
            ((2**62).to_bytes(8, "little") + b"{" + bytes(64), "OversizedHeader"),
        ],
    )
    def test_other_files(self, server: RolloutServer, content: bytes, reason: str) -> None:
        assert refused(server, server.revision("file", content))["reason"] == reason

    def test_half_a_file(self, server: RolloutServer) -> None:
        body = server.revision("half", save(weights(server))[:-100])
        assert refused(server, body)["reason"] == "Truncated"

    def test_another_digest(self, server: RolloutServer) -> None:
        body = server.revision("digest", save(weights(server)), sha256="0" * 64)
        assert refused(server, body)["reason"] == "DigestMismatch"

    def test_a_hundred_gigabytes(self, server: RolloutServer) -> None:
        body = server.revision("large", b"")
        os.truncate(server.job / "revisions" / "large" / "model.safetensors", 100 << 30)
        assert refused(server, body)["reason"] == "TooLarge"

    def test_a_drafter_of_another_target(self, server: RolloutServer) -> None:
        body = server.revision("target", save(weights(server)))
        shape = json.loads((server.drafter / "config.json").read_text()) | {
            "eagle_aux_hidden_state_layer_ids": [1, 2, 4]
        }
        (server.job / "revisions" / "target" / "config.json").write_text(json.dumps(shape))
        error = refused(server, body)
        assert error["reason"] == "WrongTarget"
        assert "eagle_aux_hidden_state_layer_ids" in error["message"]

    def test_no_file(self, server: RolloutServer) -> None:
        body = {"revision": "none", "url": f"file://{server.job}/revisions/none", "sha256": "0" * 64}
        assert refused(server, body)["reason"] == "Unreadable"

    def test_a_link_in_the_place_of_the_file(self, server: RolloutServer, tmp_path: Path) -> None:
        body = server.revision("link", save(weights(server)))
        path = server.job / "revisions" / "link" / "model.safetensors"
        path.rename(tmp_path / "model.safetensors")
        path.symlink_to(tmp_path / "model.safetensors")
        assert refused(server, body)["reason"] == "NotAFile"

    def test_a_link_out_of_the_store(self, server: RolloutServer, tmp_path: Path) -> None:
        body = server.revision("away", save(weights(server)))
        folder = server.job / "revisions" / "away"
        folder.rename(tmp_path / "away")
        folder.symlink_to(tmp_path / "away")
        assert refused(server, body)["reason"] == "OutsideStore"

    @pytest.mark.parametrize(
        "url", ["file:///etc", "{job}/../other/r1", "{job}/revisions/../../other", "https://host/r1", "{job}/\0"]
    )
    def test_a_place_outside_the_job(self, server: RolloutServer, url: str) -> None:
        body = {"revision": "outside", "url": url.format(job=f"file://{server.job}"), "sha256": "0" * 64}
        assert refused(server, body)["reason"] == "OutsideStore"
