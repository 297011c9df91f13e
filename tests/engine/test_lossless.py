"""Speculation changes nothing but the speed, whatever happens to it meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tests.engine.conftest import PROMPTS, Reference
from tests.engine.without_workaround import SAMPLED_PROMPTS, SAMPLED_TOKENS, SAMPLES, TEMPERATURE, run
from tests.support.rollout_server import JOB, ROOT, RolloutServer
from tests.support.tiny_model import perturbed
from tests.support.two_sample import Difference, compare_sequences, rejected

FAMILY_WISE_ERROR = 1e-4  # the chance that one run of the test below fails although both engines are equal
LENGTH = 400  # tokens, so that many changes fall into one answer
LONGEST_WAIT = 30  # answers; an engine that polls on both of two cores may keep the thread that disturbs from them
Samples = dict[int, list[list[int]]]


def test_greedy_outputs_are_those_of_the_model(server: RolloutServer, reference: Reference) -> None:
    before = server.state()["acceptance"]["drafts"]
    drafted = server.generate(PROMPTS, max_tokens=48)
    assert server.state()["acceptance"]["drafts"] > before
    server.call("POST", "/tlt/v1/speculation", {"mode": "Off", "draftLength": 0})
    plain = server.generate(PROMPTS, max_tokens=48)
    assert drafted == plain
    assert drafted == [reference.greedy(prompt, tokens=48) for prompt in PROMPTS]


class Disturbance:
    """Does something to the engine while it generates; `happened` says how often."""

    def __init__(self, server: RolloutServer, act: Callable[[RolloutServer, int], None]) -> None:
        self.server = server
        self.happened = 0
        self._act = act
        self._over = threading.Event()
        self._failure: BaseException | None = None

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Again and again until the end of the block."""
        thread = threading.Thread(target=self._go_on)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _go_on(self) -> None:
        try:
            while not self._over.is_set():
                self._act(self.server, self.happened)
                self.happened += 1
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            self._failure = error


def change_draft_length(server: RolloutServer, turn: int) -> None:
    mode, length = (("Static", 3), ("Static", 1), ("Off", 0), ("Static", 2))[turn % 4]
    assert server.call("POST", "/tlt/v1/speculation", {"mode": mode, "draftLength": length})[0] == 200


def switch_capture(server: RolloutServer, turn: int) -> None:
    capture = {"enabled": turn % 2 == 0, "maxTokensPerStep": 1 << 30}
    speculation = {"mode": "Static", "draftLength": 3}
    config = {"job": JOB, "storeUrl": f"file://{server.store}", "idleAfter": 0.2, "capture": capture}
    assert server.call("POST", "/tlt/v1/config", {**config, "speculation": speculation})[0] == 200


def swap_drafter(server: RolloutServer, turn: int) -> None:
    """Two drafters that know something, then one that knows nothing."""
    weights = load_file(server.drafter / "model.safetensors")
    amount = (0.0, 0.05, 2.0)[turn % 3]
    body = server.revision(f"lossless-{turn}", save(perturbed(weights, seed=turn, amount=amount)))
    status, answer = server.call("POST", "/tlt/v1/drafter", body)
    assert status == 200, answer


def everything(server: RolloutServer, turn: int) -> None:
    acts = (change_draft_length, swap_drafter, switch_capture)
    acts[turn % 3](server, turn // 3)


@pytest.mark.parametrize("act", [change_draft_length, switch_capture, swap_drafter, everything])
def test_greedy_outputs_stay_the_same(
    server: RolloutServer, reference: Reference, act: Callable[[RolloutServer, int], None]
) -> None:
    expected = [reference.greedy(prompt, tokens=LENGTH) for prompt in PROMPTS[:4]]
    before = server.state()
    disturbance = Disturbance(server, act)
    with disturbance.going_on():
        for turn in range(LONGEST_WAIT):
            if turn >= 3 and disturbance.happened >= 4:
                break
            assert server.generate(PROMPTS[:4], max_tokens=LENGTH) == expected
    assert disturbance.happened >= 4
    after = server.state()
    assert (after["failedRequests"], after["abortedRequests"]) == (before["failedRequests"], before["abortedRequests"])
    switch_capture(server, 0)


def test_a_lease_changes_no_word(server: RolloutServer, reference: Reference) -> None:
    """Granted while nothing runs, asked back by the request, given back in the middle of its answer."""
    expected = [reference.greedy(prompt, tokens=LENGTH) for prompt in PROMPTS[:4]]
    for turn in range(3):
        server.wait_until_idle()
        assert server.call("POST", "/tlt/v1/lease", {"holder": f"trainer/{turn}", "ttl": 60})[0] == 201
        with server.generating(PROMPTS[:4], max_tokens=LENGTH) as results:
            lease = server.state()["lease"]
            assert (lease["phase"], lease["reason"]) == ("Revoking", "Request")
            assert server.call("POST", "/tlt/v1/lease", {"holder": "another/1"})[0] == 409
            assert server.call("DELETE", f"/tlt/v1/lease?holder=trainer/{turn}")[0] == 200
        assert results == [expected] * len(results)


def sampled(server: RolloutServer) -> Samples:
    """Without a seed: of n completions each gets the next one, so that two calls would overlap."""
    return {
        number: list(
            itertools.chain.from_iterable(
                server.generate([prompt], max_tokens=SAMPLED_TOKENS, temperature=TEMPERATURE, n=SAMPLES // 2)
                for _ in range(2)
            )
        )
        for number, prompt in enumerate(SAMPLED_PROMPTS)
    }


def differences(ours: Samples, theirs: Samples) -> list[Difference]:
    """Every position of every prompt, single tokens and pairs; the whole family."""
    return rejected(
        [
            *compare_sequences(ours, theirs, width=1),
            *compare_sequences(ours, theirs, width=2),
        ],
        level=FAMILY_WISE_ERROR,
    )


@pytest.fixture(scope="module")
def without_speculation(tiny_model: Path) -> Samples:
    """What stock vLLM samples, without speculation and without the plugin."""
    return by_number(run("sample", "plain", str(tiny_model)))


def by_number(answer: Any) -> Samples:
    found = {int(number): samples for number, samples in answer.items()}
    assert sum(len(sample) for samples in found.values() for sample in samples) >= 20_000
    return found


def test_sampled_tokens_have_the_distribution_of_an_engine_without_speculation(
    server: RolloutServer, without_speculation: Samples
) -> None:
    assert server.call("POST", "/tlt/v1/speculation", {"mode": "Static", "draftLength": 3})[0] == 200
    before = server.state()["acceptance"]
    ours = by_number(sampled(server))
    after = server.state()["acceptance"]
    drafted, accepted = (after[name] - before[name] for name in ("draftTokens", "acceptedTokens"))
    assert drafted > 5_000  # steps with prompts in them, of which there are many here, are not counted
    assert 100 < accepted < drafted - 100  # both ways out of the verification are taken
    assert differences(ours, without_speculation) == []


def change_who_drafts(server: RolloutServer, turn: int) -> None:
    mode, length = (("Static", 3), ("NGram", 3), ("Off", 0), ("NGram", 2), ("Static", 1))[turn % 5]
    assert server.call("POST", "/tlt/v1/speculation", {"mode": mode, "draftLength": length})[0] == 200


def test_sampled_tokens_keep_their_distribution_while_who_drafts_changes(
    server: RolloutServer, without_speculation: Samples
) -> None:
    """A learned draft is verified by the probabilities that it was drawn from, an n-gram as it is."""
    disturbance = Disturbance(server, change_who_drafts)
    before = server.state()["acceptance"]["drafts"]
    with disturbance.going_on():
        ours = by_number(sampled(server))
    assert disturbance.happened >= 20
    assert server.state()["acceptance"]["drafts"] > before + 200
    assert differences(ours, without_speculation) == []


def test_the_same_test_finds_the_samplers_bug(tiny_model: Path, without_speculation: Samples) -> None:
    """Put back vLLM 0.32's own kernel (see `compat.fix_expand_kernel`) and the test above would fail."""
    broken = by_number(run("sample", "broken", str(tiny_model)))
    assert differences(broken, without_speculation)


def test_the_same_test_passes_the_engine_that_the_bug_was_put_into(
    tiny_model: Path, without_speculation: Samples
) -> None:
    """Otherwise the test before could fail for another reason than the bug."""
    mended = by_number(run("sample", "mended", str(tiny_model)))
    assert differences(mended, without_speculation) == []


def start(*arguments: str, module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Tries to start a server; one that is refused has ended soon."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "workloads"), os.environ.get("PYTHONPATH")])),
        "TLT_SCRATCH": str(folder / "scratch"),
        "VLLM_PLUGINS": "tlt",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", module, *arguments, "--skip-tokenizer-init", "--port", "0"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("spelling", ["json", "dotted"])
def test_lossy_acceptance_is_refused_at_start(tiny_model: Path, tmp_path: Path, spelling: str) -> None:
    words = {
        "json": ["--speculative-config", json.dumps(lossy("/drafter"))],
        "dotted": [word for name, value in lossy("/drafter").items() for word in (f"-sc.{name}", str(value))],
    }[spelling]
    answer = start("--model", str(tiny_model), *words, module="tlt_workloads.rollout.serve", folder=tmp_path)
    assert answer.returncode == 1
    assert "tlt-rollout: --speculative-config: rejection_sample_method 'synthetic'" in answer.stderr


def test_lossy_acceptance_is_refused_by_the_plugin(tiny_model: Path, server: RolloutServer, tmp_path: Path) -> None:
    """For those who start vLLM themselves."""
    words = ["--speculative-config", json.dumps(lossy(str(server.drafter))), "--dtype", "float32", "--enforce-eager"]
    module = "vllm.entrypoints.launchers.api_server.entry"
    answer = start("--model", str(tiny_model), "--max-model-len", "512", *words, module=module, folder=tmp_path)
    assert answer.returncode != 0
    assert (
        "LossyOptionError: --speculative-config: rejection_sample_method 'synthetic'" in answer.stdout + answer.stderr
    )


def lossy(drafter: str) -> dict[str, Any]:
    return {
        "method": "eagle3",
        "model": drafter,
        "num_speculative_tokens": 3,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_length": 3.0,
    }


def test_the_temperature_leaves_something_to_choose(reference: Reference) -> None:
    """Otherwise the comparison above would compare little."""
    for prompt in SAMPLED_PROMPTS:
        [choices] = reference.probabilities([list(prompt)], temperature=TEMPERATURE)
        assert float(torch.special.entr(choices).sum()) > 0.5
