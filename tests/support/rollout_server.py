"""A rollout server as a child process: the real command, a real engine, a folder as the store."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
TOKEN = "token-of-the-test"
JOB = "team/job"
POD = "pod-0"
PR_SET_PDEATHSIG = 1  # see prctl(2)
START_LIMIT = 600.0  # seconds; half a minute on two free cores


@dataclass(frozen=True)
class RolloutServer:
    """A running server and its store."""

    url: str
    store: Path
    log: Path
    drafter: Path  # the drafter that it started with
    process: subprocess.Popen[bytes]

    @property
    def job(self) -> Path:
        """The job's folder in the store."""
        return self.store / JOB

    def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN, timeout: float = 300
    ) -> tuple[int, Any]:
        """One request; status and decoded answer."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, _decoded(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _decoded(error.read())

    def send(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        token: str | None = TOKEN,
        content_type: str = "application/json",
        source: str = "127.0.0.1",
    ) -> int:
        """One request with exactly these bytes, from this address; the status."""
        headers = {"content-type": content_type} | ({} if token is None else {"authorization": f"Bearer {token}"})
        host, port = self.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60, source_address=(source, 0))
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            return connection.getresponse().status

    def state(self) -> dict[str, Any]:
        """`GET state` now."""
        status, state = self.call("GET", "/tlt/v1/state")
        assert status == 200, state
        assert isinstance(state, dict)
        return state

    def generate(self, prompts: list[list[int]], *, max_tokens: int, **fields: Any) -> list[list[int]]:
        """The tokens that follow each prompt, stop tokens ignored unless told otherwise."""
        body = {
            "model": "policy",
            "prompt": prompts,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **fields,
        }
        status, answer = self.call("POST", "/v1/completions", body)
        assert status == 200, answer
        return [choice["token_ids"] for choice in answer["choices"]]

    @contextlib.contextmanager
    def generating(self, prompts: list[list[int]], *, max_tokens: int) -> Iterator[list[list[list[int]]]]:
        """Generates the same answers again and again until the end of the block; gives the list that they go to.

        So that something runs for as long as a test needs it, however fast the machine is.
        """
        over = threading.Event()
        results: list[list[list[int]]] = []

        def generate() -> None:
            while not over.is_set():
                results.append(self.generate(prompts, max_tokens=max_tokens))

        with ThreadPoolExecutor(1) as pool:
            generation = pool.submit(generate)
            try:
                self.wait_until_running()
                yield results
            finally:
                over.set()
            generation.result()

    def wait_until_running(self) -> None:
        """Returns while requests run."""
        eventually(lambda: self.state()["running"], deadline=60, reason="requests are running")

    def wait_until_idle(self) -> dict[str, Any]:
        """The state once the pod is idle."""

        def idle() -> dict[str, Any] | None:
            state = self.state()
            return state if state["idle"] else None

        state = eventually(idle, deadline=60, reason="the pod is idle")
        assert state is not None
        return state

    def revision(self, name: str, weights: bytes, *, sha256: str | None = None) -> dict[str, Any]:
        """Writes a revision into the store; the body that loads it."""
        folder = self.job / "revisions" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(weights)
        digest = sha256 or hashlib.sha256(weights).hexdigest()
        return {"revision": name, "url": f"file://{folder}", "sha256": digest}


PLUGGED = "tlt_workloads.rollout.serve"
STOCK = "vllm.entrypoints.launchers.api_server.entry"  # what the command `vllm serve` runs


@contextlib.contextmanager
def rollout_server(
    model: Path, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, module: str = PLUGGED
) -> Iterator[RolloutServer]:
    """Starts a server, waits until it answers, and stops it with all its processes.

    Args:
        model: folder of the policy's model.
        arguments: further flags.
        folder: for its store, token, scratch space and log.
        environment: further variables.
        module: to run; `STOCK` is vLLM without the plugin if `VLLM_PLUGINS` says so.
    """
    entry_points = importlib.metadata.entry_points(group="vllm.endpoint_plugins")
    assert "tlt" in {point.name for point in entry_points}, "vLLM cannot find the plugin; run `make venv` first"
    port = _free_port()
    (folder / "token").write_text(TOKEN)
    store, log = folder / "store", folder / "server.log"
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "workloads"), os.environ.get("PYTHONPATH")])),
        "TLT_TOKEN_FILE": str(folder / "token"),
        "TLT_STORE_URL": f"file://{store}",
        "TLT_JOB": JOB,
        "TLT_POD_NAME": POD,
        "TLT_SCRATCH": str(folder / "scratch"),
        "HF_HUB_OFFLINE": "1",
        **(environment or {}),
    }
    command = [sys.executable, "-m", module, "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "policy", "--enforce-eager", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    server = RolloutServer(f"http://127.0.0.1:{port}", store, log, folder / "scratch" / "drafter", process)
    try:
        eventually(lambda: _answers(server, process), deadline=START_LIMIT, every=0.5, reason="the server answers")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_with_parent() -> None:
    """A test run that is killed takes its server along."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(server: RolloutServer, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the server ended with {process.returncode}:\n{server.log.read_text()[-4000:]}")
    try:
        return server.call("GET", "/health", timeout=5)[0] == 200
    except OSError:
        return False


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data.decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
