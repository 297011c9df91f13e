"""Runs the engine in this process with one work-around taken away, and prints what comes out of it as JSON.

Usage: without_workaround.py head MODEL WEIGHTS | expand
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch


def head(model: Path, weights: Path) -> list[list[int]]:
    """Greedy outputs after a policy update that leaves a tied output head alone."""
    from vllm import LLM, SamplingParams

    from tests.engine.conftest import PROMPTS
    from tlt_workloads.rollout import weights as transfer

    transfer.refresh_tied_head = lambda _: None  # type: ignore[assignment]
    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        skip_tokenizer_init=True,
        weight_transfer_config={"backend": "tlt"},
    )
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


if __name__ == "__main__":
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_PLUGINS="tlt",
        HF_HUB_OFFLINE="1",
    )
    answer: object = head(Path(sys.argv[2]), Path(sys.argv[3])) if sys.argv[1] == "head" else expand()
    print(f"ANSWER {json.dumps(answer)}", flush=True)
