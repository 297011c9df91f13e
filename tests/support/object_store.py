"""A real S3 server on this machine: SeaweedFS, all its parts in one process."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from devcluster.binaries import command_path
from devcluster.preflight import free_port
from devcluster.settings import node_settings
from tests.support.eventually import eventually

BUCKET = "rl-runs"
ACCESS_KEY = "key-of-the-test"
SECRET_KEY = "secret-of-the-test"
LOCALHOST = "127.0.0.1"


class ObjectStore:
    """A server that can be stopped, frozen and started again on its ports and its objects."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(exist_ok=True)
        self._ports = {part: free_port() for part in ("master", "volume", "filer", "s3")}
        self._grpc_ports = {part: free_port() for part in self._ports}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the job store that tests use."""
        return f"s3://{BUCKET}/tlt"

    @property
    def endpoint(self) -> str:
        """Where S3 is spoken."""
        return f"http://{LOCALHOST}:{self._ports['s3']}"

    def credentials(self, *, access: str = ACCESS_KEY, secret: str = SECRET_KEY) -> Mapping[str, str]:
        """What a pod gets from the Secret that `spec.store.secretRef` names."""
        return {
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when it answers."""
        binary = command_path(node_settings().binaries, "weed")
        assert binary.exists(), f"{binary} is missing: make object-store"
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, *self._arguments()], stdout=log, stderr=subprocess.STDOUT, cwd=self._folder
            )
        eventually(self._answers, deadline=60, reason="the object store answers")

    def stop(self) -> None:
        """Ends it; connections are refused from now on."""
        assert self._process is not None
        self._process.kill()  # asked politely, it would serve on for ten seconds
        self._process.wait()

    def freeze(self) -> None:
        """Takes connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answers again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _arguments(self) -> list[str]:
        objects, accounts = self._folder / "objects", self._folder / "accounts.json"
        objects.mkdir(exist_ok=True)
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        actions = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List", "Tagging")]
        accounts.write_text(
            json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]})
        )
        ports = [f"-{part}.port={port}" for part, port in self._ports.items()]
        grpc_ports = [f"-{part}.port.grpc={port}" for part, port in self._grpc_ports.items()]
        sockets = [f"-{part}.localSocket={self._folder / part}.sock" for part in ("filer", "s3")]
        return [
            *("server", f"-dir={objects}", f"-ip={LOCALHOST}", "-filer", "-s3", f"-s3.config={accounts}"),
            *("-master.volumeSizeLimitMB=256", "-volume.max=16", "-s3.port.iceberg=0"),
            *(*ports, *grpc_ports, *sockets),
        ]

    def _answers(self) -> bool:
        """Makes the bucket, which needs all parts of the server."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self._folder / "server.log").read_text()[-4000:])
        try:
            made = requests.put(f"http://{LOCALHOST}:{self._ports['filer']}/buckets/{BUCKET}/", timeout=5)
            refused = requests.get(f"{self.endpoint}/{BUCKET}", timeout=5)
        except requests.ConnectionError:
            return False
        return made.ok and refused.status_code == 403


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A running server with an empty bucket; gone at the end."""
    server = ObjectStore(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
