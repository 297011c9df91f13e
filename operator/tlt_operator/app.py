"""Kopf: settings, login and the one kind of event.  Every handler is one call into `reconcile`.

TLTJobs are followed by plain event handlers.  A Kopf daemon would put a finalizer on every job, and a job could then
not be deleted while no operator runs; a timer or daemon would also end for good with its first failed patch
(https://github.com/nolar/kopf/issues/642).  Kopf writes nothing to any object this way: no annotation, no finalizer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import uuid
from collections.abc import Iterator
from typing import Any, cast

import aiohttp
import kopf
from prometheus_client import start_http_server

from tlt_operator.api.names import GROUP, JOB_PLURAL, VERSION
from tlt_operator.clients.kube import Kubernetes
from tlt_operator.config import Settings
from tlt_operator.errors import FinalError, TemporaryError
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.backoff import LONGEST, Backoff
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.election import Election, lead
from tlt_operator.reconcile.jobs import Jobs
from tlt_operator.telemetry.metrics import Metrics
from tlt_operator.telemetry.probes import Probes

COLLECT_AFTER = 50_000  # objects made and not dropped
FIRST_RETRY = 0.5

logger = logging.getLogger(__name__)


class Operator:
    """One operator process: what `run` starts, and what the handlers need."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.ready = asyncio.Event()
        self._kube: Kubernetes | None = None
        self._session: aiohttp.ClientSession | None = None
        self._jobs: Jobs | None = None
        self._recheck: asyncio.Task[None] | None = None
        self._election: Election | None = None
        self._leading: asyncio.Task[None] | None = None
        self._probes = Probes(trouble=self._trouble, ready=self.ready.is_set)

    @property
    def jobs(self) -> Jobs:
        """The jobs that are looked after; there are none before `start`."""
        if self._jobs is None:
            raise FinalError("the operator has not been started")
        return self._jobs

    async def start(self) -> None:
        """Connects, waits for the API server, and checks what would otherwise fail without a word later.

        Raises:
            kopf.PermanentError: no access to a cluster, or its resource definitions are missing.
        """
        await self._probes.start(self.settings.probe_port)
        try:
            self._kube = await Kubernetes.connect(request_timeout=self.settings.request_timeout)
            await self._check_cluster(self._kube)
        except FinalError as error:
            raise kopf.PermanentError(str(error)) from error
        # Every pod of every job holds one connection open, so their number is bounded by the jobs alone.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30))
        context = Context(
            kube=self._kube,
            session=self._session,
            settings=self.settings,
            metrics=self.metrics,
            instance=socket.gethostname(),
        )
        self._jobs = Jobs(context)
        self._recheck = asyncio.create_task(self._jobs.recheck())
        if self.settings.leader_lease:
            self._election = Election(
                kube=self._kube,
                namespace=self.settings.leader_namespace,
                name=self.settings.leader_lease,
                identity=self.settings.leader_identity or f"{context.instance}_{uuid.uuid4()}",
            )
            self._leading = asyncio.create_task(lead(self._election, begin=self._jobs.begin, pause=self._jobs.pause))
        else:
            self._jobs.begin()

    async def stop(self) -> None:
        """Closes everything; leases and trainers stay for the next operator."""
        await self._probes.stop()
        if self._recheck is not None:
            await cancel(self._recheck)
        if self._leading is not None:
            await cancel(self._leading)
        if self._jobs is not None:
            await self._jobs.close()
        if self._election is not None:
            await self._election.release()
        if self._session is not None:
            await self._session.close()
        if self._kube is not None:
            await self._kube.close()

    async def _check_cluster(self, kube: Kubernetes) -> None:
        """Returns when the API server has answered that it knows the project's kinds.

        It waits here, because Kopf would try a failed start again only after a minute.
        """
        backoff = Backoff(first=FIRST_RETRY)
        while True:
            try:
                served = await kube.serves(GROUP)
            except TemporaryError as error:
                pause = backoff.next(error)
                logger.warning("The API server is not there yet: %s; again in %.1fs", error, pause)
                await asyncio.sleep(pause)
                continue
            if not served:
                raise FinalError(f"the cluster does not know {GROUP}; apply the CRDs (crds/*.yaml) first")
            return

    def _trouble(self) -> str:
        if self._jobs is None:
            return ""
        if self._leading is not None and self._leading.done():
            return "the election has ended"
        if self._recheck is not None and self._recheck.done():
            return "the check for deleted jobs has ended"
        hung = self._jobs.hung()
        if hung:
            return f"not looked at for too long: {', '.join(hung)}"
        if self._jobs.acting:
            self.metrics.heartbeat.set_to_current_time()
        return ""


def register(operator: Operator) -> kopf.OperatorRegistry:
    """The handlers of one operator, on a registry of their own."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    @kopf.on.event(GROUP, VERSION, JOB_PLURAL, registry=registry)
    async def changed(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] == "DELETED":
            await operator.jobs.gone(dict(event["object"]))
        else:
            operator.jobs.seen(dict(event["object"]))

    return registry


class EndlessBackoffs:
    """Kopf ends the process when a watch's list has failed as often as these last, so they must not run out.

    A process that ends during an outage soon waits in the kubelet's crash loop, for minutes after it.
    """

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0, 2.0, 5.0)
        while True:
            yield LONGEST


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Own names on everything that Kopf might ever write, short timeouts, no dynamic discovery."""
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, key="last-handled")
    settings.networking.request_timeout = 10
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = EndlessBackoffs()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.posting.enabled = False
    settings.scanning.disabled = True  # needs no right to list namespaces and CRDs


def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    operator = Operator(settings)
    # Each pass makes some objects for every pod and drops them all.  With the usual threshold the collector would look
    # for cycles among them many times in every pass, and through what was imported as well.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    start_http_server(settings.metrics_port, registry=operator.metrics.registry)
    kopf.run(
        registry=register(operator),
        # Kopf would make one from the user's name, and a container's user has none.
        identity=cast(Any, socket.gethostname()),  # its type is not public
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        ready_flag=operator.ready,
    )
