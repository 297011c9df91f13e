"""What the engine computes anyway, handed to the recorder: hidden states, tokens and positions of each step.

The tap sits on `GPUModelRunner.propose_draft_token_ids`, which gets the hidden states of the auxiliary layers (as they
enter each layer) and of the last layer (after the final norm) of every token of the step.  On the engine's thread
there is one copy and one enqueue; everything else is the recorder's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class NewRequest:
    """A request as it enters the engine."""

    prompt_ids: tuple[int, ...]
    max_tokens: int | None
    stop_ids: frozenset[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRows:
    """One step.  Rows lie request after request, in the order of `requests`."""

    requests: tuple[str, ...]
    counts: tuple[int, ...]  # rows of each request
    rows: torch.Tensor  # [sum(counts), layers, hidden]
    positions: torch.Tensor  # int64 [sum(counts)], absolute
    sampled: torch.Tensor  # [requests, up to draft length + 1], -1 = no token
    partial: tuple[bool, ...]  # prompt not finished: what was sampled means nothing
    resumed: dict[str, int]  # after preemption: generated tokens that count
    new: dict[str, NewRequest]
    policy_version: int
    copied: torch.Event | None  # to wait for before reading, when the copy is asynchronous

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows.numel() * self.rows.element_size()


class Recorder(Protocol):
    """Who takes the steps.  Both calls return at once."""

    def offer(self, step: StepRows) -> bool:
        """A step; False when it was dropped because the recorder is behind."""

    def finish(self, requests: tuple[str, ...]) -> None:
        """Requests that are over."""


class CaptureTap:
    """Watches one model runner."""

    def __init__(self, recorder: Recorder, *, count_seconds: Any) -> None:
        self._recorder = recorder
        self._count_seconds = count_seconds
        self._known: set[str] = set()
        self._stream: torch.cuda.Stream | None = None
        self.policy_version = 0
        self.enabled = False  # until somebody orders it, and whenever it is switched off, the engine pays nothing

    def before_update(self, scheduled: Any) -> None:
        """Before the runner takes over what the scheduler decided: the last sight of finished requests."""
        if scheduled.finished_req_ids:
            self._known.difference_update(scheduled.finished_req_ids)
            self._recorder.finish(tuple(scheduled.finished_req_ids))

    def before_propose(
        self, runner: Any, scheduled: Any, sampled: Any, hidden: torch.Tensor, auxiliary: list[torch.Tensor] | None
    ) -> None:
        """After sampling, before drafting: all hidden states of the step are at hand."""
        if not self.enabled or auxiliary is None or not isinstance(sampled, torch.Tensor):
            return
        began = time.perf_counter()
        self._recorder.offer(self._collect(runner, scheduled, sampled, hidden, auxiliary))
        self._count_seconds(time.perf_counter() - began)

    def _collect(
        self, runner: Any, scheduled: Any, sampled: torch.Tensor, hidden: torch.Tensor, auxiliary: list[torch.Tensor]
    ) -> StepRows:
        requests = tuple(runner.input_batch.req_ids)
        counts = tuple(scheduled.num_scheduled_tokens[request] for request in requests)
        total = sum(counts)
        rows = torch.stack([*(layer[:total] for layer in auxiliary), hidden[:total]], dim=1)
        if rows.dtype == torch.float32:
            rows = rows.to(torch.bfloat16)
        rows, positions, tokens, copied = self._to_host(rows, runner.positions[:total].clone(), sampled.clone())
        cached = scheduled.scheduled_cached_reqs
        resumed = {
            request: cached.num_output_tokens[index]
            for index, request in enumerate(cached.req_ids)
            if request in cached.resumed_req_ids
        }
        new = {request: self._describe(runner, request) for request in requests if request not in self._known}
        self._known.update(new)
        return StepRows(
            requests=requests,
            counts=counts,
            rows=rows,
            positions=positions,
            sampled=tokens,
            partial=tuple(bool(flag) for flag in runner.discard_request_mask.np[: len(requests)]),
            resumed=resumed,
            new=new,
            policy_version=self.policy_version,
            copied=copied,
        )

    def _describe(self, runner: Any, request: str) -> NewRequest:
        state = runner.requests[request]
        sampling = state.sampling_params
        return NewRequest(
            prompt_ids=tuple(state.prompt_token_ids or ()),
            max_tokens=None if sampling is None else sampling.max_tokens,
            stop_ids=frozenset() if sampling is None else _stop_ids(sampling),
        )

    def _to_host(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Event | None]:
        if tensors[0].device.type == "cpu":
            rows, positions, sampled = tensors
            return rows, positions, sampled, None
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            hosts = []
            for tensor in tensors:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
                hosts.append(host)
            copied = torch.Event()
            copied.record()
        rows, positions, sampled = hosts
        return rows, positions, sampled, copied


def _stop_ids(sampling: Any) -> frozenset[int]:
    """The tokens that end a request; with `ignore_eos` only the ones that the caller named."""
    stops = set(sampling.stop_token_ids or ())
    if not sampling.ignore_eos and sampling.eos_token_id is not None:
        stops.add(sampling.eos_token_id)
    return frozenset(stops)
