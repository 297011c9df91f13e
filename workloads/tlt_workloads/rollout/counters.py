"""The capture's totals on one shared page: the engine's worker writes them, the API process reads them at no cost.

A remote call per reading would have to wait for the engine's step; a mapped file does not.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from pathlib import Path

from tlt_workloads.contract import CaptureCounters

PAGE_VARIABLE = "TLT_COUNTER_PAGE"  # path of the page, inherited by vLLM's processes
_FIELDS = ("tokens", "bytes", "dropped_tokens", "sequences", "shards", "steps", "seconds")
_NUMBER = struct.Struct("<d")  # exact for integers up to 2**53; one aligned store, never torn
_SIZE = mmap.PAGESIZE


class CounterPage:
    """Named totals in a mapped file.  One writer per field."""

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, _SIZE)
            self._page = mmap.mmap(handle, _SIZE)
        finally:
            os.close(handle)

    def add(self, field: str, amount: float) -> None:
        """Adds to a total."""
        offset = _FIELDS.index(field) * _NUMBER.size
        _NUMBER.pack_into(self._page, offset, _NUMBER.unpack_from(self._page, offset)[0] + amount)

    def read(self, field: str) -> float:
        """A total."""
        value: float = _NUMBER.unpack_from(self._page, _FIELDS.index(field) * _NUMBER.size)[0]
        return value

    def capture(self) -> CaptureCounters:
        """All totals as the contract names them."""
        return CaptureCounters(
            tokens=int(self.read("tokens")),
            bytes=int(self.read("bytes")),
            dropped_tokens=int(self.read("dropped_tokens")),
            sequences=int(self.read("sequences")),
            shards=int(self.read("shards")),
            seconds=self.read("seconds"),
        )


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
