"""This pod's shards in the store, within a number of bytes: those of the oldest policy leave first."""

from __future__ import annotations

from tlt_workloads.shards import ShardEntry, shard_entries
from tlt_workloads.store import Store


class ShardRing:
    """What is there.  Only this pod's recorder writes into its folder, so one listing at the start is enough."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._entries = list(shard_entries(store, folder))

    @property
    def next_number(self) -> int:
        """Of the next shard."""
        return max((entry.number for entry in self._entries), default=-1) + 1

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(entry.size for entry in self._entries)

    def add(self, entry: ShardEntry) -> None:
        """A shard that was written."""
        self._entries.append(entry)

    def trim(self, max_bytes: int) -> None:
        """Removes shards until the rest fits; the newest one always stays.

        Raises:
            OSError: as the store does; what was not removed is tried again next time.
        """
        while self.size > max_bytes and self._remove_oldest():
            pass

    def make_room(self, needed: int) -> bool:
        """Gives up shards of `needed` bytes or more for a store that is full; False when there are none to give."""
        wanted = self.size - needed
        while self.size > wanted:
            if not self._remove_oldest():
                return False
        return True

    def _remove_oldest(self) -> bool:
        if len(self._entries) < 2:
            return False
        newest = max(self._entries, key=lambda entry: entry.number)
        rest = [entry for entry in self._entries if entry is not newest]
        oldest = min(rest, key=lambda entry: (entry.policy_version, entry.number))
        self._store.remove(oldest.path)
        self._entries.remove(oldest)
        return True
