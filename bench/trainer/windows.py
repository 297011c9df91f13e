"""From nothing to a first micro-step, from a lease to one, and what a worker's memory comes to."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.results import ROOT
from bench.trainer.job import job_settings
from tlt_workloads.store import open_store
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.window import WorkerEnded, WorkerFailed, WorkerMessage, WorkerReady, WorkerStepped
from tlt_workloads.trainer.workshop import Worker, Workshop

GRACE = 30.0  # s to write the last checkpoint
NEVER = 1 << 60  # tokens until a revision is due: judging one is not part of what is measured
WARM_STEPS = 12  # micro-steps of a window: enough for a checkpoint and for a measured micro-step


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Seconds, and bytes of memory."""

    cold: float  # from the start of the pod's process to the first micro-step of a job that has nothing yet
    warm: tuple[float, ...]  # from the lease to the first micro-step, by window
    ready: tuple[float, ...]  # of these, until state and data are in memory
    peak: int  # of any worker
    base: int  # of the warm process that workers are forked from


def windows(folder: Path, model: Path, *, job: str, count: int, data_memory: int) -> Windows:
    """One pod's life in a process of its own, which forgets checkpoints and revisions that are there."""
    command = [sys.executable, "-m", "bench.trainer.windows", "--folder", str(folder), "--model", str(model)]
    command += ["--job", job]
    command += ["--count", str(count), "--data-memory", str(data_memory), "--began", repr(time.time())]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise RuntimeError("the windows failed; the log above says why")
    found = json.loads(answer.stdout.splitlines()[-1])
    return Windows(**{**found, "warm": tuple(found["warm"]), "ready": tuple(found["ready"])})


class _Course:
    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ready = self.first = 0.0
        self.peak = 0

    def listen(self, worker: Callable[[], Worker]) -> Callable[[WorkerMessage], None]:
        def take(message: WorkerMessage) -> None:
            match message:
                case WorkerReady():
                    self.ready = time.monotonic() - self.began
                case WorkerStepped(steps=steps):
                    self.first = self.first or time.monotonic() - self.began
                    if steps == WARM_STEPS:
                        self.stopping = asyncio.ensure_future(worker().stop(grace=GRACE))
                case WorkerEnded(peak_memory=peak):
                    self.peak = peak
                case WorkerFailed(message=text):
                    raise RuntimeError(text)

        return take


async def _window(workshop: Workshop, settings: TrainerSettings) -> _Course:
    course, workers = _Course(), list[Worker]()
    worker = await workshop.start(WindowOrder(settings=settings, lease_id="bench"), course.listen(lambda: workers[0]))
    workers.append(worker)
    if await worker.wait() or not course.first:
        raise RuntimeError("a worker failed; the log above says why")
    return course


async def _life(settings: TrainerSettings, *, count: int, began: float) -> Windows:
    workshop = Workshop()
    await workshop.warm_up()
    first = await _window(workshop, settings)
    cold = time.time() - began - (time.monotonic() - first.began) + first.first
    courses = [await _window(workshop, settings) for _ in range(count)]
    return Windows(
        cold=cold,
        warm=tuple(course.first for course in courses),
        ready=tuple(course.ready for course in courses),
        peak=max(course.peak for course in (first, *courses)),
        base=_largest_child(),
    )


def _largest_child() -> int:
    """Resident bytes of the largest process below this one: the fork server."""
    lists = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
    children = [child for found in lists for child in found]
    lines = (line for child in children for line in Path(f"/proc/{child}/status").read_text().splitlines())
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), default=0)


def main() -> int:
    """Prints what it found as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer.windows", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--data-memory", type=int, required=True)
    parser.add_argument("--began", type=float, required=True)
    options = parser.parse_args()
    settings = job_settings(options.folder, options.model, job=options.job)
    settings = replace(settings, data_memory_bytes=options.data_memory, publish_tokens=NEVER)
    store = open_store(settings.job_store_url)
    for kind in ("checkpoints", "revisions"):
        store.remove(kind)
    print(json.dumps(asdict(asyncio.run(_life(settings, count=options.count, began=options.began)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
