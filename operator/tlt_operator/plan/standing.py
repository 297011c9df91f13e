"""Which revision is which: the active one, the one that is tried, those that wait; and what people asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlt_operator.api.names import EventReason, RevisionPhase, RevisionReason
from tlt_operator.api.revision import Revision, Wish
from tlt_operator.plan.actions import MarkRevision, Ruling
from tlt_operator.plan.snapshot import Snapshot

_OPEN = (None, RevisionPhase.CANDIDATE, RevisionPhase.CANARY)


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something that a person should hear of once."""

    reason: EventReason
    subject: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The revisions by what they are now, people's wishes included."""

    active: Revision | None
    ruling: Ruling | None  # why `active` is it, when its status does not say so yet
    tried: Revision | None  # on trial, or next
    waiting: Revision | None  # newer than the one on trial
    marks: tuple[MarkRevision, ...]


def stand(snapshot: Snapshot) -> Standing:
    """Sorts the revisions by their phases and by people's wishes; marks those that are out of the race."""
    revisions = sorted(snapshot.revisions, key=lambda item: item.number)
    pinned = next((item for item in revisions if item.name == snapshot.job.spec.release.pin), None)
    withdrawn = [item for item in revisions if item.wish is Wish.ROLL_BACK and item is not pinned]
    marks = [
        withdraw(item, RevisionReason.BY_HAND, "Rolled back by hand (tlt.dev/rollback)")
        for item in withdrawn
        if item.phase is not RevisionPhase.ROLLED_BACK
    ]
    usable = [item for item in revisions if item not in withdrawn and item.phase is not RevisionPhase.ROLLED_BACK]
    active, ruling = _find_active(usable, pinned)
    open_ones = [item for item in usable if item.phase in _OPEN and item is not active]
    if pinned is None:
        asked = next((item for item in reversed(open_ones) if item.wish is Wish.PROMOTE), None)
        if asked is not None:
            active, ruling = asked, Ruling(reason=RevisionReason.BY_HAND, words="Promoted by hand (tlt.dev/promote)")
            open_ones = [item for item in open_ones if item.number > asked.number]
        if active is not None and active.phase is RevisionPhase.ACTIVE:
            stale = [item for item in open_ones if item.number < active.number]
            marks += [_overtake(item, active) for item in stale]
            open_ones = [item for item in open_ones if item not in stale]
    tried, waiting = _next_in_line(snapshot, open_ones, pinned=pinned)
    last = waiting or tried
    marks += [_overtake(item, last) for item in open_ones if last is not None and item not in (tried, waiting)]
    if waiting is not None:
        marks.append(_wait(snapshot, waiting, tried=tried, pinned=pinned))
    return Standing(active=active, ruling=ruling, tried=tried, waiting=waiting, marks=tuple(marks))


def _find_active(usable: Sequence[Revision], pinned: Revision | None) -> tuple[Revision | None, Ruling | None]:
    """The revision for all pods, and why it is it when that is news."""
    if pinned is not None:
        words = "Pinned by spec.release.pin"
        news = pinned.phase is not RevisionPhase.ACTIVE
        return pinned, Ruling(reason=RevisionReason.PINNED, words=words) if news else None
    active = next((item for item in reversed(usable) if item.phase is RevisionPhase.ACTIVE), None)
    if active is not None:
        return active, None
    # Only a roll-back leaves no active one behind: whoever is promoted is so before the last one is replaced.
    last = next((item for item in reversed(usable) if item.promoted and item.phase not in _OPEN), None)
    words = "Restored: the revision after it was rolled back"
    return last, Ruling(reason=RevisionReason.RESTORED, words=words) if last is not None else None


def _next_in_line(
    snapshot: Snapshot, open_ones: Sequence[Revision], *, pinned: Revision | None
) -> tuple[Revision | None, Revision | None]:
    """The one on trial, which goes on, and the newest behind it; without a trial that goes on the newest is next."""
    newest = open_ones[-1] if open_ones else None
    running = next((item for item in reversed(open_ones) if item.phase is RevisionPhase.CANARY), None)
    if pinned is not None:
        return None, newest
    if running is None and snapshot.job.spec.suspend:
        return None, newest
    tried = running or newest
    return tried, newest if newest is not tried else None


def withdraw(revision: Revision, reason: RevisionReason, words: str) -> MarkRevision:
    """Rolls a revision back."""
    ruling = Ruling(reason=reason, words=words)
    return MarkRevision(revision=revision, phase=RevisionPhase.ROLLED_BACK, message=words, ruling=ruling)


def _overtake(revision: Revision, newer: Revision) -> MarkRevision:
    words = f"{newer.name} came before it was decided on"
    ruling = Ruling(reason=RevisionReason.OVERTAKEN, words=words)
    return MarkRevision(revision=revision, phase=RevisionPhase.SUPERSEDED, message=words, ruling=ruling)


def _wait(snapshot: Snapshot, revision: Revision, *, tried: Revision | None, pinned: Revision | None) -> MarkRevision:
    if pinned is not None:
        words = f"Waits: spec.release.pin holds the job to {pinned.name}"
    elif tried is not None:
        words = f"Waits until {tried.name} is decided on"
    else:
        words = "Waits: spec.suspend is true" if snapshot.job.spec.suspend else "Waits"
    ruling = Ruling(reason=RevisionReason.WAITING, words=words)
    return MarkRevision(revision=revision, phase=RevisionPhase.CANDIDATE, message=words, ruling=ruling)


def find_remarks(snapshot: Snapshot) -> tuple[Remark, ...]:
    """What people asked for and did not get."""
    found = [
        Remark(
            reason=EventReason.RELEASE_IGNORED,
            subject=f"{item.name}/{annotation}",
            message=f'Annotation {annotation} of {item.name} does nothing: its value must be "true"',
        )
        for item in snapshot.revisions
        for annotation in item.odd_wishes
    ]
    pin = snapshot.job.spec.release.pin
    for item in snapshot.revisions:
        why = _why_not(item, pin)
        if why is not None:
            found.append(Remark(reason=EventReason.RELEASE_IGNORED, subject=f"{item.name}/wish", message=why))
    if (missing := missing_pin(snapshot)) is not None:
        message = f"spec.release.pin names {missing}, which is no DrafterRevision of this job; nothing is pinned"
        found.append(Remark(reason=EventReason.RELEASE_IGNORED, subject="pin", message=message))
    return tuple(found)


def _why_not(revision: Revision, pin: str | None) -> str | None:
    """Why a wish is not fulfilled; None when it is, or there is none."""
    name = revision.name
    if revision.wish is Wish.ROLL_BACK and name == pin:
        return f"{name} is not rolled back while spec.release.pin names it"
    if revision.wish is Wish.PROMOTE:
        if pin is not None and name != pin:
            return f"{name} is not promoted while spec.release.pin holds the job to {pin}"
        if revision.phase is RevisionPhase.ROLLED_BACK and name != pin:
            return f"{name} was rolled back and is not promoted; set spec.release.pin to {name} to use it all the same"
        if revision.phase is RevisionPhase.SUPERSEDED and not revision.promoted:
            return f"{name} was overtaken by a newer revision; set spec.release.pin to {name} to use it all the same"
    return None


def missing_pin(snapshot: Snapshot) -> str | None:
    """The pin, when it names nothing."""
    pin = snapshot.job.spec.release.pin
    return pin if pin is not None and all(item.name != pin for item in snapshot.revisions) else None
