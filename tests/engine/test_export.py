"""vLLM without our plugin serves an exported drafter, and accepts of its drafts what its evaluation has promised."""

from __future__ import annotations

import urllib.request
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    from speculators.models.eagle3 import Eagle3DraftModel

from tests.engine.conftest import PROMPTS, Reference
from tests.support.rollout_server import STOCK, rollout_server
from tests.support.tiny_model import VOCABULARY
from tlt_workloads.contract import Evaluation, TrainerConfig
from tlt_workloads.drafter import TargetFiles
from tlt_workloads.shards import CapturedSequence
from tlt_workloads.store import open_store
from tlt_workloads.trainer.data import TrainingBatch
from tlt_workloads.trainer.evaluate import score_sequences, summarise
from tlt_workloads.trainer.export import export_drafter
from tlt_workloads.trainer.learner import Learner, OptimiserSettings
from tlt_workloads.trainer.model import Objective, build_drafter, read_frozen_target
from tlt_workloads.trainer.packing import Piece, pack, usable_rows
from tlt_workloads.trainer.progress import TrainingProgress
from tlt_workloads.trainer.release import release
from tlt_workloads.trainer.start import find_start, shape_of_drafter

DRAFT_LENGTH, DRAFT_VOCABULARY, ANSWER, STEPS = 3, 48, 60, 250


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
        temperature=0.0,
    )


def learn_by_heart(model: Eagle3DraftModel, answers: list[CapturedSequence]) -> None:
    """A random model's language has nothing that could be learnt in another way."""
    pieces = [Piece(item, (rows := usable_rows(item)).start, rows.stop) for item in answers]
    batch = TrainingBatch(pack(pieces, draft_length=DRAFT_LENGTH), {}, (0, 0))
    settings = OptimiserSettings(learning_rate=3e-3, step_tokens=1)
    learner = Learner(model, objective=Objective(draft_length=DRAFT_LENGTH), settings=settings)
    for _ in range(STEPS):
        learner.micro_step(batch)
        learner.step_if_due()


def test_a_plain_server_accepts_as_many_drafts_as_were_evaluated(
    tiny_model: Path, reference: Reference, tmp_path: Path
) -> None:
    config = TrainerConfig(target_model=str(tiny_model), draft_vocab_size=DRAFT_VOCABULARY, draft_length=DRAFT_LENGTH)
    store, target, device = (
        open_store(f"file://{tmp_path}/store/team/job"),
        TargetFiles(tiny_model),
        torch.device("cpu"),
    )
    shape = shape_of_drafter(config, target)
    answers = [answered(reference, prompt, shape.layer_ids) for prompt in PROMPTS]
    counts = torch.bincount(torch.cat([item.token_ids for item in answers]), minlength=VOCABULARY)
    start = find_start(
        store, config=config, target=target, shape=shape, token_weights=lambda: dict(enumerate(counts.tolist()))
    )
    frozen = read_frozen_target(target, start.tensors["t2d"])
    model = build_drafter(shape, start.tensors, frozen, draft_length=DRAFT_LENGTH, device=device)
    learn_by_heart(model, answers)
    score = summarise(score_sequences(model, answers, draft_length=DRAFT_LENGTH, check=lambda: None))
    assert score.accept_length > 1.5, "a drafter that guesses nothing proves nothing"
    release(
        store,
        model,
        job="team/job",
        shape=shape,
        progress=TrainingProgress(trained_tokens=STEPS * len(PROMPTS) * ANSWER),
        evaluation=Evaluation(
            accept_length=score.accept_length,
            standard_error=score.standard_error,
            parent_accept_length=None,
            sequences=len(PROMPTS),
            tokens=len(PROMPTS) * ANSWER,
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
        outputs = server.generate(PROMPTS, max_tokens=ANSWER)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
            figures = answer.read().decode()
    assert outputs == [item.token_ids[len(prompt) :].tolist() for item, prompt in zip(answers, PROMPTS, strict=True)]
    drafts = _figure(figures, "vllm:spec_decode_num_drafts_total")
    accept_length = 1 + _figure(figures, "vllm:spec_decode_num_accepted_tokens_total") / drafts
    # A server counts steps, an evaluation positions: what is easily drafted is passed in fewer steps.
    assert accept_length == pytest.approx(exported.manifest.evaluation.accept_length, rel=0.25)


def _figure(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))
