"""Which policy is in force, and what a pod needs before it may serve.  Pure.

A pod that joins, or comes back, must not answer with an older policy than its peers.  The ledger remembers the last
policy update that came by file (a path and a version, nothing else), so that it can be sent again to a single pod.  An
update that came over a network group cannot be repeated: a pod that missed it waits for the next one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

FILE_TRANSPORT = "file"
NUMBERED_VERSION = re.compile(r".*?(\d+)")


class Admission(enum.Enum):
    """What to do with a pod that answers its health probe and does not serve yet."""

    SERVE = "serve"
    REPLAY = "replay"  # send it the policy in force, then let it serve
    WAIT = "wait"  # nothing can be sent to it now


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy that all serving pods have."""

    number: int
    version: str
    update_info: Mapping[str, Any] | None  # None: not repeatable
    init_info: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateSession:
    """An update that has started and not finished, and the pods that take part."""

    members: frozenset[str]
    update_info: Mapping[str, Any] | None = None


class PolicyLedger:
    """The policy in force and the update under way."""

    def __init__(self) -> None:
        self.init_info: Mapping[str, Any] | None = None
        self.policy: Policy | None = None
        self.session: UpdateSession | None = None
        self.paused = False

    @property
    def number(self) -> int:
        """Number of the policy in force, 0 before the first update."""
        return self.policy.number if self.policy else 0

    @property
    def by_file(self) -> bool:
        """Whether updates come by file, so that a pod may miss one and catch up."""
        return _is_by_file(self.session.update_info if self.session else None) or _is_by_file(self.init_info)

    def initialise(self, init_info: Mapping[str, Any]) -> None:
        """The learner opened its weight transfer."""
        self.init_info = dict(init_info)

    def start(self, members: Iterable[str]) -> None:
        """An update begins on these pods."""
        self.session = UpdateSession(members=frozenset(members))

    def stage(self, update_info: Mapping[str, Any]) -> None:
        """The pods have received the weights."""
        session = self.session or UpdateSession(members=frozenset())
        # Several updates in one session (one per tensor) cannot be repeated as one.
        again = session.update_info is not None
        self.session = replace(session, update_info={} if again else dict(update_info))

    def leave(self, address: str) -> None:
        """A pod was lost while the update was under way."""
        if self.session:
            self.session = replace(self.session, members=self.session.members - {address})

    def next_version(self) -> str:
        """The version for an update whose learner gives none."""
        return f"policy-{self.number + 1}"

    def finish(self, version: str) -> None:
        """The update is complete on all its pods."""
        info = self.session.update_info if self.session else None
        self.policy = Policy(
            number=_number_of(version) or self.number + 1,
            version=version,
            update_info=info if _is_by_file(info) else None,
            init_info=self.init_info if _is_by_file(self.init_info) else None,
        )
        self.session = None

    def abandon(self) -> None:
        """The learner stopped half-way; the policy in force stays the one before."""
        self.session = None

    def recognise(self, versions: Iterable[str | None]) -> None:
        """Learns from the pods which policy is in force, after a restart of the gateway."""
        numbered = {_number_of(version): version for version in versions if version}
        newest = max((number for number in numbered if number), default=None)
        if self.policy is None and newest:
            self.policy = Policy(number=newest, version=str(numbered[newest]), update_info=None)

    def admission(self, version: str | None) -> Admission:
        """What a pod that reports `version` (None: it cannot tell) needs before it may serve."""
        if self.session or self.paused:
            return Admission.WAIT
        if self.policy is None or self.policy.version == version:
            return Admission.SERVE
        return Admission.REPLAY if self.policy.update_info else Admission.WAIT


def _is_by_file(info: Mapping[str, Any] | None) -> bool:
    return bool(info) and info is not None and info.get("transport") == FILE_TRANSPORT


def _number_of(version: str | None) -> int | None:
    found = NUMBERED_VERSION.fullmatch(version or "")
    return int(found.group(1)) if found else None
