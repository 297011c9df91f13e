"""What n-grams are judged by is what vLLM's proposer drafts."""

from __future__ import annotations

import itertools
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens as proposed_tokens

from tlt_workloads.rollout.ngram_trials import NgramTrial
from tlt_workloads.rollout.ngrams import LONGEST, SHORTEST

DRAFT = 3
NO_LIMIT = 1 << 20


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), words=st.integers(2, 8))
def test_what_is_tried_is_what_the_engine_would_draft(seed: int, words: int) -> None:
    dice = random.Random(seed)
    tokens = [dice.randrange(words) for _ in range(60)]
    expected, position = [], 1
    while True:
        known = np.array(tokens[:position], dtype=np.int32)
        draft = proposed_tokens(known, SHORTEST, LONGEST, NO_LIMIT, DRAFT).tolist()
        following = tokens[position : position + len(draft)]
        pairs = zip(draft, following, strict=False)
        count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if position + count >= len(tokens):
            break  # the rest of this draft is not decided yet
        expected.append(count)
        position += count + 1
    trial, found = NgramTrial(DRAFT), []
    for end in range(1, len(tokens) + 1):
        found += trial.read(tokens[:end])
    assert found == expected
