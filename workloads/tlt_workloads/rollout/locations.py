"""Which files a caller may make this pod read: those of its own job, nothing else.

This is the only place that decides so.  On a mounted volume links are followed first and the real path must then lie
below the job's folder.  An object store has neither links nor `..`, and clients of object stores disagree about what
`%2e`, `//` or `?` mean; so a location there must be spelt as a trainer spells it, or it is not taken.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tlt_workloads.contract import JOB_VARIABLE, REVISION_FOLDER, STORE_URL_VARIABLE
from tlt_workloads.rollout.mounted_folder import MountedFolder
from tlt_workloads.rollout.object_folder import ObjectFolder
from tlt_workloads.rollout.revision_folder import RevisionFolder
from tlt_workloads.store_urls import StoreError, check_store_url, shown_url

_MOUNTED_SCHEMES = ("", "file")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*(/[A-Za-z0-9_][A-Za-z0-9._=-]*)*")
_LONGEST = 1024  # bytes of an object's key on S3


class OutsideStoreError(ValueError):
    """A location is not below the job's folder in the store, or is none at all."""


@dataclass
class JobFolder:
    """Where this process's job keeps its files; from the environment until a configuration says otherwise."""

    url: str | None

    @classmethod
    def from_environment(cls) -> JobFolder:
        """From `TLT_STORE_URL` and `TLT_JOB`; unknown when one is missing."""
        store, job = os.environ.get(STORE_URL_VARIABLE), os.environ.get(JOB_VARIABLE)
        return cls(job_folder(store, job) if store and job else None)

    def folder(self, location: str) -> RevisionFolder:
        """A folder of the job, wherever its store is.

        Raises:
            OutsideStoreError: it is not one, or the job is not known yet.
        """
        root = self._known()
        if is_mounted(root):
            return MountedFolder(resolve_inside(location, folder=root))
        return ObjectFolder(object_inside(location, folder=root))

    def resolve(self, url: str) -> Path:
        """A file of the job on a mounted volume, which is what the engine's own readers of policies can open.

        Raises:
            OutsideStoreError: it is not one, the job's store is no volume, or the job is not known yet.
        """
        root = self._known()
        if not is_mounted(root):
            raise OutsideStoreError(
                f"the job's store {shown_url(root)!r} is not on a mounted volume, and policies by file are read from "
                "there only; send the weights by NCCL, or give the job a file:/// store"
            )
        return resolve_inside(url, folder=root)

    def _known(self) -> str:
        if self.url is None:
            raise OutsideStoreError(f"set {STORE_URL_VARIABLE} and {JOB_VARIABLE}, or send the configuration first")
        return self.url


def job_folder(store_url: str, job: str) -> str:
    """The URL of a job's folder; `job` is "<namespace>/<name>"."""
    return f"{store_url.rstrip('/')}/{job.strip('/')}"


def is_mounted(url: str) -> bool:
    """Whether a store's URL leads to a mounted file system."""
    return url.startswith("/") or url.split(":", 1)[0] in _MOUNTED_SCHEMES


def object_inside(url: str, *, folder: str) -> str:
    """The URL of a folder in an object store, which must lie below `folder`.

    Args:
        url: as a caller gives it; one `/` at its end is forgiven.
        folder: the job's, in the object store that the configuration names.

    Raises:
        OutsideStoreError: another scheme, bucket or folder, or a spelling that could mean another place.
    """
    try:
        check_store_url(folder)
    except StoreError as error:
        raise OutsideStoreError(str(error)) from error
    root = folder.rstrip("/")
    key = url.removeprefix(f"{root}/").removesuffix("/")
    if not url.startswith(f"{root}/") or not key:
        raise OutsideStoreError(f"{shown_url(url)!r} is not below the job's folder {root}; name {_example(root)}")
    if not _KEY.fullmatch(key) or len(url) > _LONGEST:
        raise OutsideStoreError(
            f"{shown_url(url)!r} is not spelt as a folder of an object store: parts of letters, digits, '.', '_', '=' "
            f"and '-', none of which begins with a '.', without options, and {_LONGEST} bytes at most; "
            f"name {_example(root)}"
        )
    return f"{root}/{key}"


def local_path(url: str) -> Path:
    """The path behind a file URL or an absolute path.

    Raises:
        OutsideStoreError: the location is not on a mounted file system.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise OutsideStoreError(f"{url!r}: {error}") from error
    if parts.scheme not in _MOUNTED_SCHEMES or parts.netloc or not parts.path.startswith("/"):
        shown = shown_url(url)
        raise OutsideStoreError(f"{shown!r} is not on a mounted volume; write file:///folder or an absolute path")
    return Path(unquote(parts.path) if parts.scheme else url)


def resolve_inside(url: str, *, folder: str) -> Path:
    """The real path of a location, links followed, which must lie below `folder`.

    Raises:
        OutsideStoreError: it leads elsewhere, by `..`, by a link or openly, or nowhere.
    """
    root, path = _real(folder), _real(url)
    if path == root or root not in path.parents:
        raise OutsideStoreError(f"{url!r} is not below the job's folder {root}")
    return path


def _example(root: str) -> str:
    return f"{root}/{REVISION_FOLDER}/<revision>"


def _real(url: str) -> Path:
    try:
        return local_path(url).resolve()
    except OutsideStoreError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a NUL
        raise OutsideStoreError(f"{url!r} cannot be a path: {error}") from error
