"""Starts workers: a warm process that has imported everything and computed nothing, and forks one worker per window.

The standard library's fork server is that process.  It is single-threaded and never opens a device, so that forking
it is safe, and a fork costs milliseconds where the imports cost many seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tlt_workloads.trainer.settings import WindowOrder
from tlt_workloads.trainer.window import WorkerFailed, WorkerMessage, WorkerReleased

HEAVY_MODULE = "tlt_workloads.trainer.worker"
DYING_SECONDS = 0.1  # that the kernel takes to tear down a killed worker's memory on a busy core


class Workshop:
    """The warm process.  One per supervisor."""

    def __init__(self) -> None:
        _keep_parent_quiet()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([HEAVY_MODULE])

    async def warm_up(self) -> float:
        """Imports everything; returns how many seconds that took.

        Raises:
            RuntimeError: an import failed; its traceback is on stderr.
        """
        start = time.monotonic()
        process = self._context.Process(target=_prove_imports)
        try:
            await asyncio.to_thread(process.start)
            code = await _exit_code(process)
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the warm process died: {error}; the log above has the traceback") from error
        if code != 0:
            raise RuntimeError(f"the trainer's imports failed with exit code {code}; the log above has the traceback")
        return time.monotonic() - start

    async def start(self, order: WindowOrder, on_message: Callable[[WorkerMessage], None]) -> Worker:
        """Forks a worker; its messages arrive in the event loop."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(order, sender), name=f"window-{order.lease_id}")
        try:
            await asyncio.to_thread(process.start)
        finally:
            sender.close()
        return Worker(process, receiver, on_message)


class Worker:
    """One forked process, as its supervisor sees it."""

    def __init__(self, process: BaseProcess, receiver: Connection, on_message: Callable[[WorkerMessage], None]) -> None:
        self._process = process
        self._receiver = receiver
        self._on_message = on_message
        self._drained = asyncio.Event()
        self._released = asyncio.Event()
        self._gone = asyncio.ensure_future(_exit_code(process))
        self._gone.add_done_callback(lambda _: self._released.set())
        self.was_killed = False
        asyncio.get_running_loop().add_reader(receiver.fileno(), self._read)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    async def released(self) -> None:
        """Returns once it has nothing on the device, by its own word or because it is gone."""
        await self._released.wait()

    async def stop(self, *, grace: float) -> None:
        """Asks it to stop, and returns when it has left the device.

        It is killed when that takes longer than the grace, early enough to be gone when the grace is over; a killed
        process always frees its device.
        """
        self._signal(signal.SIGTERM)
        await self._within(max(grace / 2, grace - DYING_SECONDS), self.released())
        await self.released()

    async def wait(self, *, limit: float | None = None) -> int:
        """Returns the exit code once the process is gone and its last message was handed on.

        Args:
            limit: seconds after which it is killed.
        """
        if limit is not None:
            await self._within(limit, asyncio.shield(self._gone))
        code = await asyncio.shield(self._gone)
        await self._drained.wait()
        return code

    async def _within(self, seconds: float, end: Awaitable[object]) -> None:
        try:
            await asyncio.wait_for(end, seconds)
        except TimeoutError:
            self.was_killed = True
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _read(self) -> None:
        try:
            message = self._receiver.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._receiver.fileno())
            self._receiver.close()
            self._drained.set()
            return
        if isinstance(message, WorkerReleased):
            self._released.set()
        self._on_message(message)


def _work(order: WindowOrder, messages: Connection) -> None:
    try:
        from tlt_workloads.trainer.worker import run_window
    except Exception as error:
        messages.send(WorkerFailed(message=f"import failed: {error}", permanent=True))
        raise
    run_window(order, messages)


def _prove_imports() -> None:
    importlib.import_module(HEAVY_MODULE)


async def _exit_code(process: BaseProcess) -> int:
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process.sentinel, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(process.sentinel)
    await asyncio.to_thread(process.join)
    return process.exitcode if process.exitcode is not None else -1


def _keep_parent_quiet() -> None:
    """Nothing that the warm process imports may start a thread pool or open a device.

    `speculators` asks at import whether CUDA is there; answered by NVML that does not open the device.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
