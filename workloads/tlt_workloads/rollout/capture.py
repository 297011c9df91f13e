"""What the engine computes anyway, handed to the recorder: hidden states, tokens and positions of each step.

The tap sits on `GPUModelRunner.propose_draft_token_ids`, which gets the hidden states of the auxiliary layers (as they
enter each layer) and of the last layer (after the final norm) of every token of the step.  On the engine's thread
there is one copy and one enqueue; everything else is the recorder's.  Rows that nobody wants are not copied: those of
requests that the recorder does not take, and those of a prompt that lie too far before the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Protocol

import numpy as np
import torch

from tlt_workloads.contract import CaptureSettings

Count = Callable[[str, float], None]  # adds to a named total


@dataclass(frozen=True, kw_only=True, eq=False)
class NewRequest:
    """A request as it enters the engine."""

    prompt_ids: tuple[int, ...]
    max_tokens: int | None
    stop_ids: frozenset[int]
    first_row: int = 0  # rows before this one are not wanted
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRows:
    """One step, as far as it is wanted.  Rows lie request after request, in the order of `requests`."""

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
    """Who takes the steps.  All calls return at once."""

    def admits(self, request: str, *, policy_version: int) -> bool:
        """Whether a new request is to be recorded."""

    def offer(self, step: StepRows) -> bool:
        """A step; False when it was dropped because the recorder is behind."""

    def abandon(self, requests: tuple[str, ...]) -> None:
        """Requests with a missing step: what was taken of them is of no use."""

    def finish(self, requests: tuple[str, ...]) -> None:
        """Requests that are over."""


class CaptureTap:
    """Watches one model runner.

    Args:
        recorder: gets the steps.
        count: adds to a named total (steps, seconds).
    """

    def __init__(self, recorder: Recorder, *, count: Count) -> None:
        self._recorder = recorder
        self._count = count
        self._known: set[str] = set()
        self._wanted: set[str] = set()
        self._prompt_rows = 0
        self._stream: torch.cuda.Stream | None = None
        self.policy_version = 0
        self.enabled = False  # until somebody orders it, and whenever it is switched off, the engine pays nothing

    def follow(self, settings: CaptureSettings) -> None:
        """Captures as ordered from the next step on."""
        self._prompt_rows = settings.prompt_rows
        self.enabled = settings.enabled

    def before_update(self, scheduled: Any) -> None:
        """Before the runner takes over what the scheduler decided: the last sight of finished requests."""
        if not scheduled.finished_req_ids:
            return
        self._known.difference_update(scheduled.finished_req_ids)
        if over := self._wanted.intersection(scheduled.finished_req_ids):
            self._wanted -= over
            self._recorder.finish(tuple(over))

    def before_propose(
        self, runner: Any, scheduled: Any, sampled: Any, hidden: torch.Tensor, auxiliary: list[torch.Tensor] | None
    ) -> None:
        """After sampling, before drafting: all hidden states of the step are at hand."""
        if not self.enabled or auxiliary is None or not isinstance(sampled, torch.Tensor):
            return
        began = time.perf_counter()
        step = self._collect(runner, scheduled, sampled, [*auxiliary, hidden])
        if step is not None and not self._recorder.offer(step):
            self._wanted.difference_update(step.requests)
            self._recorder.abandon(step.requests)
        self._count("seconds", time.perf_counter() - began)
        self._count("steps", 1)

    def _collect(
        self, runner: Any, scheduled: Any, sampled: torch.Tensor, layers: Sequence[torch.Tensor]
    ) -> StepRows | None:
        requests: list[str] = runner.input_batch.req_ids
        new = self._take_in(runner, requests)
        counts = np.fromiter((scheduled.num_scheduled_tokens[name] for name in requests), int, len(requests))
        wanted = [name in self._wanted for name in requests]
        if not any(wanted):
            return None
        kept = counts - self._unwanted_rows(runner, counts)
        kept[~np.array(wanted)] = 0
        total = int(counts.sum())
        chosen = None if int(kept.sum()) == total else _last_rows_of_each(counts, kept)
        rows, positions, tokens, copied = self._to_host(
            _stacked(layers, total, chosen),
            runner.positions[:total].clone() if chosen is None else runner.positions[chosen],
            sampled.clone(),
        )
        partial = runner.discard_request_mask.np[: len(requests)].tolist()
        return StepRows(
            requests=tuple(compress(requests, wanted)),
            counts=tuple(compress(kept.tolist(), wanted)),
            rows=rows,
            positions=positions,
            sampled=tokens if all(wanted) else tokens[torch.tensor(wanted)],
            partial=tuple(compress(partial, wanted)),
            resumed=_resumed(scheduled.scheduled_cached_reqs),
            new=new,
            policy_version=self.policy_version,
            copied=copied,
        )

    def _take_in(self, runner: Any, requests: list[str]) -> dict[str, NewRequest]:
        """Requests that are seen for the first time and wanted.

        One that is already behind its prompt ran before the capture began: its tokens are not all known.
        """
        if self._known.issuperset(requests):
            return {}
        batch, new = runner.input_batch, {}
        for index, name in enumerate(requests):
            if name in self._known:
                continue
            self._known.add(name)
            began = batch.num_computed_tokens_cpu[index] >= batch.num_prompt_tokens[index]
            if began or runner.requests[name].prompt_token_ids is None:
                continue
            if self._recorder.admits(name, policy_version=self.policy_version):
                new[name] = self._describe(runner.requests[name])
                self._wanted.add(name)
        return new

    def _unwanted_rows(self, runner: Any, counts: np.ndarray) -> np.ndarray:
        """How many of each request's rows, from the first one on, belong to a prompt's part that is not recorded.

        Where a step begins is known for sure in a prompt; later the count may run ahead of rejected drafts.
        """
        batch, requests = runner.input_batch, len(counts)
        missing = batch.num_prompt_tokens[:requests] - self._prompt_rows - batch.num_computed_tokens_cpu[:requests]
        unwanted: np.ndarray = np.clip(missing, 0, counts)
        return unwanted

    def _describe(self, state: Any) -> NewRequest:
        sampling = state.sampling_params
        return NewRequest(
            prompt_ids=tuple(state.prompt_token_ids),
            max_tokens=None if sampling is None else sampling.max_tokens,
            stop_ids=frozenset() if sampling is None else _stop_ids(sampling),
            first_row=max(0, len(state.prompt_token_ids) - self._prompt_rows),
            temperature=1.0 if sampling is None else float(sampling.temperature),
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


def _last_rows_of_each(counts: np.ndarray, kept: np.ndarray) -> torch.Tensor:
    """Indices of the last `kept[i]` of the `counts[i]` rows of every request."""
    ends = np.cumsum(counts)
    parts = [np.arange(end - count, end) for end, count in zip(ends.tolist(), kept.tolist(), strict=True)]
    return torch.from_numpy(np.concatenate(parts))


def _stacked(layers: Sequence[torch.Tensor], total: int, chosen: torch.Tensor | None) -> torch.Tensor:
    """[rows, layers, hidden] in two bytes a number; written layer by layer, so that nothing is copied twice."""
    count = total if chosen is None else len(chosen)
    kind = torch.bfloat16 if layers[0].dtype == torch.float32 else layers[0].dtype
    rows = torch.empty((count, len(layers), layers[0].shape[-1]), dtype=kind, device=layers[0].device)
    for index, layer in enumerate(layers):
        rows[:, index] = layer[:total] if chosen is None else layer[chosen]
    return rows


def _resumed(cached: Any) -> dict[str, int]:
    if not cached.resumed_req_ids:
        return {}
    return {
        name: cached.num_output_tokens[index]
        for index, name in enumerate(cached.req_ids)
        if name in cached.resumed_req_ids
    }


def _stop_ids(sampling: Any) -> frozenset[int]:
    """The tokens that end a request; with `ignore_eos` only the ones that the caller named."""
    stops = set(sampling.stop_token_ids or ())
    if not sampling.ignore_eos and sampling.eos_token_id is not None:
        stops.add(sampling.eos_token_id)
    return frozenset(stops)
