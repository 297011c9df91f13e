"""Which recorded sequences to train on next: the rule, without any data in it.

TLT's rule (arXiv 2511.16665): what this step has finished so far, beside the longest answers of the step before, so
that the long tail is not missing while it is still being generated.  Here that is an order, not a cut: fresh tokens
before seen ones, the newest policy first, longer before shorter within older versions.  Versions more than
`max_policy_lag` behind are refused.  Every so many sequences one is held out and never trained on.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tlt_workloads.trainer.progress import ShardProgress

HELD_OUT_EVERY = 8  # one sequence in so many ...
FIRST_HELD_OUT = 5  # ... and one of so many that a pod records first


@dataclass(frozen=True, kw_only=True)
class RecordedSequence:
    """A sequence in the store, as far as the rule needs to know it."""

    shard: str
    index: int
    policy_version: int
    rows: int  # that can be trained on
    trained_rows: int = 0  # so far, all passes together

    @property
    def passes(self) -> int:
        """Whole passes over the sequence."""
        return self.trained_rows // self.rows

    @property
    def position(self) -> int:
        """Rows of the current pass that are done."""
        return self.trained_rows % self.rows

    @property
    def fresh_rows(self) -> int:
        """Rows that no pass has reached."""
        return max(0, self.rows - self.trained_rows)


def is_held_out(pod: str, number: int, index: int) -> bool:
    """Whether a sequence is kept for evaluation; the same answer in every process and after every restart.

    Counting, unlike drawing, gives the very first window something to be judged by: one of a pod's first
    `FIRST_HELD_OUT` sequences.  Pods begin at different places, so that a store to which many pods have written a
    sequence or two has some as well.

    Args:
        pod: that recorded it.
        number: of the shard among the pod's.
        index: of the sequence in the shard.
    """
    return (number + index) % HELD_OUT_EVERY == zlib.crc32(pod.encode()) % FIRST_HELD_OUT


def is_recent(policy_version: int, *, newest: int, max_policy_lag: int) -> bool:
    """Whether a version is near enough to the newest one to learn from."""
    return newest - policy_version <= max_policy_lag


def training_order(
    sequences: Iterable[RecordedSequence], *, max_policy_lag: int, max_passes: int, piece_rows: int
) -> list[RecordedSequence]:
    """What to train on, best first.

    Args:
        sequences: all that are known, held-out ones not among them.
        max_policy_lag: versions further behind the newest one are refused.
        max_passes: sequences seen so often are left out.
        piece_rows: sequences take turns after as many rows, so that a batch mixes them.
    """
    usable = [item for item in sequences if item.rows > 0]
    newest = max((item.policy_version for item in usable), default=0)
    fitting = [
        item
        for item in usable
        if is_recent(item.policy_version, newest=newest, max_policy_lag=max_policy_lag) and item.passes < max_passes
    ]

    def order(item: RecordedSequence) -> tuple[float, ...]:
        lag = newest - item.policy_version
        longest_first = -item.rows if lag else 0
        return (item.passes, lag, item.position // piece_rows, longest_first, _draw(item.shard, item.index))

    return sorted(fitting, key=order)


def fresh_tokens(
    shards: Mapping[str, tuple[int, int]], progress: Mapping[str, ShardProgress], *, max_policy_lag: int
) -> int:
    """Tokens in the store that are recent enough and that no pass has reached.

    Args:
        shards: policy version and tokens of each shard by path.
        progress: what has been made of the shards that were opened.
        max_policy_lag: as in `training_order`.
    """
    newest = max((version for version, _ in shards.values()), default=0)
    return sum(
        progress[path].fresh_rows if path in progress else tokens
        for path, (version, tokens) in shards.items()
        if is_recent(version, newest=newest, max_policy_lag=max_policy_lag)
    )


def _draw(shard: str, index: int) -> float:
    """A number in [0, 1) that belongs to a sequence."""
    digest = hashlib.sha256(f"{shard}#{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
