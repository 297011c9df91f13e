"""The URLs of stores: which can be opened, what they need, and how one is shown to people."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit


class StoreError(ValueError):
    """The store's URL cannot be used; the message names the field and the way out."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What opens the URLs of a scheme, and where it finds its credentials."""

    package: str
    extra: str  # of this distribution, which brings the package
    credentials: str  # what a container must have


OBJECT_SCHEMES = {
    "s3": Scheme(package="s3fs", extra="rollout", credentials="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": Scheme(package="gcsfs", extra="gcs", credentials="FSSPEC_GS, or an identity that the cluster gives to pods"),
    "abfs": Scheme(package="adlfs", extra="azure", credentials="AZURE_STORAGE_ACCOUNT_NAME and one of its keys"),
}
_OTHER_SCHEMES = ("file", "memory")  # `memory` is for tests: each process sees its own
_CHAIN = "::"  # joins URLs for fsspec, so that the second one may be any file


def check_store_url(url: str) -> str:
    """The scheme of a URL that can be opened here.

    Raises:
        StoreError: an unknown scheme, one whose package is not installed, a relative path, or a URL that holds
            credentials, options or more than a place.
    """
    parts = _split(url)
    scheme, shown = parts.scheme or "file", shown_url(url)
    if scheme not in (*OBJECT_SCHEMES, *_OTHER_SCHEMES):
        choices = ", ".join((*OBJECT_SCHEMES, *_OTHER_SCHEMES))
        raise StoreError(f"store.url: scheme {scheme!r} of {shown!r} is not supported; use one of {choices}")
    if _CHAIN in url:
        raise StoreError(f"store.url: {shown!r} chains URLs by {_CHAIN!r}; name one place")
    if scheme == "file" and not url.startswith(("/", "file:///")):
        raise StoreError(f"store.url: {shown!r} is not absolute; write file:///folder")
    if scheme in OBJECT_SCHEMES:
        _check_object_url(parts, shown)
        _check_package(scheme)
    return scheme


def shown_url(url: str) -> str:
    """A URL for logs and answers: without what may be credentials."""
    try:
        parts = _split(url)
    except StoreError:
        return "<no URL>"
    if parts.scheme in ("", "file"):
        return url
    netloc = parts.netloc
    if _holds_credentials(parts):
        netloc = f"***@{netloc.rpartition('@')[2]}"
    query = "?***" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"


def _check_object_url(parts: SplitResult, shown: str) -> None:
    if _holds_credentials(parts):
        scheme = OBJECT_SCHEMES[parts.scheme]
        raise StoreError(
            f"store.url: {shown!r} holds credentials, which everybody sees; "
            f"put {scheme.credentials} into the Secret of spec.store.secretRef"
        )
    if parts.query or parts.fragment:
        raise StoreError(f"store.url: {shown!r} has options; write {parts.scheme}://bucket/folder and nothing after it")
    if not parts.netloc:
        raise StoreError(f"store.url: {shown!r} names no bucket; write {parts.scheme}://bucket/folder")
    if any(part in (".", "..") for part in parts.path.split("/")):
        raise StoreError(f"store.url: {shown!r} has a '.' or '..'; object stores have no such folders, write the path")


def _check_package(scheme: str) -> None:
    needed = OBJECT_SCHEMES[scheme]
    if importlib.util.find_spec(needed.package) is None:
        raise StoreError(
            f"store.url: {scheme}:// needs the package {needed.package}, which is not installed here; "
            f"add tlt-operator[{needed.extra}] to the image"
        )


def _holds_credentials(parts: SplitResult) -> bool:
    """Azure names containers by `container@account`, which is no secret; anything else before an `@` may be one."""
    before, at, _ = parts.netloc.rpartition("@")
    return bool(at) and (parts.scheme != "abfs" or ":" in before)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise StoreError(f"store.url: not a URL: {error}") from error
