"""Totals on one shared page: the engine's processes write them, the API process reads them at no cost.

A remote call per reading would have to wait for the engine's step; a mapped file does not.
"""

from __future__ import annotations

import dataclasses
import enum
import mmap
import os
import struct
import tempfile
import threading
from pathlib import Path

from tlt_workloads.contract import CaptureCounters, CaptureDrops, Drafting, DraftSource
from tlt_workloads.rollout.plans import DraftPlan

PAGE_VARIABLE = "TLT_COUNTER_PAGE"  # path of the page, inherited by vLLM's processes
LONGEST_COUNTED = 16  # draft length; longer ones count as this


class Drop(enum.Enum):
    """Why tokens were not recorded; the values are the fields of `CaptureDrops`, which says what they mean."""

    BEHIND = "behind"
    STEP_BUDGET = "step_budget"
    MEMORY = "memory"
    STORE_FULL = "store_full"
    STORE_READ_ONLY = "store_read_only"
    STORE_DENIED = "store_denied"
    STORE_GONE = "store_gone"
    STORE_FAILED = "store_failed"

    @property
    def total(self) -> str:
        """Name of the total that counts it."""
        return f"dropped_{self.value}"


_CAPTURE = ("tokens", "bytes", "sequences", "shards", "steps", "seconds", *(drop.total for drop in Drop))
_LENGTHS = tuple(
    f"{source.value}_{count}_{length}"
    for source in DraftSource
    for count in ("drafts", "draft_tokens", "accepted")
    for length in range(1, LONGEST_COUNTED + 1)
)
_GAUGES = ("last_batch", "last_length", "last_is_ngram", "ngram_ready")
_NUMBER = struct.Struct("<d")  # exact for integers up to 2**53; one aligned store, never torn
_OFFSETS = {name: index * _NUMBER.size for index, name in enumerate((*_CAPTURE, *_LENGTHS, *_GAUGES))}
_SIZE = mmap.PAGESIZE
assert len(_OFFSETS) * _NUMBER.size <= _SIZE


class CounterPage:
    """Named totals in a mapped file.  Each field has one process that writes it, with any of its threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, _SIZE)
            self._page = mmap.mmap(handle, _SIZE)
        finally:
            os.close(handle)

    def add(self, field: str, amount: float) -> None:
        """Adds to a total."""
        with self._lock:
            self.put(field, self.read(field) + amount)

    def put(self, field: str, value: float) -> None:
        """Sets a gauge."""
        _NUMBER.pack_into(self._page, _OFFSETS[field], value)

    def read(self, field: str) -> float:
        """A total."""
        value: float = _NUMBER.unpack_from(self._page, _OFFSETS[field])[0]
        return value

    def capture(self) -> CaptureCounters:
        """The capture's totals as the contract names them."""
        drops = CaptureDrops(**{drop.value: int(self.read(drop.total)) for drop in Drop})
        return CaptureCounters(
            tokens=int(self.read("tokens")),
            bytes=int(self.read("bytes")),
            dropped_tokens=sum(dataclasses.astuple(drops)),
            sequences=int(self.read("sequences")),
            shards=int(self.read("shards")),
            steps=int(self.read("steps")),
            seconds=self.read("seconds"),
            drops=drops,
        )

    def note_drafts(self, plan: DraftPlan, *, drafts: int, draft_tokens: int, accepted: int) -> None:
        """Drafts of one step that were verified."""
        length = min(int(plan), LONGEST_COUNTED)
        for count, amount in (("drafts", drafts), ("draft_tokens", draft_tokens), ("accepted", accepted)):
            self.add(f"{plan.source.value}_{count}_{length}", amount)

    def drafts(self, source: DraftSource, length: int) -> tuple[int, int, int]:
        """Drafts, drafted tokens and accepted tokens of one draft length."""
        drafts, tokens, accepted = (
            int(self.read(f"{source.value}_{count}_{length}")) for count in ("drafts", "draft_tokens", "accepted")
        )
        return drafts, tokens, accepted

    def note_plan(self, plan: DraftPlan, *, batch: int) -> None:
        """What was decided for the step that begins."""
        self.put("last_batch", batch)
        self.put("last_length", int(plan))
        self.put("last_is_ngram", plan.source is DraftSource.NGRAM)

    def drafting(self) -> Drafting | None:
        """What was decided last; None before the first step."""
        batch = int(self.read("last_batch"))
        if not batch:
            return None
        source = DraftSource.NGRAM if self.read("last_is_ngram") else DraftSource.LEARNED
        return Drafting(batch=batch, source=source, draft_length=int(self.read("last_length")))


def create_page() -> CounterPage:
    """Makes this server's page and names it in the environment, before vLLM starts its other processes."""
    handle, name = tempfile.mkstemp(prefix="tlt-counters-")
    os.close(handle)
    os.environ[PAGE_VARIABLE] = name
    return CounterPage(Path(name))


def inherited_page() -> CounterPage | None:
    """The page that the API process made, None outside a server."""
    name = os.environ.get(PAGE_VARIABLE)
    return CounterPage(Path(name)) if name else None
