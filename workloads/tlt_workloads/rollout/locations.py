"""Which files a caller may make this pod read: those of its own job, nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tlt_workloads.contract import JOB_VARIABLE, STORE_URL_VARIABLE


class OutsideStoreError(ValueError):
    """A location is not below the job's folder in the store, or is none at all."""


class JobFolder:
    """Where this process's job keeps its files; from the environment until a configuration says otherwise."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    @classmethod
    def from_environment(cls) -> JobFolder:
        """From `TLT_STORE_URL` and `TLT_JOB`; unknown when one is missing."""
        store, job = os.environ.get(STORE_URL_VARIABLE), os.environ.get(JOB_VARIABLE)
        return cls(job_folder(store, job) if store and job else None)

    def resolve(self, url: str) -> Path:
        """A file of the job.

        Raises:
            OutsideStoreError: it is not one, or the job is not known yet.
        """
        if self.url is None:
            raise OutsideStoreError(f"set {STORE_URL_VARIABLE} and {JOB_VARIABLE}, or send the configuration first")
        return resolve_inside(url, folder=self.url)


def job_folder(store_url: str, job: str) -> str:
    """The URL of a job's folder; `job` is "<namespace>/<name>"."""
    return f"{store_url.rstrip('/')}/{job.strip('/')}"


def local_path(url: str) -> Path:
    """The path behind a file URL or an absolute path.

    Raises:
        OutsideStoreError: the location is not on a mounted file system.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise OutsideStoreError(f"{url!r}: {error}") from error
    if parts.scheme not in ("", "file") or parts.netloc or not parts.path.startswith("/"):
        raise OutsideStoreError(f"{url!r} is not on a mounted volume; write file:///folder or an absolute path")
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


def _real(url: str) -> Path:
    try:
        return local_path(url).resolve()
    except OutsideStoreError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a NUL
        raise OutsideStoreError(f"{url!r} cannot be a path: {error}") from error
