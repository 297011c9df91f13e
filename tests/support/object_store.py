"""A real S3 server on this machine: versitygw, which keeps objects as files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from devcluster.binaries import command_path
from devcluster.preflight import free_port
from devcluster.settings import node_settings
from tests.support.eventually import eventually

BUCKET = "rl-runs"
ACCESS_KEY = "key-of-the-test"
SECRET_KEY = "secret-of-the-test"


@dataclass
class ObjectStore:
    """A server that can be stopped, frozen and started again on its port and its objects."""

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        """Of the job store that tests use."""
        return f"s3://{BUCKET}/tlt"

    def credentials(self, *, access: str = ACCESS_KEY, secret: str = SECRET_KEY) -> Mapping[str, str]:
        """What a pod gets from the Secret that `spec.store.secretRef` names."""
        return {
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when it answers."""
        objects = self.folder / "objects"
        (objects / BUCKET).mkdir(parents=True, exist_ok=True)
        sidecar = self.folder / "metadata"  # so that the file system need not know extended attributes
        sidecar.mkdir(exist_ok=True)
        binary = command_path(node_settings().binaries, "versitygw")
        assert binary.exists(), f"{binary} is missing: make object-store"
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "--port", f"127.0.0.1:{self.port}", "posix", "--sidecar", sidecar, objects],
                env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self._answers, deadline=30, reason="the object store answers")

    def stop(self) -> None:
        """Ends it; connections are refused from now on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Takes connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answers again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/", timeout=5).status_code == 403
        except requests.ConnectionError:
            return False


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A running server with an empty bucket; gone at the end."""
    server = ObjectStore(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
