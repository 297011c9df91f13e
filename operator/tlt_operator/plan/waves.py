"""How a revision comes into many pods: in waves that grow with what has gone well, and never all at once.

A thousand pods that fetched a drafter in the same second would each get a thousandth of what the store can give.  So
the first pod loads alone, then as many at once as have it already, up to `LARGEST_WAVE`; each begins a little later
than it could, by a time of its own.  A load that takes long no longer counts, and one that failed waits for its next
try outside: neither keeps others from their turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tlt_operator.api.revision import Revision
from tlt_operator.plan.actions import LoadDrafter
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_workloads.contract import DrafterLoad

LARGEST_WAVE = 32  # loads at one time
SLOW_AFTER = 10.0  # seconds after which a load no longer takes anybody's turn
SPREAD = 0.05  # seconds, for each load of the wave, over which a wave is spread


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A pod that lacks the revision that it should have."""

    view: RolloutView
    revision: Revision


def next_wave(missing: Sequence[Missing], snapshot: Snapshot, *, loaded: int, most: int = 0) -> tuple[LoadDrafter, ...]:
    """The loads to begin now.

    Args:
        missing: in the order in which they should have their turn.
        loaded: pods that have what they should have.
        most: loads at one time, 0 for no bound but the waves' own.
    """
    width = max(1, min(loaded, LARGEST_WAVE, most or LARGEST_WAVE))
    begun = [item.view.loading_since for item in missing if item.view.loading_since is not None]
    free = width - sum(snapshot.now - since < SLOW_AFTER for since in begun)
    ready = [item for item in missing if item.view.loading_since is None and not item.view.load_held_back]
    return tuple(_load(item, width) for item in ready[: max(0, free)])


def _load(item: Missing, width: int) -> LoadDrafter:
    revision, uid = item.revision, item.view.pod.uid
    return LoadDrafter(
        rollout_uid=uid,
        load=DrafterLoad(revision=revision.name, url=revision.url, sha256=revision.digest),
        delay=_share(f"{uid}/{revision.name}") * SPREAD * width if width > 1 else 0.0,
    )


def _share(text: str) -> float:
    """Between 0 and 1, always the same for a text and as good as random over many."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
