"""A cluster under test, as a person would hold it: apply, read, delete, look into pods."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually


@dataclass(frozen=True)
class Cluster:
    """kubectl and helm against one kubeconfig; objects go in and come out as plain dicts."""

    kubeconfig: Path
    kubectl_binary: Path
    helm_binary: Path

    def run(
        self, binary: Path, *arguments: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command with this cluster's kubeconfig; its error output becomes the assertion's message."""
        answer = subprocess.run(
            [str(binary), *arguments],
            input=text,
            capture_output=True,
            text=True,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            check=False,
        )
        assert not check or answer.returncode == 0, f"{binary.name} {' '.join(arguments)}: {answer.stderr}"
        return answer

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        return self.run(self.kubectl_binary, *arguments, text=text, check=check).stdout

    def helm(self, *arguments: str) -> str:
        return self.run(self.helm_binary, *arguments).stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def refusal(self, item: Mapping[str, Any]) -> str:
        """What the API server says against an object; empty when it takes it."""
        answer = self.run(self.kubectl_binary, "apply", "-f", "-", text=json.dumps(item), check=False)
        return answer.stderr if answer.returncode else ""

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        answer = self.run(self.kubectl_binary, "get", kind, name, "-n", namespace, "-o", "json", check=False)
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def list(self, kind: str, namespace: str, *, labels: str = "") -> Sequence[dict[str, Any]]:
        selector = ("-l", labels) if labels else ()
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json", *selector))[
            "items"
        ]
        return items

    def condition(self, job: str, namespace: str, kind: str) -> dict[str, Any]:
        """A condition of a TLTJob; empty while there is none."""
        item = self.get("tltjob", job, namespace) or {}
        return next((entry for entry in item.get("status", {}).get("conditions", ()) if entry["type"] == kind), {})

    def secret(self, name: str, namespace: str, key: str) -> str:
        import base64

        item = self.get("secret", name, namespace)
        assert item is not None, f"no secret {namespace}/{name}"
        return base64.b64decode(item["data"][key]).decode()

    def pods_ready(self, namespace: str, labels: str, count: int) -> Sequence[dict[str, Any]]:
        """The pods with these labels, once `count` of them are ready; else an empty list."""
        ready = [pod for pod in self.list("pods", namespace, labels=labels) if is_ready(pod)]
        return ready if len(ready) == count else []

    def delete_namespace(self, namespace: str) -> None:
        self.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
        eventually(
            lambda: self.get("namespace", namespace, "default") is None,
            deadline=120,
            every=0.5,
            reason=f"the end of namespace {namespace}",
        )


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is ready and not on its way out."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return any(
        item["type"] == "Ready" and item["status"] == "True" for item in pod.get("status", {}).get("conditions", ())
    )
