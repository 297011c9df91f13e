"""Who belongs together, and who follows whom: decisions without effects.

A *lineage* names one history of weights.  A replica that goes on alone begins a lineage, and so does each formation of
a team; nobody else ever adds a step to it.  So two replicas hold equal weights exactly when lineage and step are
equal, and what is not equal is healed, never averaged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tlt_workloads.codec import ContractError, decode, encode, limits

LARGEST_TEAM = 256
_ID = limits(pattern="[0-9a-f]{32}")
_URL = limits(pattern=r"http://[0-9A-Za-z.:\[\]-]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """What a replica tells the lighthouse of itself.  Nothing in it changes while its lineage lives."""

    replica: str = field(metadata=_ID)
    url: str = field(metadata=_URL)  # of its desk
    lineage: str = field(metadata=_ID)
    rank: int = field(default=0, metadata=limits(minimum=0))  # in the lineage's team
    began_at: int = field(default=0, metadata=limits(minimum=0))  # tokens trained when the lineage began
    is_established: bool = False  # has trained; a newcomer only waits

    def signature(self, token: str) -> str:
        """Proves that a holder of the job's token wrote this; the lighthouse itself asks nobody for one."""
        text = "\n".join(f"{name}={value}" for name, value in sorted(asdict(self).items()))
        return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Member:
    """A replica as it comes to a formation, at a step's boundary."""

    replica: str = field(metadata=_ID)
    url: str = field(metadata=_URL)
    knock: str = field(metadata=_ID)  # names this one attempt
    lineage: str = field(metadata=_ID)
    steps: int = field(metadata=limits(minimum=0))
    tokens: int = field(metadata=limits(minimum=0))


@dataclass(frozen=True, kw_only=True)
class Formation:
    """A team as its host made it.  Ranks are places in `members`; the host's is 0."""

    id: str = field(metadata=_ID)  # and the lineage that begins
    members: tuple[Member, ...]
    source: str = field(metadata=_ID)  # the replica whose state counts

    def rank(self, replica: str) -> int:
        """Raises ValueError when the replica does not belong to it."""
        return [member.replica for member in self.members].index(replica)

    @property
    def giver(self) -> Member:
        """The member whose state counts."""
        return next(member for member in self.members if member.replica == self.source)

    def must_heal(self, member: Member) -> bool:
        """Whether a member's state is another one than the source's."""
        return (member.lineage, member.steps) != (self.giver.lineage, self.giver.steps)

    @property
    def heals_anybody(self) -> bool:
        """Whether the source is asked for its state."""
        return any(self.must_heal(member) for member in self.members)


def form(identity: str, host: Member, others: Iterable[Member]) -> Formation:
    """A formation of a host, those that come with it, and guests.

    Of the host's lineage the one that is furthest counts: when a team breaks in the middle of a sum, some have the
    step and some do not.
    """
    members = (host, *sorted(others, key=lambda member: member.replica))[:LARGEST_TEAM]
    kin = [member for member in members if member.lineage == host.lineage]
    source = max(kin, key=lambda member: (member.steps, member.replica == host.replica, member.replica))
    return Formation(id=identity, members=members, source=source.replica)


def host_among(introductions: Iterable[Introduction]) -> Introduction | None:
    """Whom a replica of another lineage must follow; the same answer to everybody who was told the same.

    Established lineages count before newcomers and more trained ones before less trained ones; in a lineage its lowest
    rank speaks.
    """

    def standing(one: Introduction) -> tuple[bool, int, str, int, str]:
        return (one.is_established, one.began_at, one.lineage, -one.rank, one.replica)

    return max(introductions, key=standing, default=None)


def read_introductions(found: Iterable[Mapping[str, Any]], tokens: Sequence[str]) -> tuple[Introduction, ...]:
    """Those of the lighthouse's answers that a holder of the token has signed; anything else is left out."""
    trusted = []
    for item in found:
        try:
            one = decode(Introduction, {name: value for name, value in item.items() if name != "signature"})
        except ContractError:
            continue
        given = str(item.get("signature", ""))
        if any(hmac.compare_digest(given.encode(), one.signature(token).encode()) for token in tokens):
            trusted.append(one)
    return tuple(trusted)


def signed(introduction: Introduction, token: str) -> dict[str, Any]:
    """What `read_introductions` reads."""
    return {**encode(introduction), "signature": introduction.signature(token)}


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a replica finds of its team-mates after the team broke."""

    rank: int  # its own
    alive: frozenset[int]  # answer
    gone: frozenset[int]  # refuse, or are not heard of by the lighthouse any more

    def unknown(self, size: int) -> frozenset[int]:
        """Team-mates that neither answer nor are known to be gone."""
        return frozenset(range(size)) - self.alive - self.gone - {self.rank}


def may_go_on(survey: Survey, *, size: int) -> bool:
    """Whether a replica may train on without those that it cannot reach.

    With nobody unknown there is nobody who could do the same.  Else only one side may, so that two never part ways
    unnoticed: the side with the lowest rank of the team that was.
    """
    unknown = survey.unknown(size)
    return not unknown or min(survey.alive | {survey.rank}) < min(unknown)


def next_host(survey: Survey) -> int:
    """The rank whom those that are left gather round."""
    return min(survey.alive | {survey.rank})
