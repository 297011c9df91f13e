"""A replica's place among the others: alone or in a team, and how it gets from one to the other.

Alone, nothing here waits for anybody.  In a team all replicas take every optimiser step together; they change who they
are between two steps, and gather anew when one is lost in the middle of one.  Every wait can be left at once by the
wish to stop.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tlt_workloads.tokens import TokenFile
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.team.desk import Desk
from tlt_workloads.trainer.team.entering import close_ring, hand_out, receive_state
from tlt_workloads.trainer.team.exchange import Contribution, Exchange, Sum
from tlt_workloads.trainer.team.membership import (
    Formation,
    Introduction,
    Member,
    Survey,
    form,
    host_among,
    may_go_on,
    next_host,
)
from tlt_workloads.trainer.team.peers import PeerError, is_there, knock
from tlt_workloads.trainer.team.ring import Ring, RingBrokenError
from tlt_workloads.trainer.team.scout import Scout
from tlt_workloads.trainer.team.split import Share
from tlt_workloads.trainer.team.survey import look_around
from tlt_workloads.trainer.team.trainee import StateReplacedError, TeamLostError, Trainee
from tlt_workloads.trainer.team.waiting import Waiting

ASSEMBLY_LIMIT = 2.0  # s that a host waits for those that are left of its team
GATHER_LIMIT = 15.0  # s in which a broken team must have found together
NEWCOMER_LIMIT = 10.0  # s that a newcomer waits to be let in
VISIT_LIMIT = 1.0  # s that whoever trains already stands at another door
VISIT_PAUSE = 5.0  # s until it tries again
NEWS_LIMIT = 2.0  # s after which what the lighthouse said is too old to act on
KNOCK_LOOKS = 3  # looks at the wish to stop between two knocks
QUIET = 1.0  # s without a byte after which the lighthouse is asked whether the others still live
SILENCE_LIMIT = 60.0  # s after which a team breaks whatever the lighthouse says; judging a drafter takes a while
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """What others are told of us; replaced as a whole, for threads read it."""

    lineage: str
    rank: int
    began_at: int
    is_established: bool


class Team:
    """Made once per worker.  `meet` and `gather` belong to the training thread."""

    def __init__(self, *, desk: Desk, lighthouse_url: str, tokens: TokenFile, check: Callable[[], None]) -> None:
        self._replica = new_id()
        self._desk = desk
        self._tokens = tokens
        self._waiting = Waiting(check)
        self._place = _Place(new_id(), 0, 0, is_established=False)
        self._ask_again_at = 0.0
        self._formation: Formation | None = None
        self._ring: Ring | None = None
        self._exchange: Exchange | None = None
        self._others_wait = False  # the team has agreed to gather anew after this step
        self._scout = Scout(lighthouse_url, introduce=self._introduction, tokens=tokens)
        self._scout.start()

    @property
    def share(self) -> Share:
        """Which data are this replica's."""
        if self._ring is None or self._formation is None:
            return Share()
        return Share(rank=self._place.rank, size=len(self._formation.members))

    @property
    def leads(self) -> bool:
        """Whether this replica writes checkpoints and revisions for all."""
        return self.share.rank == 0

    def meet(self, trainee: Trainee) -> None:
        """Between two steps: lets others in, or goes to those that let us in.

        Raises:
            StepAbandonedError: asked to stop.
            TeamLostError: see there.
        """
        if self._others_wait:
            self._others_wait = False
            self._gather_anew(trainee)
        elif (invitation := self._invitation(trainee)) is not None:
            self._enter_or_gather(invitation, trainee)
        elif self._ring is None and (guests := self._desk.present()):
            self._enter_or_gather(self._formed(trainee, guests), trainee)
        if not self._place.is_established:
            self._go_alone(trainee)

    def gather(self, parameters: Sequence[torch.nn.Parameter], own: Contribution, trainee: Trainee) -> Sum:
        """Sums the gradients of all replicas into every replica's.

        Args:
            parameters: whose `grad` is the sum over the replica's own positions, and then over everybody's.
            own: what is in these gradients.
            trainee: at the boundary before this step.

        Raises:
            StepAbandonedError: asked to stop; the gradients are as they were.
            StateReplacedError, TeamLostError: see there.
        """
        while self._ring is not None:
            assert self._exchange is not None
            try:
                found = self._exchange.sum(
                    self._ring, parameters, own, others_wait=self.leads and bool(self._desk.present()), wait=self._wait
                )
            except RingBrokenError as error:
                _log.info("the team broke: %s", error)
                if self._gather_anew(trainee):
                    raise StateReplacedError from error
                continue
            self._others_wait = found.others_wait
            self._desk.withdraw()  # whoever took part has healed
            return found
        return Sum.of_one(own)

    def hand_on(self, trainee: Trainee) -> None:
        """The leader has taken a step by itself: the team breaks, and gathers anew, healing from who is furthest.

        Raises:
            StepAbandonedError: asked to stop.
            TeamLostError: see there.
        """
        if self._ring is not None:
            self._gather_anew(trainee)

    def leave(self) -> None:
        """Tells everybody at once that we are gone, and never waits."""
        self._scout.close()
        if self._ring is not None:
            self._ring.close()
        self._desk.close()

    def _invitation(self, trainee: Trainee) -> Formation | None:
        """The formation of a host whom we must follow, as the lighthouse has it.

        A newcomer waits for it, and without any answer of the lighthouse so far there is nobody to wait for.  Whoever
        trains already asks for a moment now and then.
        """
        is_new, now = not self._place.is_established, time.monotonic()
        if not is_new and now < self._ask_again_at:
            return None
        end = now + (NEWCOMER_LIMIT if is_new else VISIT_LIMIT)
        while time.monotonic() < end:
            host = host_among(self._scout.known(since=now - NEWS_LIMIT) or ())
            if host is None or self._is_kin(host):
                return None
            self._ask_again_at = end + VISIT_PAUSE
            try:
                if (formation := self._knock(host.url, self._as_member(trainee), until=end)) is not None:
                    return formation
            except PeerError as error:
                _log.info("no way to %s: %s", host.url, error)
                if not is_new:
                    return None
                self._waiting.pause()
        return None

    def _is_kin(self, host: Introduction) -> bool:
        """Whether a host is one of us; the lighthouse may still know it by the lineage before."""
        kin = {member.replica for member in self._formation.members} if self._formation else {self._replica}
        return host.replica in kin or host.lineage == self._place.lineage

    def _knock(self, url: str, me: Member, *, until: float) -> Formation | None:
        """Knocks until there is a formation with us in it; None when there is none in time.  Raises PeerError."""
        while time.monotonic() < until:
            if (formation := self._waiting.aside(lambda: knock(url, me, self._tokens))) is not None:
                return formation
            for _ in range(KNOCK_LOOKS):
                self._waiting.pause()
        return None

    def _formed(self, trainee: Trainee, others: Sequence[Member]) -> Formation:
        """A formation around us with those that knock now, who are told."""
        formation = form(new_id(), self._as_member(trainee), others)
        self._desk.publish(formation)
        return formation

    def _enter_or_gather(self, formation: Formation, trainee: Trainee) -> None:
        """Enters; when that fails, goes on as before, or gathers with those that it was tried with."""
        try:
            self._enter(formation, trainee)
        except (RingBrokenError, PeerError) as error:
            _log.info("formation %s came to nothing: %s", formation.id[:8], error)
            if self._formation is not None:
                self._gather_anew(trainee)

    def _enter(self, formation: Formation, trainee: Trainee) -> bool:
        """Closes the ring, and heals when we must; returns whether our own state was replaced.

        The ring comes first: whoever sends a line is certain to come, so that nobody waits long for one that is not.

        Raises:
            RingBrokenError, PeerError: it came to nothing; our state is as it was.
        """
        rank, size = formation.rank(self._replica), len(formation.members)
        heals = formation.must_heal(formation.members[rank])
        self._break_up()
        ring = self._waiting.aside(partial(close_ring, formation, rank, desk=self._desk, tokens=self._tokens))
        progress, tensors = trainee.state()
        try:
            if formation.source == self._replica and formation.heals_anybody:
                hand_out(formation, progress, tensors, desk=self._desk)
            if heals:
                receive = partial(receive_state, formation, ring, tokens=self._tokens, like=tensors)
                trainee.adopt(*self._waiting.aside(receive))
        except BaseException:
            ring.close()
            raise
        self._ring, self._exchange, self._formation = ring, Exchange(rank=rank, size=size), formation
        self._place = _Place(formation.id, rank, formation.giver.tokens, is_established=True)
        _log.info("rank %d of %d from step %d%s", rank, size, trainee.standing()[0], ", healed" * heals)
        return heals

    def _gather_anew(self, trainee: Trainee) -> bool:
        """Those that are left find together around their lowest rank; returns whether our own state was replaced."""
        assert self._formation is not None
        before, start = self._formation, time.monotonic()
        self._break_up()
        while time.monotonic() - start < GATHER_LIMIT:
            survey = look_around(before, self._replica, since=start, scout=self._scout, waiting=self._waiting)
            if not may_go_on(survey, size=len(before.members)):
                self._waiting.pause()
                continue
            formation = self._reformed(before, survey, trainee)
            if formation is None:
                continue
            if len(formation.members) == 1:
                self._go_alone(trainee)
                return False
            try:
                return self._enter(formation, trainee)
            except (RingBrokenError, PeerError) as error:
                _log.info("formation %s came to nothing: %s", formation.id[:8], error)
                before = self._formation or before
        raise TeamLostError("others of the team may be training on")

    def _reformed(self, before: Formation, survey: Survey, trainee: Trainee) -> Formation | None:
        """The next formation, of one member when nobody else is left; None when it must be looked again."""
        host, me = before.members[next_host(survey)], self._as_member(trainee)
        if host.replica != self._replica:
            try:
                return self._knock(host.url, me, until=time.monotonic() + 2 * ASSEMBLY_LIMIT)
            except PeerError:
                return None
        end = time.monotonic() + ASSEMBLY_LIMIT
        expected = {before.members[rank] for rank in survey.alive}
        while expected and time.monotonic() < end:
            here = {member.replica for member in self._desk.present()}
            expected = {member for member in expected if member.replica not in here}
            if self._waiting.aside(partial(_all_refuse, [member.url for member in expected])):
                break
            self._waiting.pause()
        return self._formed(trainee, self._desk.present())

    def _go_alone(self, trainee: Trainee) -> None:
        self._break_up()
        steps, tokens = trainee.standing()
        self._place = _Place(new_id(), 0, tokens, is_established=True)
        _log.info("alone from step %d", steps)

    def _break_up(self) -> None:
        """Closes the ring."""
        if self._ring is not None:
            self._ring.close()
        self._ring = self._exchange = self._formation = None

    def _wait(self, silence: float) -> None:
        """Called while the others are waited for in a sum."""
        self._waiting.check()
        if silence > SILENCE_LIMIT:
            raise RingBrokenError(f"nothing came for {SILENCE_LIMIT} s")
        if silence > QUIET and self._formation is not None:
            known = self._scout.known(since=time.monotonic() - silence / 2)
            if known is not None and not {one.replica for one in self._formation.members} <= {
                one.replica for one in known
            }:
                raise RingBrokenError("the lighthouse does not hear of a member any more")

    def _introduction(self) -> Introduction:
        place = self._place
        return Introduction(
            replica=self._replica,
            url=self._desk.url,
            lineage=place.lineage,
            rank=place.rank,
            began_at=place.began_at,
            is_established=place.is_established,
        )

    def _as_member(self, trainee: Trainee) -> Member:
        steps, tokens = trainee.standing()
        return Member(
            replica=self._replica,
            url=self._desk.url,
            knock=new_id(),
            lineage=self._place.lineage,
            steps=steps,
            tokens=tokens,
        )


def open_team(settings: TrainerSettings, *, check: Callable[[], None]) -> Team | None:
    """A replica that can be found by others; None when the job has one trainer only.

    A desk that cannot be opened costs the team, never the window.
    """
    if settings.lighthouse_url is None:
        return None
    tokens = TokenFile(settings.token_file)
    try:
        desk = Desk(address=settings.address, port=settings.team_port, tokens=tokens)
    except OSError as error:
        _log.warning("training alone: port %d of %s: %s", settings.team_port, settings.address, error)
        return None
    return Team(desk=desk, lighthouse_url=settings.lighthouse_url, tokens=tokens, check=check)


def _all_refuse(urls: Sequence[str]) -> bool:
    return all(is_there(url) is False for url in urls)


def new_id() -> str:
    """A name that nobody else has."""
    return uuid.uuid4().hex
