"""A store that fails costs the tokens at hand: counted by reason, said once, over when it is over."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.eventually import eventually
from tests.support.recorder_bench import FOLDER, RecorderBench, warnings_of_the_capture
from tlt_workloads.contract import CaptureDrops
from tlt_workloads.rollout import recorder
from tlt_workloads.rollout.counters import Drop
from tlt_workloads.shards import shard_entries
from tlt_workloads.store import Store, StoreProblem, store_problem


class FaultyFiles(MemoryFileSystem):  # type: ignore[misc]
    """An object store that fails as it is told to, or does not answer."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.writing = threading.Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **rest: Any) -> None:
        self.writing.set()
        self.answers.wait()
        if self.error is not None:
            raise self.error
        super().pipe_file(path, value, mode=mode, **rest)


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def store(files: FaultyFiles) -> Store:
    return Store("memory://faulty", files, f"/{uuid.uuid4()}")


def test_each_reason_has_its_total() -> None:
    assert {drop.value for drop in Drop} == set(CaptureDrops.__dataclass_fields__)


class EndpointConnectionError(Exception):
    """As botocore names it."""


class NoCredentialsError(Exception):
    """As botocore names it."""


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreProblem.FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StoreProblem.FULL),
        (OSError(errno.EROFS, "Read-only file system"), StoreProblem.READ_ONLY),
        (PermissionError("The request signature does not match"), StoreProblem.DENIED),
        (NoCredentialsError("Unable to locate credentials"), StoreProblem.DENIED),
        (FileNotFoundError("The specified bucket does not exist"), StoreProblem.GONE),
        (OSError(errno.ESTALE, "Stale file handle"), StoreProblem.GONE),
        (EndpointConnectionError("Could not connect"), StoreProblem.GONE),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset"), StoreProblem.GONE),
        (RuntimeError("?"), StoreProblem.FAILED),
    ],
)
def test_what_a_failure_means(error: Exception, problem: StoreProblem) -> None:
    assert store_problem(error) is problem
    wrapped = RuntimeError("while writing")
    wrapped.__cause__ = error
    assert store_problem(wrapped) is problem


def test_an_outage_is_counted_for_each_shard_and_said_once(store: Store, files: FaultyFiles) -> None:
    bench = RecorderBench(store)
    with warnings_of_the_capture() as said:
        files.error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        for number in range(1, 4):
            bench.sequence(f"lost-{number}")
            lost = 20 * number
            eventually(lambda: bench.counts["dropped_store_read_only"] == lost, reason="the loss is counted")  # noqa: B023
        files.error = None
        bench.sequence("kept")
        names = bench.stop()
    assert names == ["00000000-p1-t20.safetensors"]
    assert bench.counts["tokens"] == 20
    assert len(said) == 2
    assert "mounted read-only: mount the volume for writing" in said[0]
    assert said[1].endswith("the store works again; 60 tokens were lost meanwhile")


def test_another_problem_is_said_again(store: Store, files: FaultyFiles) -> None:
    bench = RecorderBench(store)
    with warnings_of_the_capture() as said:
        for error in (errno.EROFS, errno.ENOSPC, errno.ENOSPC):
            files.error = OSError(error, os.strerror(error))
            before = sum(bench.counts.values())
            bench.sequence(f"{error}-{before}")
            eventually(lambda: sum(bench.counts.values()) > before, reason="the loss is counted")  # noqa: B023
        bench.stop()
    assert [text.split(" (")[0].partition("; ")[2] for text in said] == [
        StoreProblem.READ_ONLY.value,
        StoreProblem.FULL.value,
    ]


def test_while_a_store_does_not_answer_steps_are_dropped_and_nothing_waits(
    store: Store, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "PENDING_BYTES", 3 * 20 * 16)
    bench = RecorderBench(store)
    files.answers.clear()
    with warnings_of_the_capture() as said:
        bench.sequence("first")
        assert files.writing.wait(10)
        taken = [bench.sequence(f"waits-{number}") for number in range(6)]  # returns, though nobody writes
        assert taken == [True] * 3 + [False] * 3
        assert bench.counts["dropped_behind"] == 60
        files.answers.set()
        eventually(lambda: bench.counts["sequences"] == 4, reason="what waited is written")
        assert bench.sequence("afterwards")
        bench.stop()
    assert bench.counts["sequences"] == 5
    assert len(said) == 1
    assert "slower than the engine" in said[0]


def test_a_ring_that_was_out_of_reach_is_listed_anew(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path)
    bench.sequence("before")
    eventually(lambda: bench.counts["shards"] == 1, reason="the shard is written")
    folder, away = tmp_path / "hidden-states", tmp_path / "away"
    folder.rename(away)
    folder.write_text("a file where the folder should be")
    bench.sequence("lost")
    eventually(lambda: bench.counts["dropped_store_gone"] == 20, reason="the loss is counted")
    folder.unlink()
    away.rename(folder)
    bench.sequence("after")
    assert bench.stop() == ["00000000-p1-t20.safetensors", "00000001-p1-t20.safetensors"]
    assert [entry.number for entry in shard_entries(bench.store, FOLDER)] == [0, 1]
