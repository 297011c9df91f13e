"""The Kubernetes API: reads, watches, applies, deletes and status writes; objects are plain dictionaries."""

from __future__ import annotations

import asyncio
import enum
import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from tlt_operator.api.names import (
    API_VERSION,
    FIELD_MANAGER,
    JOB_KIND,
    JOB_PLURAL,
    REVISION_KIND,
    REVISION_PLURAL,
)
from tlt_operator.errors import (
    ConflictError,
    FinalError,
    NotFoundError,
    NotServedError,
    OverloadedError,
    RefusedError,
    TemporaryError,
    UnauthorizedError,
    UnreachableError,
)

Object = dict[str, Any]
CLOSING = 0.25  # seconds
# A watch ends after this many seconds, or half as many more, and begins again with a list: nothing missed stays missed.
WATCH_LIFETIME = 300
# Bookmarks come once a minute, the first one perhaps after two (k8s.io/apiserver/pkg/storage/cacher); a watch that is
# silent for longer is dead, even when its connection is open.
WATCH_SILENCE = 130.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A namespaced kind: where its objects live in the API."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection or of one object; no namespace means all of them."""
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


POD = Kind(api_version="v1", kind="Pod", plural="pods")
SECRET = Kind(api_version="v1", kind="Secret", plural="secrets")
SERVICE = Kind(api_version="v1", kind="Service", plural="services")
EVENT = Kind(api_version="events.k8s.io/v1", kind="Event", plural="events")
DEPLOYMENT = Kind(api_version="apps/v1", kind="Deployment", plural="deployments")
STATEFUL_SET = Kind(api_version="apps/v1", kind="StatefulSet", plural="statefulsets")
DISRUPTION_BUDGET = Kind(api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets")
CLAIM_TEMPLATE = Kind(api_version="resource.k8s.io/v1", kind="ResourceClaimTemplate", plural="resourceclaimtemplates")
RESOURCE_CLAIM = Kind(api_version="resource.k8s.io/v1", kind="ResourceClaim", plural="resourceclaims")
NETWORK_POLICY = Kind(api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies")
LEASE = Kind(api_version="coordination.k8s.io/v1", kind="Lease", plural="leases")
JOB = Kind(api_version=API_VERSION, kind=JOB_KIND, plural=JOB_PLURAL)
REVISION = Kind(api_version=API_VERSION, kind=REVISION_KIND, plural=REVISION_PLURAL)

_BY_KIND = {
    item.kind: item
    for item in (
        *(POD, SECRET, SERVICE, EVENT, DEPLOYMENT, STATEFUL_SET, DISRUPTION_BUDGET, CLAIM_TEMPLATE),
        *(NETWORK_POLICY, LEASE, JOB, REVISION),
    )
}


class Change(enum.StrEnum):
    """What a watch tells; `SYNCED` says that everything that existed at its start has been told."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    SYNCED = "SYNCED"


@dataclass(frozen=True, kw_only=True)
class WatchEvent:
    """One change; `SYNCED` carries the names of all objects that exist instead."""

    change: Change
    body: Object
    existing: frozenset[str] = frozenset()


class Kubernetes:
    """A connection to one API server, usable by many tasks at once."""

    def __init__(
        self, api: client.ApiClient, *, request_timeout: float = 10.0, watch_silence: float = WATCH_SILENCE
    ) -> None:
        self._api = api
        self._timeout = request_timeout
        self._watch_silence = watch_silence

    @classmethod
    async def connect(
        cls, *, kubeconfig: str | None = None, request_timeout: float = 10.0, watch_silence: float = WATCH_SILENCE
    ) -> Kubernetes:
        """Uses the kubeconfig named, else the pod's service account, else the user's kubeconfig.

        A watch that tells nothing for `watch_silence` seconds is taken for dead.

        Raises:
            FinalError: there is no usable configuration.
        """
        configuration = client.Configuration()
        # Watches hold their connections, so the number of connections must not be bounded below that of the jobs.
        configuration.connection_pool_maxsize = 0
        try:
            if kubeconfig is not None:
                await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
            else:
                try:
                    config.load_incluster_config(client_configuration=configuration)
                except config.ConfigException:
                    await config.load_kube_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise FinalError(f"no access to a cluster: {error}; set KUBECONFIG or run in a pod") from error
        return cls(client.ApiClient(configuration), request_timeout=request_timeout, watch_silence=watch_silence)

    async def close(self) -> None:
        """Closes all connections, TLS ones politely.

        Their last words need a turn of the loop (https://docs.aiohttp.org/en/stable/client_advanced.html, "Graceful
        Shutdown"); without it their sockets stay open until the garbage collector finds them.
        """
        await self._api.close()
        await asyncio.sleep(CLOSING)

    @property
    def configuration(self) -> client.Configuration:
        """Address and credentials, for others who speak to the same API server."""
        return self._api.configuration

    async def get(self, kind: Kind, *, namespace: str, name: str) -> Object:
        """One object.

        Raises:
            NotFoundError: it does not exist.
        """
        return await self._json("GET", kind.path(namespace, name))

    async def find(self, kind: Kind, *, namespace: str, name: str) -> Object | None:
        """One object, or None when it does not exist."""
        try:
            return await self.get(kind, namespace=namespace, name=name)
        except NotFoundError:
            return None

    async def list_all(self, kind: Kind, *, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        """All objects of a kind with these labels and fields, both as selectors in text."""
        query = [(name, text) for name, text in (("labelSelector", labels), ("fieldSelector", fields)) if text]
        answer = await self._json("GET", kind.path(namespace), query=query)
        return [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in answer["items"]]

    async def create(self, body: Object) -> Object:
        """Makes an object.

        Raises:
            ConflictError: it exists already.
        """
        kind, metadata = kind_of(body), body["metadata"]
        query = [("fieldManager", FIELD_MANAGER)]
        return await self._json("POST", kind.path(metadata["namespace"]), body=body, query=query)

    async def apply(self, body: Object, *, force: bool = True) -> Object:
        """Server-side apply: the fields given become as given, all others stay as they are.

        Raises:
            ConflictError: without `force`, somebody else has set one of the fields to another value; the message says
                who and which.
        """
        kind, metadata = kind_of(body), body["metadata"]
        return await self._json(
            "PATCH",
            kind.path(metadata["namespace"], metadata["name"]),
            body=body,
            query=[("fieldManager", FIELD_MANAGER), ("force", "true" if force else "false")],
            content_type="application/apply-patch+yaml",
        )

    async def replace(self, body: Object) -> Object:
        """Puts an object in the place of the version that its `resourceVersion` names.

        Raises:
            ConflictError: somebody else has changed it since.
        """
        kind, metadata = kind_of(body), body["metadata"]
        query = [("fieldManager", FIELD_MANAGER)]
        return await self._json("PUT", kind.path(metadata["namespace"], metadata["name"]), body=body, query=query)

    async def patch_status(self, kind: Kind, *, namespace: str, name: str, status: Mapping[str, Any]) -> Object:
        """Merges fields into the status; a field that is None is removed, a list is replaced."""
        return await self._json(
            "PATCH",
            kind.path(namespace, name, "status"),
            body={"status": dict(status)},
            query=[("fieldManager", FIELD_MANAGER)],
            content_type="application/merge-patch+json",
        )

    async def patch(self, kind: Kind, *, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """Merges fields into an object (JSON merge patch)."""
        return await self._json(
            "PATCH",
            kind.path(namespace, name),
            body=dict(body),
            query=[("fieldManager", FIELD_MANAGER)],
            content_type="application/merge-patch+json",
        )

    async def delete(self, kind: Kind, *, namespace: str, name: str, uid: str | None = None) -> None:
        """Deletes an object, and with `uid` only that very one; it is no error when it is gone already.

        Raises:
            ConflictError: it is still there, and the API server would not delete it just now.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._json("DELETE", kind.path(namespace, name), body=options)
        except NotFoundError:
            return
        except ConflictError as error:
            if "UID in precondition" not in str(error):
                raise
            return  # another object bears the name now

    async def serves(self, group: str) -> bool:
        """Whether the cluster has an API group."""
        answer = await self._json("GET", "/apis")
        return any(item["name"] == group for item in answer["groups"])

    async def watch(self, kind: Kind, *, namespace: str | None, labels: str = "") -> AsyncIterator[WatchEvent]:
        """Lists, then follows changes until the watch ends by itself; the caller begins again.

        Raises:
            TemporaryError: the watch broke off.
        """
        query = [("labelSelector", labels)] if labels else []
        answer = await self._json("GET", kind.path(namespace), query=query)
        for item in answer["items"]:
            yield WatchEvent(change=Change.ADDED, body=item)
        existing = frozenset(item["metadata"]["uid"] for item in answer["items"])
        yield WatchEvent(change=Change.SYNCED, body={}, existing=existing)
        query += [
            ("watch", "true"),
            ("resourceVersion", answer["metadata"]["resourceVersion"]),
            ("allowWatchBookmarks", "true"),
            # Spread, so that the watches of an operator that started with many jobs do not all end at once.
            ("timeoutSeconds", str(round(WATCH_LIFETIME * random.uniform(1.0, 1.5)))),  # noqa: S311
        ]
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._watch_silence)
        try:
            async with asyncio.timeout(
                self._timeout
            ):  # the head of the answer comes at once, whatever there is to tell
                response = await self._send("GET", kind.path(namespace), query=query, timeout=timeout)
        except TimeoutError as error:
            raise UnreachableError(f"the watch of {kind.plural} was not answered in {self._timeout:g}s") from error
        try:
            async for line in _lines(response):
                event = _parsed(line)
                if event["type"] == "ERROR":
                    return  # most often 410 Gone: the list is taken again
                if event["type"] != "BOOKMARK":
                    yield WatchEvent(change=Change(event["type"]), body=event["object"])
        finally:
            response.close()

    async def _json(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        response = await self._send(
            method, path, body=body, query=query or [], content_type=content_type, timeout=timeout
        )
        try:
            found: Object = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UnreachableError(f"{method} {path}: {error!r}") from error
        return found

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - handed to the HTTP client
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        request = await self._api.param_serialize(
            method,
            path,
            query_params=query,
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = await self._api.call_api(*request, _request_timeout=timeout)
            if not 200 <= answer.status <= 299:
                await answer.read()
                raise _renamed(answer.status, f"{method} {path}", answer.data, answer.headers)
        except ApiException as error:
            raise _renamed(error.status or 0, f"{method} {path}", error.body, error.headers or {}) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{method} {path}: {error!r}") from error
        response: aiohttp.ClientResponse = answer.response
        return response


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for line in response.content:
            if line.strip():
                yield line
    except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        raise UnreachableError(f"watch broke off: {error!r}") from error


def _parsed(line: bytes) -> Object:
    try:
        event: Object = json.loads(line)
    except ValueError as error:
        raise UnreachableError(f"watch told no JSON: {error}") from error
    return event


def kind_of(body: Mapping[str, Any]) -> Kind:
    """The kind of an object that says so itself."""
    return _BY_KIND[body["kind"]]


def _renamed(status: int, call: str, body: object, headers: Mapping[str, str]) -> TemporaryError | FinalError:
    answer = _status_object(body)
    message = f"{call}: {answer.get('message') or f'HTTP {status}'}"
    match status:
        case 404 if not (answer.get("details") or {}).get("name"):
            # Not the object is missing but its kind, as for a moment while its definition is changed.
            return NotServedError(f"{message}; the API server does not serve this kind")
        case 404:
            return NotFoundError(message)
        case 401 | 403:
            return UnauthorizedError(message)
        case 409:
            return ConflictError(message)
        case 429 | 503 | 504:
            return OverloadedError(message, after=_seconds(headers.get("Retry-After")))
        case _ if 400 <= status < 500:
            return RefusedError(message)
        case _:
            return UnreachableError(message)


def _status_object(body: object) -> Mapping[str, Any]:
    """The `Status` that the API server explains itself with; empty when somebody else answered."""
    try:
        parsed = json.loads(body) if isinstance(body, str | bytes) else body
    except ValueError:
        return {}
    return parsed if isinstance(parsed, Mapping) else {}


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdigit() else 0.0
