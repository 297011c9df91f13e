"""The state that a replica heals from, on its way from one process to another: JSON and safetensors, with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tlt_workloads.trainer.progress import TrainingProgress

_LENGTH_BYTES = 8
LARGEST_HEAD = 64 << 20  # bytes of the JSON, which lists every sequence in the store
_HEADER_ROOM = 1 << 20  # bytes that safetensors' own header may have beyond the tensors


class StateError(ValueError):
    """What came is not the state of such a learner."""


@dataclass(frozen=True, eq=False)
class PackedState:
    """A state as bytes, in the order in which they are sent."""

    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(part) for part in self.parts)


def pack_state(progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]) -> PackedState:
    """Copies a state; what happens to the tensors afterwards does not change the copy."""
    body = save({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()})
    head = json.dumps({"sha256": hashlib.sha256(body).hexdigest(), "progress": progress.to_json().decode()}).encode()
    return PackedState((len(head).to_bytes(_LENGTH_BYTES, "big"), head, body))


def largest_state(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that a state like this one can have, moments included where there are none yet."""
    return LARGEST_HEAD + _HEADER_ROOM + 3 * sum(tensor.nbytes for tensor in tensors.values())


def unpack_state(
    read: Callable[[int], bytes], *, size: int, like: Mapping[str, torch.Tensor]
) -> tuple[TrainingProgress, dict[str, torch.Tensor]]:
    """Reads a state and compares it with what this replica trains.

    Args:
        read: gives exactly so many bytes.
        size: bytes in all, as announced.
        like: the tensors of this replica, whose names and shapes the others' have.

    Raises:
        StateError: larger than possible, cut off, changed on the way, or of another drafter.
    """
    if size > largest_state(like):
        raise StateError(f"{size} bytes are more than a state of this drafter has")
    length = int.from_bytes(read(_LENGTH_BYTES), "big")
    if length > min(LARGEST_HEAD, size):
        raise StateError(f"a head of {length} bytes is too large")
    try:
        head = json.loads(read(length))
        digest, progress = str(head["sha256"]), TrainingProgress.from_json(str(head["progress"]).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"the head cannot be read: {error}") from error
    body = read(size - _LENGTH_BYTES - length)
    if hashlib.sha256(body).hexdigest() != digest:
        raise StateError("the digest is another one than announced")
    try:
        tensors = load(body)
    except (SafetensorError, ValueError) as error:
        raise StateError(f"the tensors cannot be read: {error}") from error
    _compare(tensors, like)
    return progress, tensors


def _compare(tensors: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> None:
    own = {name: tensor for name, tensor in like.items() if name.startswith("model.")}
    if missing := own.keys() - tensors.keys():
        raise StateError(f"without {', '.join(sorted(missing))}")
    for name, tensor in tensors.items():
        expected = own.get(name if name.startswith("model.") else f"model.{name.partition('.')[2]}")
        if expected is None or tensor.shape != expected.shape:
            raise StateError(f"{name}: not of this drafter")
