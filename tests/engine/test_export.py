"""vLLM without our plugin serves an exported drafter, and accepts of its drafts what its evaluation has promised."""

from __future__ import annotations

import random
import urllib.request
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    import speculators.models.eagle3  # noqa: F401

from tests.engine.conftest import DRAFTED, Reference
from tests.support.rollout_server import STOCK, rollout_server
from tests.support.tiny_model import VOCABULARY
from tlt_workloads.contract import Evaluation, TrainerConfig
from tlt_workloads.drafter import TargetFiles
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.store import open_store
from tlt_workloads.trainer.evaluate import score_sequences, summarise
from tlt_workloads.trainer.export import export_drafter
from tlt_workloads.trainer.model import build_drafter, read_frozen_target
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.release import release
from tlt_workloads.trainer.start import find_start, shape_of_drafter, solve_start

DRAFT_LENGTH, ANSWER, TRAINED, ASKED = 3, 60, 24, 16


def prompts(count: int, *, seed: int) -> list[list[int]]:
    dice = random.Random(seed)
    return [[1, *(dice.randrange(3, VOCABULARY) for _ in range(5))] for _ in range(count)]


def answered(reference: Reference, prompt: list[int], layers: tuple[int, ...]) -> CapturedSequence:
    """What an engine would have captured of a greedy answer."""
    ids = [*prompt, *reference.greedy(prompt, tokens=ANSWER)]
    states = reference.hidden_states(ids[:-1], layers)
    return CapturedSequence(
        token_ids=torch.tensor(ids, dtype=torch.int32),
        hidden_states=states.to(torch.bfloat16),
        prompt_length=len(prompt),
        policy_version=0,
        finished=True,
    )


def test_a_plain_server_accepts_as_many_drafts_as_were_evaluated(
    tiny_model: Path, reference: Reference, tmp_path: Path
) -> None:
    config = TrainerConfig(target_model=str(tiny_model), draft_vocab_size=DRAFTED, draft_length=DRAFT_LENGTH)
    store, target, device = (
        open_store(f"file://{tmp_path}/store/team/job"),
        TargetFiles(tiny_model),
        torch.device("cpu"),
    )
    shape = shape_of_drafter(config, target)
    learnt = [answered(reference, prompt, shape.layer_ids) for prompt in prompts(TRAINED, seed=1)]
    counts = torch.bincount(torch.cat([item.token_ids for item in learnt]), minlength=VOCABULARY)
    start = find_start(
        store, config=config, target=target, shape=shape, token_counts=lambda: dict(enumerate(counts.tolist()))
    )
    frozen = read_frozen_target(target, start.tensors["t2d"])
    solved = solve_start(start, shape=shape, frozen=frozen, sequences=learnt, device=device, check=lambda: None)
    model = build_drafter(shape, solved.tensors, frozen, draft_length=DRAFT_LENGTH, device=device)
    asked = prompts(ASKED, seed=2)
    unseen = [answered(reference, prompt, shape.layer_ids) for prompt in asked]
    score = summarise(score_sequences(model, unseen, draft_length=DRAFT_LENGTH, check=lambda: None))
    assert score.accept_length > 1.3, "a drafter that guesses nothing proves nothing"
    release(
        store,
        model,
        job="team/job",
        shape=shape,
        progress=TrainingProgress(trained_tokens=solved.progress.trained_tokens),
        evaluation=Evaluation(
            accept_length=score.accept_length,
            standard_error=score.standard_error,
            parent_accept_length=None,
            sequences=ASKED,
            tokens=ASKED * ANSWER,
        ),
    )
    exported = export_drafter(store, tmp_path / "drafter", policy=str(tiny_model), speculative_tokens=DRAFT_LENGTH)
    flag, value = exported.serve_flag.split(" ", 1)
    flags = ["--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    with rollout_server(
        tiny_model,
        *flags,
        flag,
        value.strip("'"),
        folder=tmp_path,
        environment={"VLLM_PLUGINS": "", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_CPU_KVCACHE_SPACE": "1"},
        module=STOCK,
    ) as server:
        outputs = server.generate(asked, max_tokens=ANSWER)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
            figures = answer.read().decode()
    assert [output[:5] for output in outputs] == [
        item.token_ids[len(prompt) : len(prompt) + 5].tolist() for item, prompt in zip(unseen, asked, strict=True)
    ]
    drafts = _figure(figures, "vllm:spec_decode_num_drafts_total")
    accept_length = 1 + _figure(figures, "vllm:spec_decode_num_accepted_tokens_total") / drafts
    # A server counts steps, an evaluation positions: what is easily drafted is passed in fewer steps.
    assert accept_length == pytest.approx(exported.manifest.evaluation.accept_length, rel=0.25)


def _figure(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))
