"""Volumes that are full, read-only or forbidden, for real: what the recorder makes of them, and that it recovers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.recorder_bench import FOLDER, RecorderBench, warnings_of_the_capture
from tlt_workloads.shards import read_shard, shard_entries

KIB = 1 << 10


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 KiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tlt-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"this user may not mount a file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def record(bench: RecorderBench, name: str, *, total: str, tokens: int = 20, version: int = 1) -> None:
    """One sequence, and waits until it is counted as recorded or lost."""
    before = bench.counts[total]
    bench.sequence(name, tokens=tokens, version=version)
    eventually(lambda: bench.counts[total] == before + tokens, reason=f"{total} counts {tokens} more")


def test_a_full_volume(volume: Path) -> None:
    ballast = volume / "ballast"
    ballast.write_bytes(bytes(252 * KIB))
    bench = RecorderBench(volume)
    with warnings_of_the_capture() as said:
        record(bench, "lost", total="dropped_store_full", tokens=2000)
        record(bench, "lost too", total="dropped_store_full", tokens=2000)
        ballast.unlink()
        record(bench, "kept", total="tokens", tokens=2000)
        bench.stop()
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert "make room, or lower spec.capture.maxBytes" in said[0]
    assert not list(volume.rglob("*.partial"))


def test_a_volume_smaller_than_the_ring_keeps_the_newest(volume: Path) -> None:
    bench = RecorderBench(volume)
    with warnings_of_the_capture() as said:
        for version in range(1, 21):  # 36 KiB each
            record(bench, f"{version}", total="tokens", tokens=2000, version=version)
        bench.stop()
    entries = shard_entries(bench.store, FOLDER)
    assert entries[-1].policy_version == 20
    assert [entry.policy_version for entry in entries] == list(range(21 - len(entries), 21))
    assert len(entries) > 3
    assert said == []
    for entry in entries:
        [sequence] = read_shard(bench.store, entry.path)
        assert len(sequence.hidden_states) == 2000


def test_a_volume_that_becomes_read_only_and_writable_again(volume: Path) -> None:
    bench = RecorderBench(volume)
    record(bench, "before", total="tokens")
    with warnings_of_the_capture() as said:
        remount(volume, "ro")
        record(bench, "lost", total="dropped_store_read_only")
        remount(volume, "rw")
        record(bench, "after", total="tokens")
        bench.stop()
    assert len(said) == 2
    assert "mount the volume for writing" in said[0]
    assert [entry.number for entry in shard_entries(bench.store, FOLDER)] == [0, 1]


def test_a_folder_where_the_process_may_not_write(tmp_path: Path) -> None:
    bench = RecorderBench(tmp_path)
    with warnings_of_the_capture() as said:
        with unprivileged(tmp_path):
            record(bench, "lost", total="dropped_store_denied")
        record(bench, "after", total="tokens")
        bench.stop()
    assert len(said) == 2
    assert "who may write there" in said[0]


def remount(volume: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(volume)], check=True, capture_output=True)


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Without the right to write into a folder: root becomes nobody, anyone else gives the right up."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
