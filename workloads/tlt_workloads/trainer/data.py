"""From shards in the store to batches: what is recorded, what is held in memory, what has been used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tlt_workloads.shards import (
    CapturedSequence,
    ShardEntry,
    ShardError,
    ShardMetadata,
    job_shards,
    read_shard,
    read_shard_summary,
)
from tlt_workloads.store import Store
from tlt_workloads.trainer.buffer import RecordedSequence, is_held_out, is_recent, training_order
from tlt_workloads.trainer.packing import PackedBatch, Piece, pack, usable_rows
from tlt_workloads.trainer.progress import ShardProgress
from tlt_workloads.trainer.team.split import Share, sequence_key

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How data becomes batches."""

    max_policy_lag: int
    draft_length: int
    max_passes: int = 4
    piece_rows: int = 128  # rows of one sequence in a batch
    prompt_rows: int = 16  # of the prompt's end, for the drafter's attention to look at
    memory_bytes: int = 512 << 20  # of sequences held at once


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """A packed batch and the rows of each sequence that it uses."""

    packed: PackedBatch
    used: Mapping[tuple[str, int], int]
    policy_versions: tuple[int, int]


class Selection:
    """Chosen sequences, read anew whenever they are gone through, so that they need not fit into memory at once.

    Those that cannot be read any more are left out.
    """

    def __init__(self, read: Callable[[str, int], CapturedSequence | None], chosen: Sequence[tuple[str, int]]) -> None:
        self._read = read
        self._chosen = chosen

    def __iter__(self) -> Iterator[CapturedSequence]:
        for path, index in self._chosen:
            if sequence := self._read(path, index):
                yield sequence


class Feed:
    """Batches in the order of the buffer's rule.  `refresh` looks into the store; `next_batch` does not."""

    def __init__(
        self, store: Store, *, metadata: ShardMetadata, settings: DataSettings, progress: Mapping[str, ShardProgress]
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._settings = settings
        self._progress = dict(progress)
        self._known: dict[tuple[str, int], RecordedSequence] = {}
        self._pending: Counter[tuple[str, int]] = Counter()  # rows in batches whose gradient is not applied yet
        self._held_out: dict[tuple[str, int], RecordedSequence] = {}
        self._loaded: dict[str, list[CapturedSequence]] = {}
        self._refused: set[str] = set()
        self._keys: dict[int, tuple[str, int]] = {}  # of what is known and trained on
        self._elsewhere: Counter[int] = Counter()  # rows that others trained of what is not known here yet
        self.share = Share()  # what is this replica's to train on

    @property
    def skipped_shards(self) -> frozenset[str]:
        """Paths of the shards that could not be read."""
        return frozenset(self._refused)

    @property
    def held_bytes(self) -> int:
        """Bytes of the sequences that are in memory."""
        return sum(_bytes(sequences) for sequences in self._loaded.values())

    def refresh(self) -> None:
        """Learns of new shards and forgets those that are gone or too old."""
        entries = {entry.path: entry for entry in job_shards(self._store)}
        newest = max((entry.policy_version for entry in entries.values()), default=0)
        recent = {
            path: entry
            for path, entry in entries.items()
            if is_recent(entry.policy_version, newest=newest, max_policy_lag=self._settings.max_policy_lag)
        }
        known = {path for path, _ in [*self._known, *self._held_out]}
        for path in known - recent.keys():
            self._forget(path)
        self._progress = {path: item for path, item in self._progress.items() if path in recent}
        for path in sorted(recent.keys() - known - self._refused):
            self._learn(recent[path])

    def next_batch(self, rows: int) -> TrainingBatch | None:
        """The next batch of at most `rows` rows; None when all that fits the rule has been used up.

        Rows of batches that are not marked as trained yet count as used.
        """
        pieces, used, versions, left = [], {}, [], rows
        for item in self._order(self.share):
            if left < self._settings.draft_length + 1:
                break
            piece = self._cut(item, left)
            if piece is None:
                continue
            pieces.append(piece[0])
            used[item.shard, item.index] = piece[1]
            versions.append(item.policy_version)
            left -= len(piece[0])
        if not pieces:
            return None
        self._pending.update(used)
        packed = pack(pieces, draft_length=self._settings.draft_length)
        return TrainingBatch(packed, used, (min(versions), max(versions)))

    def mark_trained(self, batches: Iterable[TrainingBatch]) -> None:
        """Counts the rows of batches whose gradient has been applied."""
        for batch in batches:
            for key, rows in batch.used.items():
                if key in self._known:
                    self._pending[key] -= rows
                    item = self._known[key]
                    self._known[key] = replace(item, trained_rows=item.trained_rows + rows)

    def mark_elsewhere(self, used: Iterable[tuple[int, int]]) -> None:
        """Counts rows, by sequence key, that other replicas have trained."""
        for key, rows in used:
            name = self._keys.get(key)
            if name is None:
                self._elsewhere[key] += rows
            else:
                item = self._known[name]
                self._known[name] = replace(item, trained_rows=item.trained_rows + rows)

    def adopt(self, progress: Mapping[str, ShardProgress]) -> None:
        """Takes another replica's word for what has been made of every shard."""
        self._progress, self._elsewhere = dict(progress), Counter()
        self._pending.clear()  # of gradients for weights that are gone
        for (path, index), item in self._known.items():
            done = progress[path].trained_rows.get(index, 0) if path in progress else 0
            self._known[path, index] = replace(item, trained_rows=done)

    def progress(self) -> dict[str, ShardProgress]:
        """What has been made of each shard, for the checkpoint."""
        trained: dict[str, dict[int, RecordedSequence]] = {path: {} for path, _ in [*self._known, *self._held_out]}
        for (path, index), item in self._known.items():
            trained[path][index] = item
        return {
            path: ShardProgress(
                trained_rows={index: item.trained_rows for index, item in items.items()},
                fresh_rows=sum(item.fresh_rows for item in items.values()),
            )
            for path, items in trained.items()
        }

    def held_out(self, *, tokens: int) -> list[CapturedSequence]:
        """Held-out sequences of at least so many tokens together, the same ones for as long as they are there."""
        chosen, count = [], 0
        for (path, index), item in sorted(self._held_out.items()):
            if count >= tokens:
                break
            if sequence := self._sequence(path, index):
                chosen.append(_alone(sequence))
                count += item.rows
        return chosen

    @property
    def known_rows(self) -> int:
        """Rows that may be learnt from, whether or not that was done."""
        return sum(item.rows for item in self._known.values())

    def freshest(self, *, tokens: int) -> Selection:
        """Sequences to train on, those that come next by the buffer's rule, of about so many tokens together.

        Whichever replica's they are.
        """
        chosen, count = [], 0
        for item in self._order(Share()):
            if count >= tokens:
                break
            chosen.append((item.shard, item.index))
            count += item.rows
        return Selection(self._sequence, sorted(chosen))

    def _order(self, share: Share) -> list[RecordedSequence]:
        return training_order(
            (
                replace(item, trained_rows=item.trained_rows + self._pending[name])
                for key, name in self._keys.items()
                if share.owns(key)
                for item in [self._known[name]]
            ),
            max_policy_lag=self._settings.max_policy_lag,
            max_passes=self._settings.max_passes,
            piece_rows=self._settings.piece_rows,
        )

    def _cut(self, item: RecordedSequence, left: int) -> tuple[Piece, int] | None:
        """The next piece of a sequence and how many of its rows are new in this pass."""
        sequence = self._sequence(item.shard, item.index)
        if sequence is None:
            return None
        first = self._trained_range(sequence).start
        overlap = self._settings.draft_length - 1 if item.position else 0
        count = min(self._settings.piece_rows, item.rows - item.position, left - overlap)
        start = first + item.position
        return Piece(sequence, start - overlap, start + count), count

    def _trained_range(self, sequence: CapturedSequence) -> range:
        """Without most of the prompt, which teaches nothing: no loss is taken there."""
        rows = usable_rows(sequence)
        return range(min(rows.stop, max(rows.start, sequence.prompt_length - self._settings.prompt_rows)), rows.stop)

    def _learn(self, entry: ShardEntry) -> None:
        try:
            summary = read_shard_summary(self._store, entry.path)
        except (ShardError, OSError) as error:
            self._refuse(entry.path, error)
            return
        done = self._progress.get(entry.path)
        pod = entry.path.rpartition("/")[0]
        for index, item in enumerate(summary):
            start = max(item.first_row, item.prompt_length - self._settings.prompt_rows)
            rows = max(0, item.first_row + item.rows - 1 - start)
            recorded = RecordedSequence(
                shard=entry.path,
                index=index,
                policy_version=item.policy_version,
                rows=rows,
                trained_rows=done.trained_rows.get(index, 0) if done else 0,
            )
            if rows and is_held_out(pod, entry.number, index):
                self._held_out[entry.path, index] = recorded
            elif rows:
                key = sequence_key(entry.path, index)
                self._keys[key] = entry.path, index
                more = self._elsewhere.pop(key, 0)
                self._known[entry.path, index] = replace(recorded, trained_rows=recorded.trained_rows + more)

    def _sequence(self, path: str, index: int) -> CapturedSequence | None:
        if path not in self._loaded:
            try:
                sequences = read_shard(self._store, path, expected=self._metadata)
                if not all(bool(torch.isfinite(item.hidden_states).all()) for item in sequences):
                    raise ShardError(f"{path}: holds values that are not finite")
            except (ShardError, OSError) as error:
                self._refuse(path, error)
                return None
            self._make_room(_bytes(sequences))
            self._loaded[path] = sequences
        self._loaded[path] = self._loaded.pop(path)  # the most recently used stand last
        return self._loaded[path][index]

    def _make_room(self, wanted: int) -> None:
        held = self.held_bytes
        while self._loaded and held + wanted > self._settings.memory_bytes:
            held -= _bytes(self._loaded.pop(next(iter(self._loaded))))

    def _refuse(self, path: str, error: Exception) -> None:
        _log.warning("shard left out: %s", error)
        self._refused.add(path)
        self._forget(path)

    def _forget(self, path: str) -> None:
        self._loaded.pop(path, None)
        for group in (self._known, self._held_out):
            for key in [key for key in group if key[0] == path]:
                del group[key]
                self._pending.pop(key, None)
                self._keys.pop(sequence_key(*key), None)


def _alone(sequence: CapturedSequence) -> CapturedSequence:
    """A copy; a sequence as it is read keeps its whole shard in memory."""
    return replace(sequence, token_ids=sequence.token_ids.clone(), hidden_states=sequence.hidden_states.clone())


def _bytes(sequences: list[CapturedSequence]) -> int:
    return sum(item.hidden_states.nbytes + item.token_ids.nbytes for item in sequences)
