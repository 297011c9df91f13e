"""The job's objects in the cluster, kept current by a watch that begins again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tlt_operator.clients.kube import Change, Kind, Kubernetes, WatchEvent
from tlt_operator.errors import OperatorError
from tlt_operator.reconcile.backoff import Backoff

FIRST_RETRY = 0.5
STEADY = 30.0  # seconds after which a watch that ended has been a good one

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")


class Objects(Generic[Parsed]):
    """Objects of one kind and selector by uid.

    `synced` turns true with the first complete list; `trouble` is why there is none now, and None while all is well.
    `version` grows with each change.
    """

    def __init__(
        self,
        kube: Kubernetes,
        kind: Kind,
        *,
        namespace: str,
        labels: str,
        parse: Callable[[dict[str, Any]], Parsed],
        wake: Callable[[], None],
    ) -> None:
        self._kube = kube
        self._kind = kind
        self._namespace = namespace
        self._labels = labels
        self._parse = parse
        self._wake = wake
        self._found: dict[str, Parsed] = {}
        self.synced = False
        self.version = 0
        self.trouble: OperatorError | None = None

    def all(self) -> tuple[Parsed, ...]:
        """Everything that exists, as of the last event."""
        return tuple(self._found.values())

    async def follow(self) -> None:
        """Runs until cancelled."""
        backoff, loop = Backoff(first=FIRST_RETRY), asyncio.get_running_loop()
        while True:
            began = loop.time()
            failure: Exception | None = None
            try:
                async for event in self._kube.watch(self._kind, namespace=self._namespace, labels=self._labels):
                    if event.change is Change.SYNCED:
                        began = loop.time()
                    self._take(event)
            except OperatorError as error:
                failure = error
                self._break(error)
            except Exception as error:
                logger.exception("Watch of %s in %s failed in an unforeseen way", self._kind.plural, self._namespace)
                failure = error
            if loop.time() - began >= STEADY:
                backoff.reset()
                if failure is None:
                    continue
            # A list that works is no sign of health when each watch after it breaks: that would be a storm of lists.
            pause = backoff.next(failure)
            reason = failure or "ended early"
            logger.warning("Watch of %s in %s: %s; again in %.1fs", self._kind.plural, self._namespace, reason, pause)
            await asyncio.sleep(pause)

    def _break(self, error: OperatorError) -> None:
        if str(error) == str(self.trouble):
            return
        self.trouble = error
        self._wake()

    def _take(self, event: WatchEvent) -> None:
        if event.change is Change.SYNCED:
            for uid in [uid for uid in self._found if uid not in event.existing]:
                del self._found[uid]
            self.synced, self.trouble = True, None
        elif event.change is Change.DELETED:
            self._found.pop(event.body["metadata"]["uid"], None)
        else:
            self._found[event.body["metadata"]["uid"]] = self._parse(event.body)
        self.version += 1
        self._wake()
