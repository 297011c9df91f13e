"""What is drafted from step to step, by mode: always the same, nothing, or what a bandit finds to pay.

Lives in the engine core's process, where steps are planned and their outcome is known.  Verifying k drafts costs almost
nothing while the accelerator waits for memory, and real time once it is busy, so that batch sizes decide.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from tlt_workloads.contract import (
    DraftSource,
    SpeculationMode,
    SpeculationReport,
    SpeculationSettings,
    decode,
    encode,
)
from tlt_workloads.rollout.bandit import BanditSettings, DraftBandit
from tlt_workloads.rollout.counters import CounterPage
from tlt_workloads.rollout.ngram_trials import NgramTrials
from tlt_workloads.rollout.plans import OFF, DraftPlan

SEED = 20  # the same arms are tried in the same order after each start


class SpeculationRefusedError(ValueError):
    """The engine cannot speculate like that; the message names the field."""


@dataclass(frozen=True, kw_only=True)
class SpeculationOrder:
    """What an engine core is told."""

    settings: SpeculationSettings
    has_drafter: bool  # trained weights are in place; what a server starts with need not be
    is_new_drafter: bool = False  # other weights than at the last order
    largest_batch: int  # fixed modes draft nothing above this

    def encoded(self) -> str:
        """For the way to another process."""
        return json.dumps(encode(self))

    @classmethod
    def decoded(cls, message: str) -> SpeculationOrder:
        """What `encoded` made."""
        return decode(cls, json.loads(message))


def check_settings(settings: SpeculationSettings, *, longest: int, has_ngrams: bool) -> None:
    """Refuses what the server was not started for.

    Args:
        settings: what is asked for.
        longest: the draft length that the server was started for.
        has_ngrams: whether this engine can look drafts up in requests.

    Raises:
        SpeculationRefusedError: longer drafts than the server can make, or a drafter that it cannot have.
    """
    if not 0 <= settings.draft_length <= longest:
        raise SpeculationRefusedError(f"draftLength: {settings.draft_length} is not within 0 and {longest}")
    if settings.mode is SpeculationMode.NGRAM and not has_ngrams:
        raise SpeculationRefusedError(
            "mode: NGram needs the newest tokens on the host, start the server with --no-async-scheduling"
        )


class Speculation:
    """Decides for one scheduler.  Stands in for vLLM's table of draft lengths by batch size.

    Args:
        longest: the draft length that the server was started for.
        page: where others read what was decided and accepted; it also says whether n-grams can be looked up.
        is_working: whether the engine has something to do, so that the time to the next step is a step's time.
        tokens_of: all tokens of a request so far, prompt included, or None when it is over; n-grams are tried on them.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        longest: int,
        page: CounterPage | None,
        is_working: Callable[[], bool],
        tokens_of: Callable[[str], Sequence[int] | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._page = page
        self._is_working = is_working
        self._clock = clock
        self._order = SpeculationOrder(settings=SpeculationSettings(), has_drafter=False, largest_batch=0)
        dice = random.Random(SEED)  # noqa: S311 - no secret
        self._bandit = DraftBandit(BanditSettings(longest=longest), dice=dice)
        self._trials = NgramTrials(longest, tokens_of=tokens_of)
        self._longest = longest
        self._stepped_at: float | None = None
        self._planned = OFF

    @property
    def is_drafting(self) -> bool:
        """Whether the step that was planned last makes drafts."""
        return self._planned > 0

    def obey(self, order: SpeculationOrder) -> None:
        """From the next step on."""
        if order.is_new_drafter:
            self._bandit.forget(DraftSource.LEARNED)
        self._order = order

    def report(self) -> SpeculationReport:
        """What is in force and what is known."""
        settings = self._order.settings
        return SpeculationReport(
            mode=settings.mode,
            draft_length=settings.draft_length,
            sources=tuple(sorted(self._sources())),
            lost_share=self._bandit.lost_share,
            buckets=self._bandit.report() if settings.mode is SpeculationMode.ADAPTIVE else (),
        )

    # -- vLLM's table ----------------------------------------------------------------------------------------------

    def __getitem__(self, batch: int) -> DraftPlan:
        """What to draft in a step of so many requests; asked once per step."""
        plan = self._planned = self._plan(batch)
        if self._page is not None:
            self._page.note_plan(plan, batch=batch)
        return plan

    def _plan(self, batch: int) -> DraftPlan:
        settings = self._order.settings
        match settings.mode:
            case SpeculationMode.OFF:
                return OFF
            case SpeculationMode.STATIC | SpeculationMode.NGRAM if batch > self._order.largest_batch:
                return OFF
            case SpeculationMode.STATIC:
                return DraftPlan(settings.draft_length)
            case SpeculationMode.NGRAM:
                return DraftPlan(settings.draft_length, DraftSource.NGRAM) if self._has_ngrams else OFF
            case SpeculationMode.ADAPTIVE:
                self._bandit.offer(self._sources(), longest=settings.draft_length)
                return self._bandit.choose(batch)

    # -- outcome ---------------------------------------------------------------------------------------------------

    def note_step(
        self,
        *,
        verified: DraftPlan,
        made: DraftPlan,
        drafts: Mapping[str, int],
        accepted: Mapping[str, int],
        has_prompts: bool,
    ) -> None:
        """A step is over.

        Args:
            verified: the plan of the drafts that it verified.
            made: the plan of the drafts that it made.
            drafts: drafted tokens that it verified, by request; every request that decoded is in here.
            accepted: how many of them, by request.
            has_prompts: other requests computed prompts in it, so that its time says nothing about drafts.
        """
        now = self._clock()
        if drafts:
            self._bandit.note_running(drafts.keys())
            self._try_ngrams(drafts.keys())
        if drafts and verified:
            self._count(verified, drafts, accepted)
        # Time belongs to an arm only when the same one was verified and drafted for.
        if self._stepped_at is not None and verified == made and drafts and not has_prompts:
            self._bandit.note_step(len(drafts), made, now - self._stepped_at)
        self._stepped_at = now if self._is_working() else None

    def _count(self, plan: DraftPlan, drafts: Mapping[str, int], accepted: Mapping[str, int]) -> None:
        if self._page is not None:
            self._page.note_drafts(
                plan,
                drafts=sum(length > 0 for length in drafts.values()),
                draft_tokens=sum(drafts.values()),
                accepted=sum(accepted.values()),
            )
        if plan.source is DraftSource.LEARNED:  # the end of a request cuts its last drafts short
            counted = [(name, accepted.get(name, 0)) for name, length in drafts.items() if length == plan]
            self._bandit.note_drafts(len(drafts), plan, counted)

    def _try_ngrams(self, running: Set[str]) -> None:
        """They are judged by what they would have drafted, in whatever way the tokens came about."""
        if self._order.settings.mode is SpeculationMode.ADAPTIVE and self._has_ngrams:
            plan = DraftPlan(self._longest, DraftSource.NGRAM)
            self._bandit.note_drafts(len(running), plan, self._trials.follow(running))

    @property
    def _has_ngrams(self) -> bool:
        return self._page is not None and self._page.read("ngram_ready") > 0

    def _sources(self) -> frozenset[DraftSource]:
        found = {DraftSource.LEARNED} if self._order.has_drafter else set()
        return frozenset(found | ({DraftSource.NGRAM} if self._has_ngrams else set()))


class SchedulerTap:
    """Shows a scheduler's steps to `Speculation`, as vLLM 0.32's scheduler makes them."""

    def __init__(self, speculation: Speculation) -> None:
        self._speculation = speculation
        self._made = OFF

    def scheduled(self, output: Any) -> None:
        """A step was planned; with asynchronous scheduling several are, before the first one's outcome is known."""
        if output.total_num_scheduled_tokens:
            output.tlt_verified = self._made
            self._made = output.num_spec_tokens_to_schedule

    def finished(self, output: Any, outcome: Any) -> None:
        """The outcome of a step is known."""
        verified, made = getattr(output, "tlt_verified", None), output.num_spec_tokens_to_schedule
        if not isinstance(verified, DraftPlan) or not isinstance(made, DraftPlan):
            return
        spoken, scheduled = output.scheduled_spec_decode_tokens, output.num_scheduled_tokens
        drafts = {
            name: len(spoken.get(name, ())) for name in scheduled if scheduled[name] == 1 + len(spoken.get(name, ()))
        }
        indices, sampled = outcome.req_id_to_index, outcome.sampled_token_ids
        accepted = {
            name: len(sampled[indices[name]]) - 1
            for name in spoken
            if name in drafts and sampled and sampled[indices[name]]
        }
        self._speculation.note_step(
            verified=verified, made=made, drafts=drafts, accepted=accepted, has_prompts=len(drafts) < len(scheduled)
        )


def report_message(speculation: Speculation) -> str:
    """The report for the way to another process."""
    return json.dumps(encode(speculation.report()))
