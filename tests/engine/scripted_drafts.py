"""Runs the engine in this process with draft plans from a list, and prints what was drafted and said as JSON.

Usage: scripted_drafts.py MODEL DRAFTER PLANS, where PLANS is like "Off*40,Learned3*80,NGram2*10"; the last one goes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tests.support.programs import print_answer
from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.plans import OFF, DraftPlan
from tlt_workloads.rollout.serve import speculative_config

TOKENS = 90
PROMPTS = [[1, 5, 9, 13, 5, 9, 13, 5], [3, 4], [7] * 5, [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]


def plans(text: str) -> list[DraftPlan]:
    """A plan for each step."""
    found: list[DraftPlan] = []
    for part in text.split(","):
        name, _, times = part.partition("*")
        plan = OFF if name == "Off" else DraftPlan(int(name[-1]), DraftSource(name[:-1]))
        found += [plan] * int(times)
    return found


class Script:
    """A table of draft lengths that goes by steps instead of batch sizes."""

    def __init__(self, steps: list[DraftPlan]) -> None:
        self._steps = iter(steps)
        self._last = steps[-1]

    def __getitem__(self, _batch: int) -> DraftPlan:
        return next(self._steps, self._last)


def run(model: Path, drafter: Path, script: list[DraftPlan]) -> dict[str, Any]:
    """Outputs, drafts by request and length of its text, and how often the drafter computed."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=3,  # fewer than prompts, so that one comes in the middle
        skip_tokenizer_init=True,
        speculative_config=speculative_config(drafter, 3),
    )
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    wait_for_ngrams(runner)
    core.scheduler.dynamic_sd_lookup = Script(script)
    drafts: dict[str, list[int]] = {}
    take, passes = core.scheduler.update_draft_token_ids, [0]

    def update(made: Any) -> None:
        take(made)
        for name, tokens in zip(made.req_ids, made.draft_token_ids, strict=True):
            request = core.scheduler.requests.get(name)
            if request is not None and tokens:
                drafts[f"{int(name.split('-')[0])} {request.num_tokens}"] = [int(token) for token in tokens]

    core.scheduler.update_draft_token_ids = update
    forward = runner.drafter.model.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        passes[0] += 1
        return forward(*arguments, **named)

    runner.drafter.model.forward = counted
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, detokenize=False, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], sampling, use_tqdm=False)
    return {
        "outputs": [list(output.outputs[0].token_ids) for output in outputs],
        "drafts": drafts,
        "passes": passes[0],
    }


def wait_for_ngrams(runner: Any) -> None:
    """Returns when the n-gram proposer is compiled."""
    from tests.support.eventually import eventually
    from tlt_workloads.rollout.counters import inherited_page

    page = inherited_page()
    assert page is not None
    eventually(lambda: page.read("ngram_ready") or None, deadline=120, reason="n-grams can be looked up")


if __name__ == "__main__":
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_USE_V2_MODEL_RUNNER="0",
        VLLM_PLUGINS="tlt",
        HF_HUB_OFFLINE="1",
    )
    print_answer(run(Path(sys.argv[1]), Path(sys.argv[2]), plans(sys.argv[3])))
