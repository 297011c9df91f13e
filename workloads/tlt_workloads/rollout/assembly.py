"""Puts the API process's side together: the pod, its updates, its settings and its metrics."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlt_workloads.contract import (
    HIDDEN_STATES_FOLDER,
    POD_NAME_VARIABLE,
    DrafterLoad,
    DrafterLoaded,
    RolloutConfig,
    SpeculationMode,
    SpeculationReport,
    SpeculationSettings,
    config_digest,
)
from tlt_workloads.drafter import WEIGHTS_FILE
from tlt_workloads.rollout.acceptance import AcceptanceMeter
from tlt_workloads.rollout.compat import engine_version
from tlt_workloads.rollout.counters import CounterPage, create_page, inherited_page
from tlt_workloads.rollout.devices import visible_devices
from tlt_workloads.rollout.engine import CaptureOrder, VllmEngine
from tlt_workloads.rollout.locations import JobFolder, job_folder
from tlt_workloads.rollout.metrics import publish
from tlt_workloads.rollout.pod import Identity, Readings, RolloutPod
from tlt_workloads.rollout.serve import UNTRAINED_VARIABLE
from tlt_workloads.rollout.speculation import SpeculationOrder, check_settings
from tlt_workloads.rollout.stats import TOTALS
from tlt_workloads.rollout.updates import Finder, GapWatch, Updates
from tlt_workloads.store import open_store

LARGEST_BATCH_VARIABLE = "TLT_LARGEST_SPECULATED_BATCH"  # fixed modes draft nothing above this many requests
LARGEST_BATCH_DEFAULT = 32
NO_DRAFTER = "capture: the server was started without speculation, so no hidden states can be recorded"


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What the routes work with.

    `has_trained_drafter` tells of the drafter that the server started with, `has_ngrams` whether there can be n-grams.
    """

    pod: RolloutPod
    updates: Updates
    job_folder: JobFolder
    model: str
    takes_nccl: bool
    workers: int  # that take weights
    longest_draft: int
    largest_batch: int
    has_trained_drafter: bool
    has_ngrams: bool

    async def configure(self, config: RolloutConfig) -> tuple[str, ...]:
        """Takes the job's settings; what cannot be done is said in the warnings.

        Raises:
            SpeculationRefusedError: the engine cannot speculate as asked.
            StoreError: the store's URL cannot be used.
        """
        digest = config_digest(config)
        warnings = () if self.pod.identity.drafter_method or not config.capture.enabled else (NO_DRAFTER,)
        if digest == self.pod.config_digest:
            return warnings
        await asyncio.to_thread(open_store, config.store_url)  # its client may take seconds to find credentials
        self.job_folder.url = job_folder(config.store_url, config.job)
        self.pod.set_idle_after(config.idle_after)
        if self.pod.identity.drafter_method:
            await self.pod.engine.capture(
                CaptureOrder(
                    store_url=self.job_folder.url,
                    folder=f"{HIDDEN_STATES_FOLDER}/{os.environ.get(POD_NAME_VARIABLE) or os.uname().nodename}",
                    model=self.model,
                    settings=config.capture,
                )
            )
            await self.set_speculation(config.speculation)
        self.pod.config_digest = digest
        self.pod.note()
        return warnings

    async def load_drafter(self, load: DrafterLoad, *, find: Finder) -> DrafterLoaded:
        """Puts a revision in place; see `Updates.load_drafter`."""
        loaded = await self.updates.load_drafter(load, find=find)
        await self.speculate(is_new_drafter=True)
        return loaded

    async def unload_drafter(self) -> None:
        """Puts the drafter back that the server started with; see `Updates.unload_drafter`."""
        if await self.updates.unload_drafter():
            await self.speculate(is_new_drafter=True)

    async def set_speculation(self, settings: SpeculationSettings) -> None:
        """Mode and draft length from the next step on.

        Raises:
            SpeculationRefusedError: the engine cannot speculate like that.
        """
        check_settings(settings, longest=self.longest_draft, has_ngrams=self.has_ngrams)
        self.pod.speculation = settings
        await self.speculate()
        self.pod.note()

    async def speculate(self, *, is_new_drafter: bool = False) -> None:
        """Tells the engine what holds now."""
        if self.pod.identity.drafter_method:
            await self.pod.engine.speculate(
                SpeculationOrder(
                    settings=self.pod.speculation,
                    has_drafter=self.has_trained_drafter or self.pod.drafter_revision is not None,
                    is_new_drafter=is_new_drafter,
                    largest_batch=self.largest_batch,
                )
            )

    async def report_speculation(self) -> SpeculationReport:
        """What the engine drafts and knows."""
        if self.pod.identity.drafter_method:
            return await self.pod.engine.speculation_report()
        off = SpeculationMode.OFF
        return SpeculationReport(mode=off, draft_length=0, sources=(), lost_share=0.0, buckets=())


async def assemble(client: Any, args: Namespace) -> Rollout:
    """Builds the pod around vLLM's client once the engine is up."""
    config = client.vllm_config
    speculative = config.speculative_config
    page: CounterPage = inherited_page() or create_page()
    meter = AcceptanceMeter(page)
    pod = RolloutPod(
        VllmEngine(client),
        identity=Identity(
            served_names=tuple(args.served_model_name or [args.model]),
            engine_version=engine_version(),
            plugin_version=_plugin_version(),
            drafter_method=None if speculative is None else speculative.method,
            can_sleep=bool(config.model_config.enable_sleep_mode) and config.device_config.device_type != "cpu",
            visible_devices=visible_devices(os.environ),
        ),
        readings=Readings(
            waiting=lambda: TOTALS.waiting,
            generated_tokens=lambda: TOTALS.generated_tokens,
            acceptance=meter.learned,
            ngram=meter.ngram,
            drafting=page.drafting,
            capture=page.capture,
        ),
    )
    longest = 0
    if speculative is not None:
        longest = speculative.num_speculative_tokens
        pod.speculation = SpeculationSettings(mode=SpeculationMode.ADAPTIVE, draft_length=longest)
        pod.own_drafter_digest = _digest_of(Path(speculative.draft_model_config.model) / WEIGHTS_FILE)
        pod.drafter_digest = pod.own_drafter_digest
    rollout = Rollout(
        pod=pod,
        updates=Updates(
            pod,
            on_new_drafter=meter.restart,
            longest_gap=GapWatch(start=TOTALS.watch_gaps, stop=TOTALS.longest_gap),
        ),
        job_folder=JobFolder.from_environment(),
        model=args.model,
        takes_nccl=config.device_config.device_type != "cpu",
        workers=config.parallel_config.world_size_across_dp,
        longest_draft=longest,
        largest_batch=int(os.environ.get(LARGEST_BATCH_VARIABLE) or LARGEST_BATCH_DEFAULT),
        has_ngrams=speculative is not None and not config.scheduler_config.async_scheduling,
        has_trained_drafter=os.environ.get(UNTRAINED_VARIABLE) != "1",
    )
    await rollout.speculate()
    publish(pod)
    return rollout


def _digest_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    return open_store(str(path.parent.absolute())).sha256(path.name)


def _plugin_version() -> str:
    try:
        return importlib.metadata.version("tlt-operator")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
