"""A revision's folder on a mounted volume.

A path is walked once, and no link is followed on the way: whoever exchanges a folder or a file for a link after the
path was found to be the job's gets a refusal.  Size and kind are asked of the opened file, so that nothing can change
between the question and the reading.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tlt_workloads.contract import DrafterRefusal
from tlt_workloads.rollout.revision_folder import MissingFileError, RefusedDrafterError, too_large

_LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR)
_OUTAGES = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO)


@dataclass(frozen=True)
class MountedFolder:
    """A folder by its real path, without links on the way."""

    path: Path

    @property
    def location(self) -> str:
        """The path."""
        return str(self.path)

    def read(self, name: str, *, most: int) -> bytes:
        """The whole file; see `RevisionFolder`."""
        path = self.path / name
        try:
            handle = _open(path)
            try:
                return _read(handle, path, most=most)
            finally:
                os.close(handle)
        except OSError as error:
            raise _refusal(path, error) from error


def _read(handle: int, path: Path, *, most: int) -> bytes:
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        raise RefusedDrafterError(DrafterRefusal.NOT_A_FILE, f"{path} is not a regular file")
    if facts.st_size > most:
        raise too_large(str(path), size=facts.st_size, most=most)
    with os.fdopen(handle, "rb", closefd=False) as file:
        return file.read(facts.st_size)


def _refusal(path: Path, error: OSError) -> RefusedDrafterError:
    if error.errno == errno.ENOENT:
        return MissingFileError(f"{path}: {error.strerror}")
    if error.errno in _LINK_ERRORS:
        return RefusedDrafterError(DrafterRefusal.NOT_A_FILE, f"{path}: {error.strerror} (links are not followed)")
    reason = DrafterRefusal.STORE_UNAVAILABLE if error.errno in _OUTAGES else DrafterRefusal.UNREADABLE
    return RefusedDrafterError(reason, f"{path}: {error.strerror}")


def _open(path: Path) -> int:
    """Opens a real path part by part; a pipe does not block."""
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
