"""The engine worker's side of speculation: drafts by whom the scheduler's plan says, and no pass that is not needed."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import torch

from tlt_workloads.contract import DraftSource
from tlt_workloads.rollout.backlog import Backlog, OwedStep
from tlt_workloads.rollout.compat import forget_draft_probabilities
from tlt_workloads.rollout.counters import CounterPage
from tlt_workloads.rollout.ngrams import NgramDrafter, sampled_tokens
from tlt_workloads.rollout.plans import DraftPlan


class Drafts:
    """Stands before a model runner's drafter.

    Args:
        runner: vLLM's model runner.
        page: told when n-grams can be looked up.
    """

    def __init__(self, runner: Any, *, page: CounterPage | None) -> None:
        self._runner = runner
        self._propose = runner.drafter.propose
        self._backlog = Backlog(self._propose, largest=runner.drafter.max_num_tokens)
        self._sampled: torch.Tensor | None = None
        self._ngrams: NgramDrafter | None = None
        if page is not None and not runner.use_async_scheduling:
            self._ngrams = NgramDrafter(runner, on_ready=functools.partial(page.put, "ngram_ready", 1))

    def before_update(self, scheduled: Any) -> None:
        """Before the runner takes over what the scheduler decided: blocks of some requests may belong to others now."""
        gone = set(scheduled.finished_req_ids) | set(scheduled.scheduled_cached_reqs.resumed_req_ids)
        self._backlog.forget(gone | set(scheduled.preempted_req_ids or ()))

    def left_out(self, scheduled: Any, sampled: Any, auxiliary: Any, metadata: Any) -> torch.Tensor | None:
        """The drafts of a step that is to make none and needs no pass now: [requests, 0]; None for any other step.

        Without it vLLM prepares the inputs of a pass that will not be.  Called before anybody drafts.

        Args:
            scheduled: the scheduler's output.
            sampled: the tokens that the step sampled, [requests, at most 1 + drafts].
            auxiliary: hidden states for the drafter, one [tokens, hidden] for each of its layers.
            metadata: vLLM's `CommonAttentionMetadata` of the step.
        """
        runner = self._runner
        self._sampled = sampled if isinstance(sampled, torch.Tensor) else None
        requests = tuple(runner.input_batch.req_ids)
        if (
            scheduled.num_spec_tokens_to_schedule != 0
            or scheduled.total_num_scheduled_tokens != len(requests)
            or metadata.num_reqs != len(requests)
            or metadata.max_query_len != 1
            or self._sampled is None
            or auxiliary is None
            or runner.use_async_scheduling  # the runner keeps books of what is on its way
            or runner.supports_mm_inputs
            or runner.discard_request_mask.np[: len(requests)].any()  # the last token of a prompt's part
            or self._backlog.is_full(len(requests))
        ):
            return None
        count = len(requests)
        positions = runner._get_positions(count)
        if positions.dim() != 1:
            return None
        self._backlog.owe(
            OwedStep(
                requests=requests,
                counts=(1,) * count,
                tokens=runner.input_ids.gpu[:count].clone(),
                positions=positions.clone(),
                hidden=torch.cat([states[:count] for states in auxiliary], dim=-1),
                slots=metadata.slot_mapping[:count].clone(),
                following=self._sampled[:, 0].clone(),
            )
        )
        return _no_drafts(count, device=metadata.seq_lens.device)

    def propose(self, **inputs: Any) -> Any:
        """In place of the drafter's own `propose`, with its arguments."""
        plan = inputs["num_speculative_tokens"]
        by_ngram = isinstance(plan, DraftPlan) and plan.source is DraftSource.NGRAM and self._ngrams is not None
        metadata, sampling = inputs["common_attn_metadata"], inputs["sampling_metadata"]
        forget_draft_probabilities(self._runner.drafter)
        requests = tuple(self._runner.input_batch.req_ids)
        step = self._owable(requests, inputs) if by_ngram or plan == 0 else None
        if step is None or self._backlog.is_full(step.rows):
            self._backlog.settle(requests, metadata, sampling)
        if step is not None:
            self._backlog.owe(step)
        else:
            drafts = self._propose(**(inputs | {"num_speculative_tokens": 0 if by_ngram else int(plan)}))
            if not by_ngram:
                return drafts
        if by_ngram and self._ngrams is not None and self._sampled is not None:
            unfinished = self._runner.discard_request_mask.np[: len(self._sampled)]
            return self._ngrams.propose(int(plan), sampled_tokens(self._sampled, unfinished=unfinished))
        return _no_drafts(len(requests), device=metadata.seq_lens.device)

    def _owable(self, requests: tuple[str, ...], inputs: dict[str, Any]) -> OwedStep | None:
        """The pass in a form that can wait; None when it must be computed now, as passes with prompts in them are."""
        metadata, positions = inputs["common_attn_metadata"], inputs["target_positions"]
        if inputs.get("mm_embed_inputs") is not None or positions.dim() != 1:
            return None
        if metadata.num_reqs != len(requests):
            return None
        rejected = inputs.get("num_rejected_tokens_gpu")
        if metadata.max_query_len > (1 if rejected is None else 1 + self._runner.num_spec_tokens):
            return None  # prompts are the bulk of the work: nothing is saved by waiting
        if rejected is None:
            counts, rows = (1,) * len(requests), list(range(len(requests)))
        elif self._runner.use_async_scheduling:
            return None  # which rows count is known on the device only
        else:
            counts, rows = _accepted_rows(metadata.query_start_loc_cpu.tolist(), rejected.tolist())
        return OwedStep(
            requests=requests,
            counts=counts,
            tokens=inputs["target_token_ids"][rows].clone(),
            positions=positions[rows].clone(),
            hidden=inputs["target_hidden_states"][rows].clone(),
            slots=metadata.slot_mapping[rows].clone(),
            following=inputs["next_token_ids"].clone(),
        )


def _no_drafts(requests: int, *, device: torch.device) -> torch.Tensor:
    return torch.empty((requests, 0), device=device, dtype=torch.int64)


def _accepted_rows(starts: list[int], rejected: list[int]) -> tuple[tuple[int, ...], list[int]]:
    """How many rows of each request stand for accepted tokens, and which these are.

    Args:
        starts: [requests + 1], where each request's rows begin.
        rejected: [requests], rows at the end of each that do not count.
    """
    counts = tuple(end - start - lost for (start, end), lost in zip(pairwise(starts), rejected, strict=True))
    return counts, [start + row for start, count in zip(starts, counts, strict=False) for row in range(count)]
