"""The cluster as the demo sees it: kubectl and helm, and plain HTTP to the API through `kubectl proxy`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.demo.console import StageError, tail

ROOT = Path(__file__).resolve().parents[2]
FORWARDED = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
PROXIED = re.compile(r"Starting to serve on 127\.0\.0\.1:(\d+)")


def devcluster(*arguments: str) -> str:
    """One verb of the embedded cluster that only tells something.

    Raises:
        StageError: it refused.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "devcluster", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise StageError(tail(answer.stderr, lines=3), advice="follow what devcluster says, then run the demo again")
    return answer.stdout.strip()


@dataclass(frozen=True)
class Cluster:
    """kubectl and helm with one kubeconfig."""

    kubectl_command: str
    helm_command: str
    environment: Mapping[str, str] = field(repr=False)
    context: str | None = None  # None: the kubeconfig's own

    @classmethod
    def embedded(cls) -> Cluster:
        """The cluster that the demo starts itself."""
        commands = Path(devcluster("path"))
        environment = {**os.environ, "KUBECONFIG": devcluster("kubeconfig")}
        return cls(str(commands / "kubectl"), str(commands / "helm"), environment)

    @classmethod
    def named(cls) -> Cluster:
        """The cluster of the user's kubeconfig that `CLUSTER` names, by `current` or by its context."""
        for command in ("kubectl", "helm"):
            if shutil.which(command) is None:
                raise StageError(f"{command} is not on the PATH", advice=f"install {command}, or leave CLUSTER unset")
        return cls("kubectl", "helm", dict(os.environ), devcluster("guard"))

    def run(self, command: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command against this cluster."""
        return subprocess.run(
            [command, *self._flags(command), *arguments],
            input=text, capture_output=True, text=True, env=dict(self.environment), check=False,
        )  # fmt: skip

    def _flags(self, command: str) -> tuple[str, ...]:
        if self.context is None:
            return ()
        return ("--kube-context" if command == self.helm_command else "--context", self.context)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Output of kubectl.

        Raises:
            StageError: kubectl failed.
        """
        answer = self.run(self.kubectl_command, *arguments, text=text)
        if answer.returncode != 0:
            raise StageError(
                f"kubectl {' '.join(arguments[:6])}: {tail(answer.stderr, lines=5)}",
                advice="look at the cluster with kubectl; `make demo-down` and `make demo` start it afresh",
            )
        return answer.stdout

    def find(self, kind: str, name: str, *, namespace: str) -> dict[str, Any] | None:
        """One object, None when it is not there."""
        answer = self.run(self.kubectl_command, "get", kind, name, "-n", namespace, "-o", "json")
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def list(self, kind: str, *, namespace: str, labels: str = "") -> list[dict[str, Any]]:
        """The objects of a kind."""
        selector = ("-l", labels) if labels else ()
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json", *selector))[
            "items"
        ]
        return items

    def secret(self, name: str, key: str, *, namespace: str) -> str | None:
        """A value of a Secret, None when it is not there."""
        item = self.find("secret", name, namespace=namespace)
        return base64.b64decode(item["data"][key]).decode() if item and key in item.get("data", {}) else None

    def delete_namespaces(self, *names: str) -> None:
        """Deletes namespaces and waits for their end."""
        self.kubectl("delete", "namespace", *names, "--ignore-not-found", "--wait=true", "--timeout=180s")

    def python_in_pod(self, pod: str, script: str, *arguments: str, namespace: str) -> Any:
        """Runs a Python script inside a pod and returns the JSON of its last line.

        Raises:
            StageError: the script failed.
        """
        output = self.kubectl("exec", "-i", pod, "-n", namespace, "--", "python", "-", *arguments, text=script)
        return json.loads(output.strip().splitlines()[-1])

    def trouble(self, *, namespace: str) -> str:
        """Every pod that is not well or was restarted: why, and the end of the log in which the reason stands."""
        found = []
        for pod in self.list("pods", namespace=namespace):
            name, status = pod["metadata"]["name"], pod.get("status", {})
            containers = status.get("containerStatuses", ())
            restarts = sum(int(container.get("restartCount", 0)) for container in containers)
            if status.get("phase") == "Succeeded" or (is_ready(pod) and not restarts):
                continue
            reasons = [
                f"{kind}: {detail.get('reason', '')} {detail.get('message', '')}".strip()
                for container in containers
                for kind, detail in container.get("state", {}).items()
                if kind != "running"
            ]
            conditions = [item.get("message", "") for item in status.get("conditions", ()) if item["status"] != "True"]
            found.append(f"pod {name} is {status.get('phase')}: {'; '.join([*reasons, *filter(None, conditions)])}")
            which = ("--previous",) if restarts else ()
            log = self.run(self.kubectl_command, "logs", name, "-n", namespace, "--tail=25", "--all-containers", *which)
            found.append(f"restarted {restarts} times; the last words before:" if restarts else "its last lines:")
            found.append(tail(log.stdout or log.stderr))
        return "\n".join(found)

    @contextlib.contextmanager
    def proxy(self) -> Iterator[ApiServer]:
        """The API server on a local port, for reading without a process for each question."""
        with self._serving("proxy", "--port=0", announcement=PROXIED) as port:
            yield ApiServer(f"http://127.0.0.1:{port}")

    @contextlib.contextmanager
    def forward(self, target: str, port: int, *, namespace: str) -> Iterator[str]:
        """A pod's or service's port on a local one; gives the base URL."""
        arguments = ("port-forward", target, f":{port}", "-n", namespace)
        with self._serving(*arguments, announcement=FORWARDED) as local:
            yield f"http://127.0.0.1:{local}"

    @contextlib.contextmanager
    def _serving(self, *arguments: str, announcement: re.Pattern[str]) -> Iterator[int]:
        process = subprocess.Popen(
            [self.kubectl_command, *self._flags(self.kubectl_command), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(self.environment),
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := announcement.search(line):
                    # Whatever it says later must be read, else it blocks.
                    threading.Thread(target=process.stdout.read, daemon=True).start()
                    yield int(match.group(1))
                    return
            raise StageError(f"kubectl {' '.join(arguments)} ended", advice="see whether the pod is still there")
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class ApiServer:
    """Reads through `kubectl proxy`."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        """JSON of one resource; None when it is not there or the API server does not answer."""
        text = self.text(path, **query)
        return json.loads(text) if text else None

    def text(self, path: str, **query: str) -> str:
        """Text of one resource, such as a log; empty when there is none."""
        full = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(full, timeout=30) as answer:
                return str(answer.read().decode(errors="replace"))
        except (OSError, urllib.error.HTTPError):
            return ""


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is ready and not on its way out."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions: Sequence[Mapping[str, Any]] = pod.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def get_json(url: str, *, token: str | None = None, timeout: float = 10.0) -> Any:
    """JSON from a forwarded port; None when it does not answer."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def wait_until(condition: Any, *, seconds: float, every: float = 1.0) -> bool:
    """Asks until the condition holds; False when it did not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (holds := bool(condition())) and time.monotonic() < deadline:
        time.sleep(every)
    return holds
