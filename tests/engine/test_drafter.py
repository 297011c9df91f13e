"""A new drafter in a live engine: no request notices, the policy stays, bad ones are refused."""

from __future__ import annotations

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


def refused(server: RolloutServer, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    status, answer = server.call("POST", "/tlt/v1/drafter", server.revision(name, save(tensors)))
    assert status == 422, answer
    error: dict[str, str] = answer["error"]
    return error


@pytest.fixture
def unchanged(server: RolloutServer) -> object:
    """The drafter and the outputs are the same after as before."""
    before, outputs = server.state(), server.generate(PROMPTS[:2], max_tokens=20)
    yield
    after = server.state()
    assert (after["drafterRevision"], after["drafterDigest"]) == (before["drafterRevision"], before["drafterDigest"])
    assert server.generate(PROMPTS[:2], max_tokens=20) == outputs


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    def test_the_targets_embedding(self, server: RolloutServer) -> None:
        """Loading it would overwrite the policy, which shares the module with the drafter."""
        tensors = weights(server) | {"embed_tokens.weight": torch.zeros(VOCABULARY, 64, dtype=torch.bfloat16)}
        assert "embed_tokens.weight" in refused(server, "embedding", tensors)["message"]

    def test_a_wrong_shape(self, server: RolloutServer) -> None:
        tensors = weights(server)
        tensors["fc.weight"] = tensors["fc.weight"][:8].contiguous()
        assert "fc.weight" in refused(server, "shape", tensors)["message"]

    def test_a_missing_tensor(self, server: RolloutServer) -> None:
        tensors = weights(server)
        del tensors["norm.weight"]
        assert refused(server, "missing", tensors)["message"] == "norm.weight: missing"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, server: RolloutServer, value: float) -> None:
        tensors = weights(server)
        tensors["norm.weight"][3] = value
        assert "not finite" in refused(server, "finite", tensors)["message"]

    def test_a_vocabulary_map_that_leads_outside(self, server: RolloutServer) -> None:
        tensors = weights(server)
        tensors["d2t"] = tensors["d2t"] + VOCABULARY
        assert "d2t" in refused(server, "map", tensors)["message"]

    def test_another_digest(self, server: RolloutServer) -> None:
        body = server.revision("digest", save(weights(server)), sha256="0" * 64)
        status, answer = server.call("POST", "/tlt/v1/drafter", body)
        assert (status, answer["error"]["reason"]) == (422, "DigestMismatch")

    def test_half_a_file(self, server: RolloutServer) -> None:
        status, answer = server.call("POST", "/tlt/v1/drafter", server.revision("half", save(weights(server))[:-100]))
        assert (status, answer["error"]["reason"]) == (422, "Unreadable")

    def test_no_file(self, server: RolloutServer) -> None:
        body = {"revision": "none", "url": f"file://{server.job}/revisions/none", "sha256": "0" * 64}
        status, answer = server.call("POST", "/tlt/v1/drafter", body)
        assert (status, answer["error"]["reason"]) == (422, "Unreadable")

    @pytest.mark.parametrize(
        "url", ["file:///etc", "{job}/../other/r1", "{job}/revisions/../../other", "https://host/r1"]
    )
    def test_a_place_outside_the_job(self, server: RolloutServer, url: str) -> None:
        body = {"revision": "outside", "url": url.format(job=f"file://{server.job}"), "sha256": "0" * 64}
        status, answer = server.call("POST", "/tlt/v1/drafter", body)
        assert (status, answer["error"]["reason"]) == (422, "OutsideStore")
