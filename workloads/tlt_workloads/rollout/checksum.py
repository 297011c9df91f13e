"""A fingerprint of a model in the engine, cheap enough to take at every drafter swap.

The hazard it looks for is real: vLLM lets an EAGLE drafter share the policy's embedding (and a full-size head) by
reference, so that loading a drafter can silently rewrite the policy.  Tensors that the two models share are therefore
summed in full, all others at a stride.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

STRIDE = 509  # prime, so that no regular pattern of a weight hides between two samples
_CHUNK = 1 << 22


def storages(model: torch.nn.Module) -> frozenset[int]:
    """The addresses of a model's tensors."""
    return frozenset(tensor.data_ptr() for _, tensor in _tensors(model) if tensor.numel())


def policy_checksum(policy: torch.nn.Module, *, shared: frozenset[int] = frozenset()) -> str:
    """Digest (hex) of the policy's parameters and buffers.

    Args:
        policy: the model in the engine; weights that a kernel has packed away are skipped, they cannot be shared.
        shared: addresses whose tensors are summed in full.
    """
    digest = hashlib.sha256()
    sums = []
    for name, tensor in _tensors(policy):
        if not tensor.numel():
            continue
        digest.update(f"{name}:{tensor.dtype}:{[*tensor.shape]};".encode())
        flat = _words(tensor)
        sums.append(_full_sum(flat) if tensor.data_ptr() in shared else flat[::STRIDE].sum(dtype=torch.int64))
    for value in torch.stack(sums).tolist() if sums else []:
        digest.update(value.to_bytes(8, "little", signed=True))
    return digest.hexdigest()


def shared_tensors(policy: torch.nn.Module, drafter: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The policy's tensors whose memory the drafter uses as its own."""
    drafted = storages(drafter)
    return {name: tensor for name, tensor in _tensors(policy) if tensor.numel() and tensor.data_ptr() in drafted}


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=True)
    yield from model.named_buffers(remove_duplicate=True)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor as integers, of eight bytes where they fit: sums of floats would depend on their order."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.numel() * flat.element_size() % 8 == 0 and flat.data_ptr() % 8 == 0:
        return flat.view(torch.int64)
    return flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])


def _full_sum(flat: torch.Tensor) -> torch.Tensor:
    """Position-dependent, so that two rows that change places are noticed."""
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for number, piece in enumerate(torch.split(flat, _CHUNK)):
        total += (number + 1) * piece.sum(dtype=torch.int64)
    return total
