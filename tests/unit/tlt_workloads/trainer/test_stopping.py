"""When SIGTERM ends a worker at once, and when it only asks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tlt_workloads.trainer.stopping import StepAbandonedError, StopFlag


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    """A flag that listens; the process is as before afterwards."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    flag = StopFlag()
    flag.listen()
    yield flag
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def test_a_signal_asks_while_there_is_something_to_keep(stop: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.is_set
    with pytest.raises(StepAbandonedError):
        stop.abandon_step()


def test_a_signal_ends_the_process_while_there_is_nothing_to_lose(stop: StopFlag) -> None:
    if (child := os.fork()) == 0:
        with stop.nothing_to_lose():
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_whoever_was_asked_before_does_not_begin(stop: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StepAbandonedError), stop.nothing_to_lose():
        pytest.fail("it has begun")


def test_afterwards_a_signal_asks_again(stop: StopFlag) -> None:
    with stop.nothing_to_lose():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.is_set
