"""One real server for all tests of this folder: a tiny model in float32, so that equal means equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.rollout_server import JOB, RolloutServer, rollout_server
from tests.support.tiny_model import build_tiny_model

DRAFTED = 32  # tokens of the draft vocabulary
PROMPTS = [[1, 5 + number, 9, 13] for number in (0, 1, 3, 4, 5, 6, 8, 9)]  # of 400 tokens none is a matter of rounding
CLEAR = 1e-4  # how far ahead of the second the likeliest token must be; engines on other processors differ by 1e-5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def running_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutServer]:
    folder = tmp_path_factory.mktemp("server")
    flags = ["--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    with rollout_server(tiny_model, *flags, "--draft-vocab-size", str(DRAFTED), folder=folder) as server:
        config = {"job": JOB, "storeUrl": f"file://{server.store}", "idleAfter": 0.2}
        status, answer = server.call("POST", "/tlt/v1/config", config)
        assert status == 200, answer
        yield server


@pytest.fixture
def server(running_server: RolloutServer) -> RolloutServer:
    """Idle, with no lease and drafting three tokens."""
    state = running_server.state()
    if lease := state["lease"]:
        running_server.call("DELETE", f"/tlt/v1/lease?holder={lease['holder']}")
    running_server.call("POST", "/tlt/v1/speculation", {"mode": "Static", "draftLength": 3})
    running_server.wait_until_idle()
    return running_server


class Reference:
    """The same model by another hand."""

    def __init__(self, folder: Path, *, weights: Path | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if weights is not None:
            self.model.load_state_dict(load_file(weights), strict=False)
            self.model.tie_weights()

    @torch.no_grad()
    def greedy(self, prompt: list[int], *, tokens: int) -> list[int]:
        """The answer; where two tokens are all but equally likely, rounding would decide and there is none."""
        ids = list(prompt)
        for _ in range(tokens):
            best = self.model(torch.tensor([ids])).logits[0, -1].topk(2)
            ahead = float(best.values[0] - best.values[1])
            assert ahead > CLEAR, f"after {len(ids)} tokens of {prompt} rounding decides; take another prompt"
            ids.append(int(best.indices[0]))
        return ids[len(prompt) :]

    @torch.no_grad()
    def is_greedy(self, prompt: list[int], output: list[int]) -> bool:
        """Whether each token of an output is the likeliest one after those before it, in one pass."""
        logits = self.model(torch.tensor([prompt + output[:-1]])).logits[0, len(prompt) - 1 :]
        return bool(torch.equal(logits.argmax(dim=-1), torch.tensor(output)))

    @torch.no_grad()
    def hidden_states(self, ids: list[int], layers: tuple[int, ...]) -> torch.Tensor:
        """[tokens, layers + 1, hidden], the last column after the final norm."""
        output = self.model.model(torch.tensor([ids]), output_hidden_states=True)
        return torch.stack([*(output.hidden_states[layer][0] for layer in layers), output.last_hidden_state[0]], dim=1)

    @torch.no_grad()
    def probabilities(self, ids: list[list[int]], *, temperature: float) -> torch.Tensor:
        """[sequences, vocabulary] of the next token."""
        logits: Any = self.model(torch.tensor(ids)).logits[:, -1]
        return torch.softmax(logits / temperature, dim=-1)


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)
