"""What n-grams would have drafted, and how much of it came true, without drafting it.

How well n-grams do is a matter of the answer: one that repeats itself is foretold for a hundred tokens, the next one
not at all.  To find out by drafting costs steps, of which a rollout's tail has few.  Instead, what the lookup would
have proposed is compared with the tokens that were generated anyway.  Sampling with drafts keeps the distribution of
the tokens, so that a proposed token comes up as often without having been drafted as it is accepted.

The lookup is that of vLLM's n-gram proposer: after the longest run of the newest tokens that occurred before, where it
occurred first.  It keeps an index, since it looks at every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

from tlt_workloads.rollout.ngrams import LONGEST, SHORTEST

WATCHED = 16  # requests at most, which tell of the others
STRIDE = 256  # tokens of a prompt that are indexed in a step
MOST_TOKENS = 32_768  # of a request that is watched, whose index takes about 0.5 KiB for each


class NgramTrial:
    """One request.

    Args:
        longest: tokens of a draft.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the first occurrence of an n-gram ended
        self._draft: Sequence[int] | None = None
        self._matched = 0

    def read(self, tokens: Sequence[int]) -> Iterator[int]:
        """Goes on to the end of these tokens, prompt included, or some way in a long prompt.

        Yields:
            How many tokens of each draft came true, 0 where nothing was found to draft.
        """
        end = min(len(tokens), len(self._tokens) + STRIDE)
        is_caught_up = end == len(tokens)
        for position in range(len(self._tokens), end):
            token = tokens[position]
            if self._draft is not None and self._matched < len(self._draft) and token == self._draft[self._matched]:
                self._matched += 1
                self._index(token)
                continue
            if self._draft is not None:
                yield self._matched
            self._index(token)
            if self._draft is not None or (is_caught_up and position == end - 1):
                self._draft, self._matched = self._lookup(), 0

    def _index(self, token: int) -> None:
        self._tokens.append(token)
        for length in range(SHORTEST, LONGEST + 1):
            if len(self._tokens) >= length:
                self._after.setdefault(tuple(self._tokens[-length:]), len(self._tokens))

    def _lookup(self) -> Sequence[int]:
        for length in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            begin = self._after[tuple(self._tokens[-length:])]
            if begin < len(self._tokens):
                return self._tokens[begin : begin + self._longest]
        return ()


class NgramTrials:
    """Some of the requests that run.

    Args:
        longest: tokens of a draft.
        tokens_of: all tokens of a request so far; None when it is over.
    """

    def __init__(self, longest: int, *, tokens_of: Callable[[str], Sequence[int] | None]) -> None:
        self._longest = longest
        self._tokens_of = tokens_of
        self._trials: dict[str, NgramTrial] = {}

    def follow(self, running: Set[str]) -> list[tuple[str, int]]:
        """After a step: which requests' drafts were decided by its tokens, and how many tokens of each came true."""
        self._trials = {name: trial for name, trial in self._trials.items() if name in running}
        for name in running:
            if len(self._trials) >= WATCHED:
                break
            self._trials.setdefault(name, NgramTrial(self._longest))
        found: list[tuple[str, int]] = []
        for name, trial in self._trials.items():
            tokens = self._tokens_of(name)
            if tokens is not None and len(tokens) <= MOST_TOKENS:
                found += [(name, count) for count in trial.read(tokens)]
        return found
