"""The supervisor against a rollout pod's lease: a worker runs exactly while the lease is granted and there is data."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout
from tests.support.stubborn import ignore_termination
from tests.support.toy_language import ToyLanguage
from tlt_workloads.contract import (
    LEASE_ROUTE,
    TRAINER_ROUTE,
    LeaseRequest,
    TrainerPhase,
    TrainerState,
    WindowReport,
    decode,
    encode,
)
from tlt_workloads.store import Store
from tlt_workloads.tokens import TokenFile
from tlt_workloads.trainer.leases import LeaseClient
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.status import StatusBoard, status_application
from tlt_workloads.trainer.supervisor import Supervisor
from tlt_workloads.trainer.window import (
    WindowEnd,
    WorkerEnded,
    WorkerFailed,
    WorkerMessage,
    WorkerReady,
    WorkerSkipped,
    WorkerStepped,
)
from tlt_workloads.trainer.workshop import Worker, Workshop

TOKEN = "secret"


class FakeWorker:
    """A worker whose end the test decides, and that notes what is asked of it."""

    pid = 1

    def __init__(self, on_message: Callable[[WorkerMessage], None], events: list[str]) -> None:
        self.tell = on_message
        self.was_killed = False
        self.writes_for_long = False
        self._events = events
        self._released = asyncio.Event()
        self._gone = asyncio.Event()
        self._code = 0

    def release(self) -> None:
        self._events.append("worker off the device")
        self._released.set()

    def end(self, *messages: WorkerMessage, code: int = 0) -> None:
        for message in messages:
            self.tell(message)
        self._code = code
        self._released.set()
        self._gone.set()

    async def released(self) -> None:
        await self._released.wait()

    async def wait(self, *, limit: float | None = None) -> int:
        await self._gone.wait()
        return self._code

    async def stop(self, *, grace: float) -> None:
        self._events.append("worker asked to stop")
        self.release()
        if not self.writes_for_long:
            self.end(WorkerEnded(end=WindowEnd.STOPPED, peak_memory=5))


class FakeWorkshop(Workshop):
    """Hands out fake workers without a second process."""

    def __init__(self, events: list[str]) -> None:
        self.workers: list[FakeWorker] = []
        self._events = events

    async def warm_up(self) -> float:
        return 0.0

    async def start(self, order: WindowOrder, on_message: Callable[[WorkerMessage], None]) -> Worker:
        worker = FakeWorker(on_message, self._events)
        self.workers.append(worker)
        self._events.append("worker started")
        return worker  # type: ignore[return-value]


class Pod:
    """A supervisor with its fake surroundings."""

    def __init__(self, supervisor: Supervisor, board: StatusBoard, rollout: FakeRollout, workshop: Workshop) -> None:
        self.supervisor, self.board, self.rollout, self.workshop = supervisor, board, rollout, workshop
        self.events: list[str] = []

    async def lend(self, *, holder: str | None = None) -> None:
        """The operator grants a lease."""
        wanted = LeaseRequest(holder=holder or self.board.state().holder, ttl=30.0)
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
            session.post(
                f"http://{self.rollout.address}:{self.rollout.port}{LEASE_ROUTE}", json=encode(wanted)
            ) as answer,
        ):
            assert answer.status == 201

    async def worker(self) -> FakeWorker:
        """The newest worker once there is one."""
        workshop = self.workshop
        assert isinstance(workshop, FakeWorkshop)
        await eventually_async(lambda: self.board.facts.phase is TrainerPhase.TRAINING, reason="training")
        return workshop.workers[-1]

    async def window(self, count: int = 1) -> WindowReport:
        """The report of the last window once so many have ended and the lease is given back."""
        await eventually_async(lambda: self.board.facts.windows == count and self.rollout.lease is None)
        assert self.board.facts.last_window is not None
        return self.board.facts.last_window


@asynccontextmanager
async def trainer_pod(
    settings: TrainerSettings, *, workshop: Workshop | None = None, events: list[str] | None = None
) -> AsyncIterator[Pod]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    events = [] if events is None else events
    rollout = FakeRollout("127.0.0.1", port, token=TOKEN, idle_after=0.0)
    end_lease = rollout.end_lease

    def note_and_end() -> None:
        events.append("lease given back")
        end_lease()

    rollout.end_lease = note_and_end  # type: ignore[method-assign]
    await rollout.start()
    board = StatusBoard(holder=settings.holder)
    shop = workshop or FakeWorkshop(events)
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        leases = LeaseClient(session, rollout_url=url, holder=settings.holder, tokens=TokenFile(settings.token_file))
        supervisor = Supervisor(settings, board=board, leases=leases, workshop=shop)
        running = asyncio.create_task(supervisor.run())
        pod = Pod(supervisor, board, rollout, shop)
        pod.events = events
        try:
            await eventually_async(lambda: board.facts.phase is not TrainerPhase.STARTING, deadline=120.0)
            yield pod
        finally:
            supervisor.shut_down()
            await running
            await rollout.stop()


@pytest.fixture
def recorded(store: Store, language: ToyLanguage) -> None:
    language.write_shards(store, count=8)


@pytest.mark.usefixtures("recorded")
async def test_a_request_takes_the_device_back_from_the_worker(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        worker = await pod.worker()
        worker.tell(WorkerReady())
        worker.tell(WorkerStepped(steps=1, tokens=90, loss=5.0))
        worker.tell(WorkerStepped(steps=2, tokens=180, loss=4.0))
        pod.rollout.generate()
        window = await pod.window()
        assert pod.events == ["worker started", "worker asked to stop", "worker off the device", "lease given back"]
        assert window.stop_reason == "Request"
        assert (window.steps, window.tokens, window.loss_first, window.loss_last) == (2, 180, 5.0, 4.0)
        assert window.lease_to_first_step is not None
        assert pod.board.facts.phase is TrainerPhase.WAITING
        assert pod.board.facts.peak_memory == 5


@pytest.mark.usefixtures("recorded")
async def test_the_device_is_back_before_the_checkpoint_is_written(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        worker = await pod.worker()
        worker.writes_for_long = True
        pod.rollout.generate()
        await eventually_async(lambda: "lease given back" in pod.events)
        assert pod.board.facts.phase is TrainerPhase.STOPPING
        assert pod.board.facts.windows == 0
        worker.end(WorkerEnded(end=WindowEnd.STOPPED, peak_memory=5))
        assert (await pod.window()).stop_reason == "Request"
        assert pod.events == ["worker started", "worker asked to stop", "worker off the device", "lease given back"]


@pytest.mark.usefixtures("recorded")
async def test_a_worker_that_has_used_everything_gives_back_before_it_has_written(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        worker = await pod.worker()
        worker.release()
        await eventually_async(lambda: "lease given back" in pod.events)
        assert pod.board.facts.phase is not TrainerPhase.WAITING
        worker.end(WorkerEnded(end=WindowEnd.DONE, peak_memory=7))
        assert (await pod.window()).stop_reason == "Done"


async def test_a_lease_without_data_is_given_back_at_once(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        assert (await pod.window()).stop_reason == "NoData"
        assert pod.events == ["lease given back"]


@pytest.mark.usefixtures("recorded")
async def test_a_worker_that_has_used_everything_ends_the_lease(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        (await pod.worker()).end(WorkerEnded(end=WindowEnd.DONE, peak_memory=7))
        assert (await pod.window()).stop_reason == "Done"
        await pod.lend()
        (await pod.worker()).end(WorkerEnded(end=WindowEnd.DONE, peak_memory=3))
        await pod.window(2)
        assert pod.board.facts.peak_memory == 7


@pytest.mark.usefixtures("recorded")
async def test_a_rollout_pod_that_is_gone_stops_the_worker(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        await pod.worker()
        await pod.rollout.stop()
        await eventually_async(lambda: pod.board.facts.windows == 1)
        assert pod.events == ["worker started", "worker asked to stop", "worker off the device"]
        window = pod.board.facts.last_window
        assert window is not None
        assert window.stop_reason == "Error: rollout pod unreachable"


@pytest.mark.usefixtures("recorded")
async def test_a_rebooted_rollout_pod_knows_of_no_lease_so_the_worker_stops(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        await pod.worker()
        await pod.rollout.reboot()
        window = await pod.window()
        assert window.stop_reason in ("Expired", "Error: rollout pod unreachable")
        await pod.lend()
        await pod.worker()


@pytest.mark.usefixtures("recorded")
async def test_another_holders_lease_is_none_of_our_business(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend(holder="somebody/else")
        pod.rollout.bump()
        await asyncio.sleep(0.1)
        assert pod.events == []
        assert pod.board.facts.phase is TrainerPhase.WAITING


@pytest.mark.usefixtures("recorded")
async def test_a_failed_window_is_reported_and_the_next_one_refused_for_a_while(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        (await pod.worker()).end(WorkerFailed(message="out of memory", permanent=False), code=1)
        assert (await pod.window()).stop_reason == "Error: out of memory"
        assert pod.board.facts.message == "out of memory"
        await pod.lend()
        assert (await pod.window(2)).stop_reason == "Error: out of memory"
        assert pod.events.count("worker started") == 1


@pytest.mark.usefixtures("recorded")
async def test_a_worker_that_dies_without_a_word_is_a_failure(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        (await pod.worker()).end(code=-9)
        assert (await pod.window()).stop_reason == "Error: worker ended with exit code -9"


@pytest.mark.usefixtures("recorded")
async def test_a_missing_target_fails_the_pod_with_a_message_and_it_recovers_when_mounted(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    absent = tmp_path / "absent"
    missing = replace(settings, config=replace(settings.config, target_model=str(absent)))
    async with trainer_pod(missing) as pod:
        assert pod.board.facts.phase is TrainerPhase.FAILED
        assert "spec.target.model" in pod.board.facts.message
        assert str(absent) in pod.board.facts.message
        await pod.lend()
        assert (await pod.window()).stop_reason.startswith("Error: spec.target.model")
        absent.symlink_to(settings.config.target_model)
        await eventually_async(lambda: pod.board.facts.phase is TrainerPhase.WAITING)


@pytest.mark.usefixtures("recorded")
async def test_shards_that_cannot_be_read_are_counted_once_whoever_met_them(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        for window, broken in enumerate((["a"], ["a", "b"], []), start=1):
            await pod.lend()
            worker = await pod.worker()
            worker.tell(WorkerSkipped(shards=frozenset(broken)))
            worker.end(WorkerEnded(end=WindowEnd.DONE, peak_memory=1))
            await pod.window(window)
        assert pod.board.state().skipped_shards == 2


@pytest.mark.usefixtures("recorded")
async def test_the_end_of_the_pod_stops_the_worker_and_gives_the_lease_back(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await pod.lend()
        await pod.worker()
        pod.supervisor.shut_down()
        assert (await pod.window()).stop_reason == "Shutdown"
        assert pod.events == ["worker started", "worker asked to stop", "worker off the device", "lease given back"]


@pytest.mark.usefixtures("recorded")
async def test_tokens_and_revisions_in_the_store_are_shown_after_a_restart(settings: TrainerSettings) -> None:
    async with trainer_pod(settings) as pod:
        await eventually_async(lambda: pod.board.state().available_tokens == 8 * 102)
        assert pod.board.state().candidates == ()


async def test_a_worker_that_ignores_being_asked_is_killed_after_the_grace() -> None:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=ignore_termination, args=(sender,))
    process.start()
    sender.close()
    messages: list[WorkerMessage] = []
    worker = Worker(process, receiver, messages.append)
    await eventually_async(lambda: messages == [WorkerReady()], deadline=60.0)
    await worker.stop(grace=0.05)
    assert worker.was_killed
    assert await worker.wait() == -9


async def test_the_status_is_shown_to_those_who_have_the_token_and_waits_for_news(settings: TrainerSettings) -> None:
    board = StatusBoard(holder=settings.holder)
    runner = web.AppRunner(status_application(board, tokens=TokenFile(settings.token_file)), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/healthz") as answer:
                assert answer.status == 200
            async with session.get(f"{url}{TRAINER_ROUTE}") as answer:
                assert answer.status == 401
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with session.get(f"{url}{TRAINER_ROUTE}?seq=x", headers=headers) as answer:
                assert (await answer.json())["error"]["reason"] == "BadQuery"
            async with session.get(f"{url}{TRAINER_ROUTE}", headers=headers) as answer:
                first = decode(TrainerState, await answer.json())
            news = asyncio.create_task(_state(session, f"{url}{TRAINER_ROUTE}?seq={first.seq}&wait=30"))
            await asyncio.sleep(0)
            board.update(phase=TrainerPhase.WAITING)
            second = await news
            assert (first.phase, second.phase) == (TrainerPhase.STARTING, TrainerPhase.WAITING)
            assert second.seq > first.seq
            assert second.boot == first.boot
            third = await _state(session, f"{url}{TRAINER_ROUTE}?seq={second.seq}&wait=0.01")
            assert third.seq == second.seq
    finally:
        await runner.cleanup()


async def _state(session: aiohttp.ClientSession, url: str) -> TrainerState:
    async with session.get(url, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
        return decode(TrainerState, await answer.json())


@pytest.mark.usefixtures("recorded")
async def test_a_real_worker_trains_stops_when_asked_and_leaves_a_checkpoint(settings: TrainerSettings) -> None:
    """The whole pod but for the rollout engine: fork server, forked worker, drafter, store."""
    patient = replace(settings, config=replace(settings.config, grace=30.0))
    async with trainer_pod(patient, workshop=Workshop()) as pod:
        await pod.lend()
        await eventually_async(lambda: pod.board.facts.trained_tokens > 600, deadline=240.0, reason="training")
        pod.rollout.generate()
        window = await pod.window()
        assert window.stop_reason in ("Request", "Done")
        assert window.steps > 0
        await eventually_async(lambda: pod.board.facts.available_tokens < 8 * 102)
