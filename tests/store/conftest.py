"""A real S3 server for the tests that need one, and credentials as a pod has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch

from tests.support.object_store import ObjectStore, object_store
from tests.support.tiny_target import write_tiny_target
from tlt_workloads.drafter import DrafterConfig, TargetFiles, draft_vocabulary, drafter_config, initial_tensors


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def server(running_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server, for a process with the right credentials."""
    sign_in(monkeypatch, running_server)
    yield running_server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def fresh_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """One that never was stopped: SeaweedFS that was killed and started again lets its users write into any bucket."""
    with object_store(tmp_path / "server") as server:
        sign_in(monkeypatch, server)
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(server: ObjectStore, tmp_path: Path) -> str:
    """A store of its own for each test."""
    return f"{server.url}/{tmp_path.name}"


@pytest.fixture
def tiny_drafter(tmp_path: Path) -> tuple[DrafterConfig, dict[str, torch.Tensor]]:
    """The shape and the tensors of a drafter, as a trainer publishes them."""
    target = TargetFiles(write_tiny_target(tmp_path / "target"))
    config = drafter_config(target.config, draft_vocab_size=92)
    vocabulary = draft_vocabulary(None, draft_vocab_size=92, vocab_size=config.vocab_size)
    return config, initial_tensors(target, config, vocabulary=vocabulary)


def sign_in(monkeypatch: pytest.MonkeyPatch, server: ObjectStore, **keys: str) -> None:
    """Gives this process credentials, as if it had just started with them."""
    for name, value in server.credentials(**keys).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
