"""Work-arounds of vLLM 0.32: when one of these fails, upstream has fixed it and the work-around can go."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.conftest import PROMPTS, Reference
from tests.engine.without_workaround import run
from tests.support.tiny_model import perturbed


def test_a_tied_head_still_stays_behind_without_help(tmp_path: Path, tiny_model: Path) -> None:
    weights = tmp_path / "team" / "job" / "policy.safetensors"
    weights.parent.mkdir(parents=True)
    old = load_file(tiny_model / "model.safetensors")
    new = old | perturbed({"model.embed_tokens.weight": old["model.embed_tokens.weight"]}, seed=3, amount=0.2)
    save_file(new, weights)
    outputs = run("head", str(tiny_model), str(weights), TLT_STORE_URL=str(tmp_path), TLT_JOB="team/job")
    fresh = Reference(tiny_model, weights=weights)
    right = [fresh.greedy(prompt, tokens=32) for prompt in PROMPTS]
    assert outputs != right, "vLLM refreshes tied heads now: remove compat.refresh_tied_head"


def test_the_sampler_still_loses_its_temperatures_without_help() -> None:
    written = run("expand")
    assert written != pytest.approx([0.7, 0.7, 1.0, 1.0, 1.3]), "vLLM fixed #55005: remove compat.fix_expand_kernel"
