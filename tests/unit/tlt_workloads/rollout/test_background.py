"""What can wait gives way to the engine."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from tlt_workloads.rollout.background import LOW_PRIORITY, background_thread


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to whole processes")
def test_the_thread_gives_way_and_the_others_of_its_process_do_not() -> None:
    before, found = nice(), []
    thread = background_thread(lambda: found.append(nice()), name="reads")
    assert not found, "it is started by whoever asked for it"
    thread.start()
    thread.join()
    assert found == [min(19, max(before, LOW_PRIORITY))]
    assert nice() == before


def test_a_sandbox_that_forbids_it_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    done: list[int] = []
    thread = background_thread(lambda: done.append(1), name="reads")
    thread.start()
    thread.join()
    assert done == [1]
