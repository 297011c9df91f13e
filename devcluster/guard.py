"""Keeps tests, demo and Makefile away from clusters that were not made for them."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import RefusalError
from devcluster.settings import CONTEXT, node_settings

CURRENT = "current"
VARIABLE = "CLUSTER"


@dataclass(frozen=True)
class Target:
    """The cluster that may be used."""

    kubeconfig: str
    """Value for KUBECONFIG: one path or several, joined as kubectl wants them."""
    context: str

    @property
    def is_ours(self) -> bool:
        """Whether the cluster was made by devcluster, so that its workloads may be deleted freely."""
        return is_devcluster(self.context)


def is_devcluster(context: str) -> bool:
    return context == CONTEXT or context.startswith(f"{CONTEXT}-")


def choose(environment: Mapping[str, str] = os.environ) -> Target:
    """The cluster to work on.

    Without CLUSTER it is the embedded one: by KUBECONFIG when that is set and names it, else by its own kubeconfig.
    ``CLUSTER=current`` takes the current context of the user's kubeconfig, ``CLUSTER=<context>`` the named one.

    Raises:
        RefusalError: the kubeconfig is missing or names a cluster that nobody named.
    """
    named = environment.get(VARIABLE, "")
    given = environment.get("KUBECONFIG", "")
    if not named:
        own = str(node_settings(environment).kubeconfig)
        return _embedded(given or own)
    kubeconfig = given or str(Path(environment.get("HOME", "/root")) / ".kube" / "config")
    text = _read(kubeconfig)
    if named == CURRENT:
        return Target(kubeconfig, _current_context(text, kubeconfig))
    if named not in context_names(text):
        raise RefusalError(
            f"{VARIABLE}={named}, but {kubeconfig} has no context of that name",
            way_out="name one of `kubectl config get-contexts -o name`, or set KUBECONFIG",
        )
    return Target(kubeconfig, named)


def current_context(text: str) -> str:
    """The current context in the text of a kubeconfig (YAML or JSON), or an empty string."""
    try:
        document = json.loads(text)
    except ValueError:
        found = re.search(r"""^current-context:\s*["']?([^"'\s#]+)""", text, re.MULTILINE)
        return found.group(1) if found else ""
    return str(document.get("current-context", "")) if isinstance(document, dict) else ""


def context_names(text: str) -> set[str]:
    """All `name:` values of a kubeconfig: contexts, clusters and users."""
    return set(re.findall(r"""["']?\bname["']?\s*:\s*["']?([^"'\s,}]+)""", text))


def _embedded(kubeconfig: str) -> Target:
    context = _current_context(_read(kubeconfig), kubeconfig)
    if not is_devcluster(context):
        raise RefusalError(
            f"{kubeconfig} points at {context!r}, which devcluster did not make",
            way_out=f"unset KUBECONFIG to use the embedded cluster, or name this one: {VARIABLE}={context} "
            f"(or {VARIABLE}={CURRENT})",
        )
    return Target(kubeconfig, context)


def _current_context(text: str, kubeconfig: str) -> str:
    if context := current_context(text):
        return context
    raise RefusalError(f"{kubeconfig} has no current-context", way_out="`kubectl config use-context NAME`")


def _read(kubeconfig: str) -> str:
    files = [Path(part) for part in kubeconfig.split(os.pathsep) if part]
    texts = [file.read_text() for file in files if file.is_file()]
    if not texts:
        raise RefusalError(
            f"no kubeconfig at {kubeconfig}",
            way_out="`python3 -m devcluster up` starts the embedded cluster, "
            f"or set KUBECONFIG together with {VARIABLE}={CURRENT}",
        )
    return "\n".join(texts)
