"""The policy's fingerprint notices what a drafter could do to it."""

from __future__ import annotations

import torch
from torch import nn

from tlt_workloads.rollout.checksum import policy_checksum, shared_tensors


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(101, 16)
        self.layer = nn.Linear(16, 16)
        self.register_buffer("table", torch.arange(7))
        self.packed = nn.Parameter(torch.empty(0))


class Drafter(nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.embed = policy.embed
        self.own = nn.Linear(16, 16)


def addresses(policy: Policy) -> frozenset[int]:
    return frozenset(tensor.data_ptr() for tensor in shared_tensors(policy, Drafter(policy)).values())


def test_the_shared_embedding_is_found() -> None:
    policy = Policy()
    assert list(shared_tensors(policy, Drafter(policy))) == ["embed.weight"]


def test_the_same_weights_have_the_same_checksum() -> None:
    assert policy_checksum(Policy(), shared=addresses(Policy())) == policy_checksum(Policy())[:0] + policy_checksum(
        Policy(), shared=addresses(Policy())
    )


def test_any_single_value_of_a_shared_tensor_counts() -> None:
    policy = Policy()
    shared = addresses(policy)
    before = policy_checksum(policy, shared=shared)
    for index in (0, 17, 101 * 16 - 1):
        with torch.no_grad():
            kept = policy.embed.weight.view(-1)[index].clone()
            policy.embed.weight.view(-1)[index] += 1e-6
        assert policy_checksum(policy, shared=shared) != before
        with torch.no_grad():
            policy.embed.weight.view(-1)[index] = kept
    assert policy_checksum(policy, shared=shared) == before


def test_a_rewritten_tensor_that_is_not_shared_counts_too() -> None:
    policy = Policy()
    before = policy_checksum(policy, shared=addresses(policy))
    with torch.no_grad():
        policy.layer.weight.mul_(1.01)
    assert policy_checksum(policy, shared=addresses(policy)) != before


def test_every_element_type_has_one() -> None:
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert len(policy_checksum(Policy().to(kind))) == 64
