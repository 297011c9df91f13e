"""The store on a real S3 server: what one side writes the other reads, whole or not at all, and what goes wrong."""

from __future__ import annotations

import datetime
import itertools
import multiprocessing
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.store.conftest import sign_in
from tests.support.eventually import eventually
from tests.support.object_store import SECRET_KEY, ObjectStore
from tests.support.recorder_bench import FOLDER, METADATA, RecorderBench, warnings_of_the_capture
from tlt_workloads.contract import Evaluation
from tlt_workloads.shards import CapturedSequence, ShardError, read_shard, shard_entries, write_shard
from tlt_workloads.store import Store, open_store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    from tlt_workloads.trainer.data import DataSettings, Feed
    from tlt_workloads.trainer.publish import publish_revision
    from tlt_workloads.trainer.revisions import published_revisions

from tlt_workloads.drafter import DrafterConfig


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def record(bench: RecorderBench, name: str, *, total: str, tokens: int = 20, version: int = 1) -> None:
    """One sequence, and waits until it is counted, which must be as recorded or lost for the right reason."""
    before = bench.counts.copy()
    bench.sequence(name, tokens=tokens, version=version)
    eventually(lambda: bench.counts != before, deadline=90, reason=f"{total} counts {tokens} more")
    assert (bench.counts - before)[total] == tokens, bench.counts


def sequence(rows: int, *, width: int = 8) -> CapturedSequence:
    return CapturedSequence(
        token_ids=torch.arange(rows + 1, dtype=torch.int32),
        hidden_states=torch.randn(rows, 2, width).to(torch.bfloat16),
        prompt_length=4,
        policy_version=1,
        finished=True,
    )


def test_it_keeps_files_as_a_volume_does(store: Store) -> None:
    store.write_atomic("a/one", b"1")
    store.write_atomic("a/two", b"22")
    store.write_atomic("a/deep/three", b"333")
    assert store.read("a/two") == b"22"
    assert store.read("a/deep/three", start=1, stop=2) == b"3"
    assert [(file.name, file.size) for file in store.list("a")] == [("one", 1), ("two", 2)]
    assert store.folders("a") == ("deep",)
    assert store.size("a/two") == 2
    store.write_atomic("a/two", b"another")
    assert store.read("a/two") == b"another"
    store.remove("a/two")
    store.remove("a/two")
    assert not store.exists("a/two")
    store.remove("a")
    assert store.list("a") == store.list("a/deep") == ()
    with pytest.raises(FileNotFoundError):
        store.read("a/one")


def test_of_many_writers_one_creates_a_file(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.create("taken", f"{number}".encode()), range(8)))
    assert won.count(True) == 1
    assert store.read("taken") == f"{won.index(True)}".encode()


def test_a_forked_worker_uses_the_store_beside_its_supervisor(store: Store) -> None:
    """Clients of object stores run a thread that a fork does not take along."""
    store.write_atomic("from-supervisor", b"1")
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_write_from_a_worker, args=(store.url,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert store.read("from-worker") == b"1"


def _write_from_a_worker(url: str) -> None:
    store = open_store(url)
    store.write_atomic("from-worker", store.read("from-supervisor"))


def test_what_a_recorder_writes_a_trainer_reads(store: Store) -> None:
    bench = RecorderBench(store)
    for number in range(30):
        bench.sequence(f"request-{number}", tokens=40, version=number // 10)
    names = bench.stop()
    assert bench.counts["tokens"] == 30 * 40
    assert len(names) >= 3
    feed = Feed(
        store,
        metadata=METADATA,
        settings=DataSettings(max_policy_lag=1, draft_length=1, prompt_rows=40),
        progress={},
    )
    feed.refresh()
    batch = feed.next_batch(200)
    assert batch is not None
    assert batch.policy_versions == (2, 2)
    assert not feed.skipped_shards
    assert {path.rpartition("-p")[2][0] for path in feed.progress()} == {"1", "2"}, "the oldest policy is left alone"


def test_the_ring_gives_up_the_oldest_policy(store: Store) -> None:
    bench = RecorderBench(store, max_bytes=3000)
    for version in range(1, 9):
        record(bench, f"{version}", total="tokens", tokens=40, version=version)
    bench.stop()
    entries = shard_entries(store, FOLDER)
    assert 1 <= len(entries) < 8
    assert entries[-1].policy_version == 8
    assert sum(entry.size for entry in entries) <= 3000


def test_a_reader_never_sees_half_a_shard(store: Store) -> None:
    """The same shard is written again and again, in two sizes, the larger one in several parts."""
    over, reads = threading.Event(), 0
    small, large = [sequence(100, width=1024)], [sequence(3300, width=8192)]  # 108 MB, which s3fs sends in parts
    path = write_shard(store, "pod", number=0, sequences=small, metadata=METADATA).path
    large_path = write_shard(store, "large", number=0, sequences=large, metadata=METADATA).path
    data = {len(item): item for item in (store.read(path), store.read(large_path))}

    def write() -> None:
        try:
            for _ in range(2):
                for item in data.values():
                    store.write_atomic(path, item)
        finally:
            over.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not over.is_set():
            [file] = store.list("pod")
            assert file.size in data
            try:
                [found] = read_shard(store, path, expected=METADATA)
            except FileNotFoundError:
                pytest.fail("a file that is replaced is there all the time")
            assert len(found.hidden_states) in (100, 3300)
            reads += 1
        writing.result()
    assert reads > 3
    store.write_atomic(path, next(iter(data.values()))[:-7])
    with pytest.raises(ShardError):
        read_shard(store, path)


def test_revisions_are_published_and_fetched(
    store: Store, tiny_drafter: tuple[DrafterConfig, dict[str, torch.Tensor]]
) -> None:
    config, tensors = tiny_drafter
    evaluation = Evaluation(accept_length=2.0, standard_error=0.1, parent_accept_length=None, sequences=8, tokens=1000)

    def publish(_: int) -> str:
        return publish_revision(
            store,
            job="team/job",
            tensors=tensors,
            config=config,
            parent=None,
            policy_versions=(1, 2),
            trained_tokens=1000,
            evaluation=evaluation,
            now=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        ).revision

    with ThreadPoolExecutor(3) as pool:
        names = sorted(pool.map(publish, range(3)))
    assert names == ["job-r1", "job-r2", "job-r3"]
    found = published_revisions(store)
    assert [manifest.revision for manifest in found] == names
    assert {store.sha256(f"revisions/{name}/model.safetensors") for name in names} == {found[0].sha256}


def test_wrong_credentials_are_named_counted_and_not_told(
    url: str, server: ObjectStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = "another-secret-that-nobody-must-see"
    sign_in(monkeypatch, server, secret=wrong)
    bench = RecorderBench(open_store(url))
    with warnings_of_the_capture() as said:
        record(bench, "lost", total="dropped_store_denied")
        record(bench, "lost too", total="dropped_store_denied")
        bench.recorder.stop()
    assert len(said) == 1
    assert "look at the credentials in spec.store.secretRef" in said[0]
    with pytest.raises(PermissionError) as refused:
        open_store(url).write_atomic("x", b"x")
    heard = [*said, repr(refused.value), repr(refused.value.__cause__), *capfd.readouterr()]
    assert not [text for text in heard if wrong in text or SECRET_KEY in text]


@pytest.mark.usefixtures("fresh_server")
def test_a_bucket_of_somebody_else() -> None:
    bench = RecorderBench(open_store("s3://another-bucket/tlt"))
    with warnings_of_the_capture() as said:
        record(bench, "lost", total="dropped_store_denied")
        bench.recorder.stop()
    assert "who may write there" in said[0]


def test_a_server_that_goes_and_comes_back(url: str, server: ObjectStore) -> None:
    bench = RecorderBench(open_store(url))
    record(bench, "before", total="tokens")
    with warnings_of_the_capture() as said:
        server.stop()
        try:
            record(bench, "lost", total="dropped_store_gone")
        finally:
            server.start()
        record(bench, "after", total="tokens")
        names = bench.stop()
    assert [name[:8] for name in names] == ["00000000", "00000001"]
    assert len(said) == 2
    assert "look at spec.store.url, the volume and the network" in said[0]


def test_a_server_that_does_not_answer_holds_nobody_up(
    url: str, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlt_workloads.rollout.recorder.PENDING_BYTES", 3 * 20 * 16)
    bench = RecorderBench(open_store(url))
    record(bench, "before", total="tokens")
    names = (f"request-{number}" for number in itertools.count())
    server.freeze()
    try:
        eventually(lambda: not bench.sequence(next(names)), reason="a step is dropped")
    finally:
        server.thaw()
    eventually(lambda: bench.sequence(next(names)) and bench.counts["tokens"] > 200, deadline=60, reason="it goes on")
    bench.stop()
