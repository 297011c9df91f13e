"""Speculation changes nothing but the speed."""

from __future__ import annotations

import itertools
import math

import torch

from tests.engine.conftest import PROMPTS, Reference
from tests.support.rollout_server import RolloutServer
from tests.support.tiny_model import VOCABULARY

SAMPLES = 4096
TEMPERATURE = 1.3


def test_greedy_outputs_are_those_of_the_model(server: RolloutServer, reference: Reference) -> None:
    before = server.state()["acceptance"]["drafts"]
    drafted = server.generate(PROMPTS, max_tokens=48)
    assert server.state()["acceptance"]["drafts"] > before
    server.call("POST", "/tlt/v1/speculation", {"mode": "Off", "draftLength": 0})
    plain = server.generate(PROMPTS, max_tokens=48)
    assert drafted == plain
    assert drafted == [reference.greedy(prompt, tokens=48) for prompt in PROMPTS]


def test_sampled_tokens_have_the_distribution_of_the_model(server: RolloutServer, reference: Reference) -> None:
    """A chi-square test of the second and third token, which were drafted and verified."""
    prompt = PROMPTS[0]
    before = server.state()["acceptance"]
    samples: list[list[int]] = []
    for _ in range(
        SAMPLES // 512
    ):  # without a seed: of n completions each gets the next one, so that two calls overlap
        samples += server.generate([prompt], max_tokens=3, temperature=TEMPERATURE, n=512)
    after = server.state()["acceptance"]
    assert after["draftTokens"] - before["draftTokens"] > SAMPLES
    assert after["acceptedTokens"] > before["acceptedTokens"]
    first = reference.probabilities([prompt], temperature=TEMPERATURE)[0]
    pairs = reference.probabilities([[*prompt, token] for token in range(VOCABULARY)], temperature=TEMPERATURE)
    triples = reference.probabilities(
        [[*prompt, *tokens] for tokens in itertools.product(range(VOCABULARY), repeat=2)], temperature=TEMPERATURE
    ).view(VOCABULARY, VOCABULARY, VOCABULARY)
    joint = first[:, None] * pairs
    assert_fits(samples, index=1, expected=joint.sum(0))
    assert_fits(samples, index=2, expected=torch.einsum("ij,ijk->k", joint, triples))


def assert_fits(samples: list[list[int]], *, index: int, expected: torch.Tensor) -> None:
    """Pearson's chi-square, rare tokens pooled; fails by chance once in ten million runs."""
    counts = torch.bincount(torch.tensor([sample[index] for sample in samples]), minlength=VOCABULARY).double()
    wanted = expected.double() * len(samples)
    common = wanted >= 8
    counts = torch.cat([counts[common], counts[~common].sum(0, keepdim=True)])
    wanted = torch.cat([wanted[common], wanted[~common].sum(0, keepdim=True)])
    statistic = float(((counts - wanted) ** 2 / wanted.clamp(min=1e-9)).sum())
    freedom = len(counts) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 5.2 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson and Hilferty
    assert statistic < limit, f"token {index}: chi-square {statistic:.1f} of {freedom} degrees, limit {limit:.1f}"
