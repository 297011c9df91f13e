"""The API server as a service account sees it, with the rights of that account and no others."""

from __future__ import annotations

from pathlib import Path

import yaml

from tlt_operator.clients.kube import Kubernetes


async def connect_as(admin: Kubernetes, account: str, *, namespace: str, kubeconfig: Path, folder: Path) -> Kubernetes:
    """A connection with a token of an account that exists; the caller closes it."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    answer = await admin._json("POST", path, body=request)
    file = _with_token(kubeconfig, answer["status"]["token"], file=folder / f"{account}.kubeconfig")
    return await Kubernetes.connect(kubeconfig=str(file))


def _with_token(kubeconfig: Path, token: str, *, file: Path) -> Path:
    config = yaml.safe_load(kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    file.write_text(yaml.safe_dump(config))
    return file
