"""Hidden-state shards: what the rollout engine records and the trainer reads.

A shard is one safetensors file with the sequences that one policy version finished.  Its name tells what is inside,
so that a listing is enough to count tokens: `<number:08d>-p<policy version>-t<rows>.safetensors`.

Hidden states are stored as bfloat16, or in half the space as float8 (e4m3) with one scale per token and layer: the
largest number of a token's vector becomes the largest one that e4m3 has, 448.  A float, unlike an integer of eight
bits, bears that a few dimensions of a residual stream are a hundred times larger than the rest: every number down to
1/28,672 of the largest keeps three bits of mantissa, which is within 6.25 % of it.  Readers get bfloat16 either way.

torch is imported where tensors are touched, so that a process that only lists shards stays small.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tlt_workloads.contract import HIDDEN_STATES_FOLDER, ElementType
from tlt_workloads.store import Store

if TYPE_CHECKING:
    import torch

FORMAT = "tlt-shard/1"
FLOAT8_LARGEST = 448.0
_LONGEST_HEADER = 16 << 20
_NAME = re.compile(r"^(?P<number>\d{8,})-p(?P<policy>\d+)-t(?P<tokens>\d+)\.safetensors$")


class ShardError(ValueError):
    """A shard cannot be used: cut off, of another format, or of another model."""


@dataclass(frozen=True, eq=False)
class CapturedSequence:
    """One sequence with the hidden states that the engine computed for it.

    `hidden_states[i]` belongs to token `first_row + i`.  The last token of a finished sequence was sampled but never
    fed back, so it usually has no row: `first_row + rows <= len(token_ids)`.
    """

    token_ids: torch.Tensor  # int32 [tokens], prompt included
    hidden_states: (
        torch.Tensor
    )  # [rows, layers, hidden]; auxiliary layers in order, then the last, after the final norm
    prompt_length: int  # tokens of the prompt
    policy_version: int
    finished: bool  # ended by itself or by its cap; False when aborted
    first_row: int = 0  # rows before this token were not captured (prefix cache)
    temperature: float = 1.0  # that it was sampled at; 0 = greedy

    def __post_init__(self) -> None:
        import torch

        if self.token_ids.dtype != torch.int32 or self.token_ids.dim() != 1:
            raise ShardError(
                f"token_ids: expected int32 [tokens], got {self.token_ids.dtype} {[*self.token_ids.shape]}"
            )
        if self.hidden_states.dim() != 3:
            raise ShardError(f"hidden_states: expected [rows, layers, hidden], got {[*self.hidden_states.shape]}")
        if not 0 <= self.first_row <= self.first_row + len(self.hidden_states) <= len(self.token_ids):
            raise ShardError(
                f"hidden_states: rows {self.first_row} to {self.first_row + len(self.hidden_states)} "
                f"do not lie within {len(self.token_ids)} tokens"
            )


@dataclass(frozen=True, kw_only=True)
class ShardMetadata:
    """What all sequences of a shard share."""

    model: str
    layer_ids: tuple[int, ...]  # auxiliary layers as the engine counts them: i = what enters layer i
    last: str = "post-norm"  # the last column is what the language-model head sees


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard as its name tells it."""

    path: str
    number: int
    policy_version: int
    tokens: int  # rows of hidden states
    size: int  # bytes


@dataclass(frozen=True, kw_only=True)
class SequenceSummary:
    """A sequence of a shard as the shard's header tells it."""

    tokens: int
    rows: int
    first_row: int
    prompt_length: int
    policy_version: int
    finished: bool
    temperature: float = 1.0


def write_shard(
    store: Store,
    folder: str,
    *,
    number: int,
    sequences: Sequence[CapturedSequence],
    metadata: ShardMetadata,
    element_type: ElementType = ElementType.BFLOAT16,
) -> ShardEntry:
    """Writes one shard, seen whole or not at all, and returns what a listing would say of it.

    Raises:
        ShardError: no sequences, or they differ in policy version, layers or element type.
    """
    import torch
    from safetensors.torch import save

    if not sequences:
        raise ShardError("sequences: a shard needs at least one")
    versions = {sequence.policy_version for sequence in sequences}
    if len(versions) != 1:
        raise ShardError(f"sequences: policy versions {sorted(versions)} in one shard; write one shard for each")
    kinds = {(sequence.hidden_states.dtype, sequence.hidden_states.shape[1:]) for sequence in sequences}
    if len(kinds) != 1 or sequences[0].hidden_states.shape[1] != len(metadata.layer_ids) + 1:
        shapes = [[*shape] for _, shape in kinds]
        raise ShardError(
            f"hidden_states: expected [rows, {len(metadata.layer_ids) + 1}, hidden] of one type, got {shapes}"
        )
    tokens = sum(len(sequence.hidden_states) for sequence in sequences)
    header = {
        "format": FORMAT,
        "metadata": json.dumps(asdict(metadata)),
        "sequences": json.dumps([_describe(sequence) for sequence in sequences]),
    }
    tensors = {
        "token_ids": torch.cat([sequence.token_ids for sequence in sequences]).contiguous(),
        **_stored(torch.cat([sequence.hidden_states for sequence in sequences]).contiguous(), element_type),
    }
    [version] = versions
    path = f"{folder}/{number:08d}-p{version}-t{tokens}.safetensors"
    data = save(tensors, metadata=header)
    store.write_atomic(path, data)
    return ShardEntry(path=path, number=number, policy_version=version, tokens=tokens, size=len(data))


def read_shard(store: Store, path: str, *, expected: ShardMetadata | None = None) -> list[CapturedSequence]:
    """Reads the sequences of a shard.

    Args:
        store: where the shard is.
        path: as a listing gives it.
        expected: refuse a shard whose layers or norm differ from these; the model's name may differ.

    Raises:
        ShardError: the file is not a whole shard of this format, or does not fit `expected`.
        FileNotFoundError: the ring has dropped it meanwhile.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = store.read(path)
    try:
        header = _header(data)
        if header.get("format") != FORMAT:
            raise ShardError(f"{path}: format {header.get('format')!r}, expected {FORMAT!r}")
        metadata = _metadata(json.loads(header["metadata"]))
        sequences = _split(load(data), json.loads(header["sequences"]))
    except ShardError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ShardError(f"{path}: not a whole shard: {error}") from error
    found, wanted = (metadata.layer_ids, metadata.last), expected and (expected.layer_ids, expected.last)
    if wanted and found != wanted:
        raise ShardError(f"{path}: layers {found[0]} {found[1]}, the drafter reads {wanted[0]} {wanted[1]}")
    return sequences


def read_shard_summary(store: Store, path: str) -> tuple[SequenceSummary, ...]:
    """What a shard holds, from its header alone.

    Raises:
        ShardError: the file is not a shard of this format.
        FileNotFoundError: the ring has dropped it meanwhile.
    """
    try:
        length = int.from_bytes(store.read(path, stop=8), "little")
        header = _header(store.read(path, stop=8 + min(length, _LONGEST_HEADER)))
        if header.get("format") != FORMAT:
            raise ShardError(f"{path}: format {header.get('format')!r}, expected {FORMAT!r}")
        return tuple(SequenceSummary(**item) for item in json.loads(header["sequences"]))
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a whole shard: {error}") from error


def shard_entries(store: Store, folder: str) -> tuple[ShardEntry, ...]:
    """The shards of one folder by number, from their names alone; other files are left out."""
    named = ((file, _NAME.match(file.name)) for file in store.list(folder))
    entries = (
        ShardEntry(
            path=f"{folder}/{file.name}",
            number=int(match["number"]),
            policy_version=int(match["policy"]),
            tokens=int(match["tokens"]),
            size=file.size,
        )
        for file, match in named
        if match
    )
    return tuple(sorted(entries, key=lambda entry: entry.number))


def job_shards(store: Store) -> tuple[ShardEntry, ...]:
    """Every shard of every pod of a job, from the root of the job's folder."""
    folders = (f"{HIDDEN_STATES_FOLDER}/{pod}" for pod in store.folders(HIDDEN_STATES_FOLDER))
    return tuple(entry for folder in folders for entry in shard_entries(store, folder))


def _describe(sequence: CapturedSequence) -> dict[str, Any]:
    return {
        "tokens": len(sequence.token_ids),
        "rows": len(sequence.hidden_states),
        "first_row": sequence.first_row,
        "prompt_length": sequence.prompt_length,
        "policy_version": sequence.policy_version,
        "finished": sequence.finished,
        "temperature": sequence.temperature,
    }


def _header(data: bytes) -> Mapping[str, str]:
    """The text part of a safetensors header, which the library's bytes reader does not give."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ShardError("header is cut off")
    metadata: Mapping[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return metadata


def _metadata(data: Mapping[str, Any]) -> ShardMetadata:
    return ShardMetadata(model=data["model"], layer_ids=tuple(data["layer_ids"]), last=data["last"])


def _split(tensors: Mapping[str, torch.Tensor], described: list[dict[str, Any]]) -> list[CapturedSequence]:
    import torch

    token_ids = torch.split(tensors["token_ids"], [item["tokens"] for item in described])
    hidden_states = torch.split(_restored(tensors), [item["rows"] for item in described])
    return [
        CapturedSequence(
            token_ids=ids,
            hidden_states=rows,
            prompt_length=int(item["prompt_length"]),
            policy_version=int(item["policy_version"]),
            finished=bool(item["finished"]),
            first_row=int(item["first_row"]),
            temperature=float(item.get("temperature", 1.0)),
        )
        for ids, rows, item in zip(token_ids, hidden_states, described, strict=True)
    ]


def _stored(rows: torch.Tensor, element_type: ElementType) -> Mapping[str, torch.Tensor]:
    """The tensors of a shard that hold these rows [tokens, layers, hidden]; not a number stays not a number."""
    import torch

    if element_type is not ElementType.FLOAT8:
        return {"hidden_states": rows}
    wide = rows.float()
    scales = wide.abs().amax(dim=-1).clamp(min=torch.finfo(torch.float32).tiny) / FLOAT8_LARGEST
    return {"hidden_states": (wide / scales[..., None]).to(torch.float8_e4m3fn), "scales": scales}


def _restored(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    import torch

    rows = tensors["hidden_states"]
    if rows.dtype != torch.float8_e4m3fn:
        return rows
    return (rows.float() * tensors["scales"][..., None]).to(torch.bfloat16)
