"""What several replicas cost and whether they learn the same: 1 -> 2 -> 1 trainers against one that does it all.

One server with the plugin answers questions, and its hidden states are recorded.  Then two jobs learn from the same
recording until every token has been used as often as it may be.  In one a single worker on one core does all of it.  In
the other a second worker on another core joins when a quarter is done, and is killed with SIGKILL at the half.  Both
drafters are compared on the sequences that neither was trained on.  After that a second worker is killed again and
again, for how long the first one stands still.

Workers are the trainer's own processes, started as its supervisor starts them; a core stands for an accelerator.

python -m bench.elastic [--tokens 12000] [--kills 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

import torch

from bench import engines, tables
from bench.demo.console import Console
from bench.lesson import LEARNING_RATE, Lesson
from tests.support.eventually import eventually_async
from tests.support.lighthouse import Lighthouse, lighthouse
from tests.support.rollout_server import JOB, rollout_server
from tlt_workloads.contract import TrainerConfig
from tlt_workloads.drafter import TargetFiles
from tlt_workloads.shards import ShardMetadata
from tlt_workloads.store import open_store
from tlt_workloads.trainer.checkpoint import load_checkpoint
from tlt_workloads.trainer.data import DataSettings, Feed
from tlt_workloads.trainer.evaluate import score_sequences, summarise
from tlt_workloads.trainer.model import Objective, build_drafter, draft_loss, read_frozen_target
from tlt_workloads.trainer.packing import Piece, pack, usable_rows
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.start import shape_of_drafter, start_from
from tlt_workloads.trainer.target import find_target
from tlt_workloads.trainer.window import WindowEnd, WorkerEnded, WorkerMessage, WorkerStepped
from tlt_workloads.trainer.workshop import Worker, Workshop

DRAFT_LENGTH = 4
JOIN_AT, KILL_AT = 0.25, 0.5  # of the positions
HELD_OUT_TOKENS = 20_000  # at most
LONGEST_PIECE = 512  # rows of a held-out sequence that the loss is taken of
PATIENCE = 600.0  # s for anything to happen


@dataclass(frozen=True, kw_only=True)
class Step:
    """A micro-step, as the supervisor hears of it."""

    at: float
    tokens: int  # of the whole window
    replicas: int


class Replica:
    """A worker of the trainer on one core."""

    def __init__(self, settings: TrainerSettings, *, name: str, core: int) -> None:
        self.steps: list[Step] = []
        self.end: WindowEnd | None = None
        self._settings = replace(settings, holder=f"bench-{name}/{name * 8}", cores=(core,))
        self._worker: Worker | None = None

    async def start(self, workshop: Workshop) -> None:
        """Forks it."""
        self._worker = await workshop.start(WindowOrder(settings=self._settings, lease_id="bench"), self._listen)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits for something that its steps tell.

        Raises:
            AssertionError: it did not come.
        """
        await eventually_async(holds, deadline=PATIENCE, reason=f"of the last step {self.steps[-1:]}: what was awaited")

    async def wait(self) -> None:
        """Waits until it has used all there is.

        Raises:
            RuntimeError: it ended otherwise.
        """
        assert self._worker is not None
        await self._worker.wait()
        if self.end is not WindowEnd.DONE:
            raise RuntimeError(f"a worker ended with {self.end}")

    def kill(self) -> float:
        """Ends it without any warning; returns when."""
        assert self._worker is not None
        os.kill(self._worker.pid, signal.SIGKILL)
        return time.monotonic()

    async def stop(self) -> None:
        """Ends it as a request for its device does."""
        assert self._worker is not None
        await self._worker.stop(grace=2.0)
        await self._worker.wait(limit=60.0)

    def _listen(self, message: WorkerMessage) -> None:
        if isinstance(message, WorkerStepped):
            self.steps.append(Step(at=time.monotonic(), tokens=message.tokens, replicas=message.replicas))
        elif isinstance(message, WorkerEnded):
            self.end = message.end


async def alone(workshop: Workshop, settings: TrainerSettings) -> Replica:
    """One worker does it all."""
    one = Replica(settings, name="a", core=0)
    await one.start(workshop)
    await one.wait()
    return one


async def together(workshop: Workshop, settings: TrainerSettings, *, positions: int) -> tuple[Replica, float]:
    """1 -> 2 -> 1; the one that is there all the time, and when the other one was killed."""
    one, other = Replica(settings, name="a", core=0), Replica(settings, name="b", core=1)
    await one.start(workshop)
    await one.until(lambda: bool(one.steps) and one.steps[-1].tokens >= JOIN_AT * positions)
    await other.start(workshop)
    await one.until(lambda: one.steps[-1].tokens >= KILL_AT * positions)
    if one.steps[-1].replicas != 2:
        raise RuntimeError("the second worker had not joined when it was to be killed: record more tokens")
    killed = other.kill()
    await one.wait()
    return one, killed


async def stalls(workshop: Workshop, settings: TrainerSettings, *, kills: int) -> list[float]:
    """Seconds from the death of a second worker to the next step of the first one."""
    found: list[float] = []
    one = Replica(settings, name="a", core=0)
    await one.start(workshop)
    for _ in range(kills):
        other = Replica(settings, name="b", core=1)
        await other.start(workshop)
        await one.until(lambda: bool(one.steps) and one.steps[-1].replicas == 2)
        seen = len(one.steps)
        await one.until(lambda: len(one.steps) > seen + 3)  # noqa: B023 - waited for within this turn
        killed = other.kill()
        await one.until(lambda: one.steps[-1].replicas == 1)
        found.append(stall(one, killed))
    await one.stop()
    return found


def stall(one: Replica, killed: float) -> float:
    """From a moment to the first step after it that was taken alone, steps under way included."""
    return min(step.at for step in one.steps if step.at > killed and step.replicas == 1) - killed


def path(one: Replica) -> int:
    """How many trained together, one digit for each change."""
    return int("".join(str(replicas) for replicas, _ in groupby(step.replicas for step in one.steps)))


def rate(one: Replica, *, replicas: int) -> float:
    """Positions per second of all while so many trained together: the median over steps."""
    rates = [
        (after.tokens - before.tokens) / (after.at - before.at)
        for before, after in pairwise(one.steps)
        if before.replicas == after.replicas == replicas
    ]
    return statistics.median(rates)


def held_out(settings: TrainerSettings) -> tuple[float, float]:
    """Mean loss and accept length of a job's drafter on what it was not trained on."""
    store = open_store(settings.job_store_url)
    found = load_checkpoint(store)
    if found is None:
        raise RuntimeError(f"{settings.job}: no checkpoint")
    start, target = start_from(*found), TargetFiles(find_target(settings.config.target_model))
    shape = shape_of_drafter(settings.config, target)
    feed = Feed(
        store,
        metadata=ShardMetadata(model=settings.config.target_model, layer_ids=shape.layer_ids),
        settings=DataSettings(max_policy_lag=settings.config.max_policy_lag, draft_length=DRAFT_LENGTH),
        progress={},
    )
    feed.refresh()
    sequences = feed.held_out(tokens=HELD_OUT_TOKENS)
    frozen = read_frozen_target(target, start.tensors.get("t2d"))
    model = build_drafter(shape, start.tensors, frozen, draft_length=DRAFT_LENGTH, device=torch.device("cpu"))
    loss, positions = 0.0, 0
    with torch.no_grad():
        for sequence in sequences:
            rows = usable_rows(sequence)
            piece = Piece(sequence, rows.start, min(rows.stop, rows.start + LONGEST_PIECE))
            if len(piece) <= DRAFT_LENGTH:
                continue
            batch = pack([piece], draft_length=DRAFT_LENGTH)
            if batch.trained_tokens:
                loss += float(draft_loss(model, batch, Objective(draft_length=DRAFT_LENGTH))) * batch.trained_tokens
                positions += batch.trained_tokens
    scores = score_sequences(model, sequences, draft_length=DRAFT_LENGTH, check=lambda: None)
    return loss / positions, summarise(scores).accept_length


def job_settings(folder: Path, model: Path, name: str, *, lighthouse_url: str | None) -> TrainerSettings:
    """A job that learns from a copy of what was recorded."""
    shutil.copytree(folder / "store" / JOB / "hidden-states", folder / "store" / "bench" / name / "hidden-states")
    return TrainerSettings(
        job=f"bench/{name}",
        store_url=f"file://{folder}/store",
        rollout_url="http://127.0.0.1:9",
        holder="bench/00000000",
        token_file=folder / "token",
        config=TrainerConfig(
            target_model=str(model), draft_length=DRAFT_LENGTH, learning_rate=LEARNING_RATE, micro_batch_tokens=128
        ),
        publish_tokens=sys.maxsize,  # judging takes time and would be another amount of it in each job
        lighthouse_url=lighthouse_url,
        team_port=0,
    )


async def train(
    console: Console, folder: Path, model: Path, light: Lighthouse, *, kills: int
) -> dict[str, float | int | None]:
    """Both jobs, and the deaths."""
    workshop = Workshop()
    with console.stage("the workers' imports", expected=30):
        await workshop.warm_up()
    single = job_settings(folder, model, "single", lighthouse_url=None)
    team = job_settings(folder, model, "team", lighthouse_url=light.url)
    with console.stage("one worker does it all", expected=180):
        one = await alone(workshop, single)
    with console.stage("1 -> 2 -> 1 workers", expected=150):
        first, killed = await together(workshop, team, positions=one.steps[-1].tokens)
    with console.stage(f"{kills} more deaths", expected=kills * 10):
        deaths = [stall(first, killed)]
        deaths += await stalls(workshop, job_settings(folder, model, "deaths", lighthouse_url=light.url), kills=kills)
    with console.stage("held-out loss", expected=30):
        loss, length = await asyncio.to_thread(held_out, single)
        team_loss, team_length = await asyncio.to_thread(held_out, team)
    seconds = one.steps[-1].at - one.steps[0].at
    return {
        "replicas_path": path(first),
        "held_out_loss_ratio": loss / team_loss,
        "kill_stall_s": max(deaths),
        "kill_stall_median_s": statistics.median(deaths),
        "kills": len(deaths),
        "trained_positions": one.steps[-1].tokens,
        "trained_positions_team": first.steps[-1].tokens,
        "held_out_loss": loss,
        "held_out_loss_team": team_loss,
        "accept_length": length,
        "accept_length_team": team_length,
        "two_replicas_throughput_ratio": rate(first, replicas=2) / rate(first, replicas=1),
        "time_ratio": seconds / (first.steps[-1].at - first.steps[0].at),
    }


def measure(console: Console, *, tokens: int, kills: int, recorded: Path | None) -> dict[str, float | int | None]:
    """Runs everything on this machine.

    Args:
        console: to tell of it.
        tokens: to record.
        kills: of a second worker, beyond the one in the middle.
        recorded: a job's folder with hidden states of the small model, in the place of new ones.
    """
    model, captured = engines.small_model(), None
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if recorded is None:
            with console.stage("a server", expected=60):
                server = stack.enter_context(rollout_server(model, *engines.FLAGS, folder=folder))
            with console.stage(f"recording {tokens} tokens", expected=tokens / 200):
                lesson = Lesson(server, model, draft_length=DRAFT_LENGTH, seed=1)
                lesson.capture(tokens)
            captured = lesson.recorded  # whole answers, so somewhat more
            stack.close()  # its cores are the workers' now
        else:
            shutil.copytree(recorded / "hidden-states", folder / "store" / JOB / "hidden-states")
        (folder / "token").write_text("bench")
        with lighthouse() as light:
            found = asyncio.run(train(console, folder, model, light, kills=kills))
    return {"captured_tokens": captured} | found


def main() -> int:
    """Measures, writes bench/results/elastic.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.elastic", description=__doc__)
    parser.add_argument("--tokens", type=int, default=12_000, help="to record (default 12000)")
    parser.add_argument("--kills", type=int, default=5, help="beyond the one in the middle (default 5)")
    parser.add_argument("--recorded", type=Path, help="a job's folder to learn from instead; nothing is published then")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    for name in ("tokens", "kills"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: {getattr(options, name)} is not above 0")
    found = measure(Console(), tokens=options.tokens, kills=options.kills, recorded=options.recorded)
    tables.publish("elastic", found, dry=options.dry or options.recorded is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
