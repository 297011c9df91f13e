"""What reading a revision asks of the place where it lies."""

from __future__ import annotations

from typing import Protocol

from tlt_workloads.contract import DrafterRefusal


class RefusedDrafterError(Exception):
    """This drafter is not taken."""

    def __init__(self, reason: DrafterRefusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class MissingFileError(RefusedDrafterError):
    """There is no such file, says a place that can be asked."""

    def __init__(self, message: str) -> None:
        super().__init__(DrafterRefusal.UNREADABLE, message)


class RevisionFolder(Protocol):
    """A folder of the job's, on a volume or in an object store.  Made by `locations.JobFolder`."""

    @property
    def location(self) -> str:
        """Where it is: for messages, and for other processes to find it again."""

    def read(self, name: str, *, most: int) -> bytes:
        """The whole file, once it is known to be one and not too large.

        Args:
            name: of the file.
            most: bytes that it may have.

        Raises:
            MissingFileError: there is none.
            RefusedDrafterError: NotAFile, TooLarge, Unreadable, or StoreUnavailable.
        """


def too_large(where: str, *, size: int, most: int) -> RefusedDrafterError:
    """The refusal of a file that is not read, because of its size."""
    message = f"{where} has {size} bytes, more than the {most} that such a file may have"
    return RefusedDrafterError(DrafterRefusal.TOO_LARGE, message)
