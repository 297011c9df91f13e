"""Runs the engine in a process of its own, with or without one of the work-arounds, and prints what comes of it.

Usage: without_workaround.py head MODEL WEIGHTS | expand | sample (plain | broken | mended) MODEL
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.support.programs import answer_of, print_answer

SAMPLED_PROMPTS = ((1, 5, 9, 13), (1, 6, 9, 13), (3, 50, 20), (1, 40, 41, 42, 43, 44))
SAMPLED_TOKENS = 8  # a drafting engine verifies all but the first
SAMPLES = 1024  # per prompt and side
TEMPERATURE = 1.3


def run(*arguments: str, **environment: str) -> Any:
    """What this program prints when it is called so."""
    return answer_of(__file__, *arguments, **environment)


def head(model: Path, weights: Path) -> list[list[int]]:
    """Greedy outputs after a policy update that leaves a tied output head alone."""
    from vllm import SamplingParams

    from tests.engine.conftest import PROMPTS
    from tlt_workloads.rollout import weights as transfer

    transfer.refresh_tied_head = lambda _: None  # type: ignore[assignment]
    llm = engine(model, weight_transfer_config={"backend": "tlt"})
    llm.collective_rpc("start_weight_update")
    llm.collective_rpc("update_weights", args=({"path": str(weights)},))
    llm.collective_rpc("finish_weight_update")
    sampling = SamplingParams(temperature=0, max_tokens=32, detokenize=False, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def expand() -> list[float]:
    """What vLLM's own replacement of `expand_kernel` writes for three temperatures."""
    import vllm.platforms
    from vllm.utils import cpu_triton_utils

    vllm.platforms.current_platform.import_kernels()
    output = torch.full((5,), -1.0)
    cpu_triton_utils._expand_kernel_impl(
        output, torch.tensor([0.7, 0.0, 1.3]), torch.tensor([2, 4, 5], dtype=torch.int32), 0, 1, 32
    )
    return output.tolist()


def sample(kind: str, model: Path) -> dict[int, list[list[int]]]:
    """Sampled sequences by prompt: from stock vLLM, or drafting with vLLM's own kernel or with ours."""
    from vllm import SamplingParams

    if kind == "plain":
        llm = engine(model, seed=11)
    else:
        if kind == "broken":
            from tlt_workloads.rollout import compat

            compat.fix_expand_kernel = lambda: None
        from tlt_workloads.drafter import write_initial_drafter
        from tlt_workloads.rollout.serve import speculative_config

        drafter = Path(tempfile.mkdtemp()) / "drafter"
        write_initial_drafter(model, drafter, draft_vocab_size=32)
        llm = engine(
            model,
            seed=12 if kind == "broken" else 13,
            speculative_config=speculative_config(drafter, 3, sampling="greedy"),
        )
    sampling = SamplingParams(
        temperature=TEMPERATURE, max_tokens=SAMPLED_TOKENS, n=SAMPLES, detokenize=False, ignore_eos=True
    )
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in SAMPLED_PROMPTS]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return {number: [list(choice.token_ids) for choice in output.outputs] for number, output in enumerate(outputs)}


def engine(model: Path, **options: Any) -> Any:
    """A small engine in this process."""
    from vllm import LLM

    return LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
        skip_tokenizer_init=True,
        **options,
    )


def main() -> None:
    """Prints the answer as JSON."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_USE_V2_MODEL_RUNNER="0",
        VLLM_PLUGINS="" if sys.argv[1:3] == ["sample", "plain"] else "tlt",
        HF_HUB_OFFLINE="1",
    )
    answer: object
    match sys.argv[1:]:
        case ["head", model, weights]:
            answer = head(Path(model), Path(weights))
        case ["sample", kind, model]:
            answer = sample(kind, Path(model))
        case _:
            answer = expand()
    print_answer(answer)


if __name__ == "__main__":
    main()
