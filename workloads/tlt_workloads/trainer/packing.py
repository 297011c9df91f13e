"""From captured sequences to rows that the drafter trains on.

Alignment (EAGLE-3): at row `i` of a sequence the drafter sees the features of token `i` and the embedding of token
`i + 1`, and predicts token `i + 2`, for which the target's own answer is the last hidden state of token `i + 1`.
Draft step `k` moves all but the features `k` further.

Several pieces share a row under a document mask.  The loss of a piece's first rows is masked: the library shifts
targets over the whole row, so the last rows of a piece would otherwise be scored against the start of the next one.
Pieces of one sequence overlap by as much, so that every token still counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tlt_workloads.shards import CapturedSequence

PADDING = -1  # document id of rows that pad a batch to its fixed size


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows `start` to `stop` of a sequence; row `i` pairs the features of token `i` with token `i + 1`."""

    sequence: CapturedSequence
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One row of pieces, as speculators' EAGLE-3 takes it."""

    features: torch.Tensor  # [1, tokens, auxiliary layers * hidden]
    token_ids: torch.Tensor  # int64 [1, tokens], the token after the features
    last_hidden: torch.Tensor  # [1, tokens, hidden], of the token after the features
    position_ids: torch.Tensor  # int64 [1, tokens], of the token after the features
    document_ids: torch.Tensor  # int64 [1, tokens], PADDING where nothing is
    loss_mask: torch.Tensor  # bool [1, tokens]

    @property
    def trained_tokens(self) -> int:
        """Positions that count in the loss."""
        return int(self.loss_mask.sum())

    @property
    def tokens(self) -> int:
        """Rows, padding included."""
        return self.token_ids.shape[1]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on a device."""
        return PackedBatch(
            self.features.to(device),
            self.token_ids.to(device),
            self.last_hidden.to(device),
            self.position_ids.to(device),
            self.document_ids.to(device),
            self.loss_mask.to(device),
        )


def usable_rows(sequence: CapturedSequence) -> range:
    """Rows of a sequence that can stand in a batch: features of token `i`, last hidden state of token `i + 1`."""
    return range(sequence.first_row, sequence.first_row + max(0, len(sequence.hidden_states) - 1))


def pack(pieces: Sequence[Piece], *, draft_length: int, size: int = 0) -> PackedBatch:
    """Lays pieces one after the other.

    Args:
        pieces: at least one.
        draft_length: how many first rows of a piece carry no loss (one less than this).
        size: pads to this many rows; 0 leaves the row as long as it is.
    """
    parts = [_rows(piece, draft_length) for piece in pieces]
    documents = torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor([len(piece) for piece in pieces]))
    features, token_ids, last_hidden, positions, mask = (torch.cat(column) for column in zip(*parts, strict=True))
    missing = max(0, size - len(token_ids))
    return PackedBatch(
        _padded(features, missing, 0),
        _padded(token_ids, missing, 0),
        _padded(last_hidden, missing, 0),
        _padded(positions, missing, 0),
        _padded(documents, missing, PADDING),
        _padded(mask, missing, False),
    )


def _rows(piece: Piece, draft_length: int) -> tuple[torch.Tensor, ...]:
    sequence, count = piece.sequence, len(piece)
    first = piece.start - sequence.first_row
    hidden = sequence.hidden_states[first : first + count + 1]
    positions = torch.arange(piece.start + 1, piece.stop + 1)
    mask = positions >= sequence.prompt_length
    mask[: draft_length - 1] = False
    return (
        hidden[:count, :-1].flatten(1),
        sequence.token_ids[piece.start + 1 : piece.stop + 1].long(),
        hidden[1:, -1],
        positions,
        mask,
    )


def _padded(column: torch.Tensor, missing: int, value: float) -> torch.Tensor:
    column = column.float() if column.is_floating_point() else column
    if missing:
        column = torch.cat([column, column.new_full((missing, *column.shape[1:]), value)])
    return column[None]
