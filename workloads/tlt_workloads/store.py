"""Where shards, checkpoints and revisions lie: one folder behind any URL that fsspec can open.

Paths are relative to the store's root and use `/`.  Writers never let a reader see half a file: on a local file
system a file appears by rename, elsewhere an object appears by one whole put.  Names that begin with a dot are
unfinished writes; listings leave them out.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from tlt_workloads.store_urls import OBJECT_SCHEMES, check_store_url, shown_url
from tlt_workloads.store_urls import StoreError as StoreError

_CHUNK = 1 << 20
# One more try at most, and soon: whoever uses the store tries again anyway, and must not hang meanwhile.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}}
_S3_TRIES = 2


class StoreProblem(enum.Enum):
    """Why a store did not do what it was asked to; the value is what a person can do about it."""

    FULL = "the store is full: make room, or lower spec.capture.maxBytes"
    READ_ONLY = "the store is mounted read-only: mount the volume for writing"
    DENIED = "the store refuses: look at the credentials in spec.store.secretRef and at who may write there"
    GONE = "the store cannot be reached: look at spec.store.url, the volume and the network"
    FAILED = "the store failed"


_PROBLEMS = {
    errno.ENOSPC: StoreProblem.FULL,
    errno.EDQUOT: StoreProblem.FULL,
    errno.EROFS: StoreProblem.READ_ONLY,
    errno.EACCES: StoreProblem.DENIED,
    errno.EPERM: StoreProblem.DENIED,
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN),
        StoreProblem.GONE,
    ),
}
_UNREACHABLE = ("Connect", "Timeout", "Endpoint")  # in the names of the errors of HTTP clients


def store_problem(error: BaseException) -> StoreProblem:
    """What a failure of a store means.

    Local file systems raise `OSError` with a number.  `s3fs` and its like raise some without one, and let errors of
    their HTTP client through, of which only the name says what they are; what an error was caused by is looked at too.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number in _PROBLEMS:
            return _PROBLEMS[number]
        if isinstance(seen, PermissionError) or type(seen).__name__.endswith("CredentialsError"):
            return StoreProblem.DENIED
        if isinstance(seen, FileNotFoundError | NotADirectoryError | ConnectionError | TimeoutError):
            return StoreProblem.GONE
        if any(word in type(seen).__name__ for word in _UNREACHABLE):
            return StoreProblem.GONE
        seen = seen.__cause__ or seen.__context__
    return StoreProblem.FAILED


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing."""

    name: str
    size: int  # bytes


@dataclass(frozen=True)
class Store:
    """A folder behind a URL.  Made by `open_store`."""

    url: str
    _files: Any  # fsspec.AbstractFileSystem
    _root: str

    @property
    def is_local(self) -> bool:
        """Whether the files are on a mounted file system."""
        return "file" in _protocols(self._files)

    def child(self, folder: str) -> Store:
        """The store whose root is a folder of this one."""
        return Store(f"{self.url.rstrip('/')}/{_relative(folder)}", self._files, self._absolute(folder))

    def write_atomic(self, path: str, data: bytes) -> None:
        """Writes a file so that it is seen whole or not at all, and is durable on return."""
        target = self._absolute(path)
        if self.is_local:
            _write_renamed(Path(target), data)
        else:
            self._files.pipe_file(target, data)

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file only if none is there; of several writers exactly one gets True."""
        target = self._absolute(path)
        try:
            if self.is_local:
                _write_linked(Path(target), data)
            else:
                self._files.pipe_file(target, data, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _is_taken(error):
                return False
            raise
        return True

    def read(self, path: str, *, start: int = 0, stop: int | None = None, within: float | None = None) -> bytes:
        """The whole file, or its bytes from `start` to `stop`.

        Args:
            path: of the file.
            start: the first byte.
            stop: behind the last byte.
            within: seconds after which an object store counts as gone; a mounted one takes its time.

        Raises:
            FileNotFoundError: there is none, or it has just been removed.
        """
        path = self._absolute(path)
        data: bytes = self._files.cat_file(path, start=start, end=stop, **self._patience(within))
        return data

    def list(self, folder: str) -> tuple[StoredFile, ...]:
        """The finished files of a folder by name; empty when the folder does not exist."""
        return tuple(
            StoredFile(_name(item["name"]), int(item["size"] or 0))
            for item in self._items(folder)
            if item["type"] == "file"
        )

    def folders(self, folder: str) -> tuple[str, ...]:
        """The names of a folder's folders; empty when the folder does not exist."""
        return tuple(_name(item["name"]) for item in self._items(folder) if item["type"] == "directory")

    def size(self, path: str, *, within: float | None = None) -> int:
        """Bytes of a file as it is now; `within` as for `read`.

        Raises:
            FileNotFoundError: there is none.
            IsADirectoryError: it is a folder.
        """
        self._files.invalidate_cache()
        found: Mapping[str, Any] = self._files.info(self._absolute(path), **self._patience(within))
        if found["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return int(found["size"])

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there now."""
        self._files.invalidate_cache()
        return bool(self._files.exists(self._absolute(path)))

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder; nothing happens when it is not there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._absolute(path), recursive=True)

    def local_path(self, path: str) -> Path | None:
        """The path on a mounted file system, None when the store is elsewhere."""
        return Path(self._absolute(path)) if self.is_local else None

    def sha256(self, path: str) -> str:
        """Hex digest of a file, read in pieces."""
        digest = hashlib.sha256()
        with self._files.open(self._absolute(path), "rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    def _patience(self, within: float | None) -> Mapping[str, float]:
        """fsspec ends calls of clients that it runs in its own thread, and of no others."""
        return {} if within is None or not self._files.async_impl else {"timeout": within}

    def _absolute(self, path: str) -> str:
        relative = _relative(path)
        return f"{self._root}/{relative}" if relative else self._root

    def _items(self, folder: str) -> Sequence[Mapping[str, Any]]:
        self._files.invalidate_cache()
        try:
            items = self._files.ls(self._absolute(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return sorted(
            (item for item in items if not _name(item["name"]).startswith(".")), key=lambda item: item["name"]
        )


def open_store(url: str) -> Store:
    """Opens a store; nothing is created until the first write.

    Args:
        url: `file:///folder`, an absolute path, or `s3://`, `gs://`, `abfs://` with bucket and prefix.  Opening a
            store may take seconds the first time: the client of a scheme is imported, and looks for credentials.

    Raises:
        StoreError: unknown scheme, relative path, credentials or options in the URL, or the scheme's package is not
            installed.
    """
    scheme = check_store_url(url)
    try:
        files, root = fsspec.core.url_to_fs(url, **({"config_kwargs": _S3_CLIENT} if scheme == "s3" else {}))
    except Exception as error:
        needs = f"; it needs {OBJECT_SCHEMES[scheme].credentials}" if scheme in OBJECT_SCHEMES else ""
        raise StoreError(f"store.url: {shown_url(url)!r} cannot be opened ({type(error).__name__}){needs}") from error
    if scheme == "s3":
        files.retries = _S3_TRIES
    return Store(url, files, root.rstrip("/"))


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _is_taken(error: BaseException | None) -> bool:
    """Whether an object store refuses a conditional write; `s3fs` has no word for that."""
    while error is not None:
        code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
        if code in ("PreconditionFailed", "ConditionalRequestConflict"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _relative(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise StoreError(f"path {path!r} leaves the store")
    return "" if pure == PurePosixPath() else str(pure)


def _name(path: str) -> str:
    return PurePosixPath(path.rstrip("/")).name


def _write_renamed(target: Path, data: bytes) -> None:
    with _partial_file(target, data) as partial:
        partial.replace(target)


def _write_linked(target: Path, data: bytes) -> None:
    """A link, unlike a rename, fails when the name is taken."""
    with _partial_file(target, data) as partial:
        target.hardlink_to(partial)


@contextlib.contextmanager
def _partial_file(target: Path, data: bytes) -> Iterator[Path]:
    """The data under a temporary name beside the target; durable after the caller has given it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; a rename without it can be undone by a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
