"""The few questions and changes that bringing a cluster up needs, through the ``kubectl`` command."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.errors import DevclusterError
from devcluster.objects import Object

FIELD_MANAGER = "devcluster"


@dataclass(frozen=True)
class Kubectl:
    """kubectl as the cluster's administrator."""

    command: str
    kubeconfig: Path

    def is_ready(self) -> bool:
        """Whether the API server answers and says it is ready."""
        return self._run(["get", "--raw", "/readyz", "--request-timeout=2s"]).returncode == 0

    def exists(self, *arguments: str) -> bool:
        """Whether ``kubectl get`` finds the object."""
        return self._run(["get", *arguments]).returncode == 0

    def get(self, *arguments: str) -> Any:
        """The JSON answer of ``kubectl get``.

        Raises:
            DevclusterError: the API server refused or is gone.
        """
        return json.loads(self._checked(["get", *arguments, "--output=json"]))

    def apply(self, objects: Sequence[Object]) -> None:
        """Make these objects be as given.

        Raises:
            DevclusterError: one was refused.
        """
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        options = ["--server-side", f"--field-manager={FIELD_MANAGER}", "--force-conflicts"]
        self._checked(["apply", *options, "--filename=-"], text=document)

    def delete(self, kind: str, names: Sequence[str]) -> None:
        """Delete objects and wait until they are gone."""
        self._checked(["delete", kind, *names, "--ignore-not-found", "--timeout=30s"])

    def _checked(self, arguments: Sequence[str], *, text: str | None = None) -> str:
        done = self._run(arguments, text=text)
        if done.returncode != 0:
            raise DevclusterError(f"kubectl {arguments[0]} failed: {done.stderr.strip()[-800:]}")
        return done.stdout

    def _run(self, arguments: Sequence[str], *, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [self.command, f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)
