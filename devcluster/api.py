"""The cluster's API server: questions asked over HTTPS, changes made through ``kubectl``.

Questions are asked many times a second while the cluster starts, and starting ``kubectl`` for each would take the
processor from the components that are waited for.
"""

import http.client
import json
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.errors import DevclusterError
from devcluster.objects import Object

FIELD_MANAGER = "devcluster"
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Api:
    """A cluster's API server, spoken to as its administrator."""

    host: str
    port: int
    certificates: Path
    kubectl: str
    kubeconfig: Path

    def is_ready(self) -> bool:
        """Whether the API server answers and says it is ready."""
        try:
            return self._request("/readyz")[0] == http.HTTPStatus.OK
        except DevclusterError:
            return False

    def exists(self, path: str) -> bool:
        """Whether there is an object at this path.

        Raises:
            DevclusterError: the API server is gone.
        """
        return self._request(path)[0] == http.HTTPStatus.OK

    def get(self, path: str) -> Any:
        """The object or list at a path such as ``/api/v1/nodes``.

        Raises:
            DevclusterError: there is none, or the API server is gone.
        """
        status, body = self._request(path)
        if status != http.HTTPStatus.OK:
            raise DevclusterError(f"{path}: {status} {body[:300].decode(errors='replace')}")
        return json.loads(body)

    def apply(self, objects: Sequence[Object]) -> None:
        """Make these objects be as given.

        Raises:
            DevclusterError: one was refused.
        """
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        options = ["--server-side", f"--field-manager={FIELD_MANAGER}", "--force-conflicts"]
        self._run(["apply", *options, "--filename=-"], text=document)

    def delete(self, kind: str, names: Sequence[str]) -> None:
        """Delete objects and wait until they are gone.

        Raises:
            DevclusterError: one stays.
        """
        self._run(["delete", kind, *names, "--ignore-not-found", "--timeout=30s"])

    def _request(self, path: str) -> tuple[int, bytes]:
        try:
            trust = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
            trust.load_cert_chain(self.certificates / "admin.crt", self.certificates / "admin.key")
            connection = http.client.HTTPSConnection(self.host, self.port, context=trust, timeout=ANSWER_SECONDS)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise DevclusterError(f"the API server at {self.host}:{self.port} does not answer: {error}") from error

    def _run(self, arguments: Sequence[str], *, text: str | None = None) -> None:
        command = [self.kubectl, f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DevclusterError(f"kubectl {arguments[0]} failed: {done.stderr.strip()[-800:]}")
