"""Reads a revision's files without trusting names, sizes or headers.

A path is walked once, and no link is followed on the way: whoever exchanges a folder or a file for a link after the
path was found to be the job's gets a refusal.  Size and kind are asked of the opened file, so that nothing can change
between the question and the reading, and what is checked afterwards are the bytes in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tlt_workloads.contract import (
    REVISION_MANIFEST,
    REVISION_SHAPE,
    REVISION_WEIGHTS,
    ContractError,
    DrafterRefusal,
    RevisionManifest,
    decode,
)
from tlt_workloads.drafter import (
    DrafterConfig,
    DrafterError,
    TensorError,
    check_drafter_tensors,
    check_same_target,
    drafter_bytes,
    parse_drafter_config,
)
from tlt_workloads.rollout.locations import JobFolder

HEADER_LIMIT = 1 << 20  # bytes of a safetensors header; a drafter's has two thousand
TEXT_LIMIT = 1 << 20  # bytes of config.json and of manifest.json
_LENGTH = 8  # bytes that say how long the header is
_LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class FoundRevision:
    """A revision of the job, not yet looked into."""

    folder: Path  # real, no links on the way
    trained_to: int | None = None  # the last policy that it has learnt from; None: it does not say


class RefusedDrafterError(Exception):
    """This drafter is not taken."""

    def __init__(self, reason: DrafterRefusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_tensors(folder: Path, *, sha256: str, config: DrafterConfig) -> dict[str, torch.Tensor]:
    """The drafter in a folder, once every check has passed.

    Args:
        folder: of the revision; a real path, below the job's folder.
        sha256: hex digest of the weights file.
        config: the shape that the engine runs.

    Raises:
        RefusedDrafterError: names what is wrong with it.
    """
    path = folder / REVISION_WEIGHTS
    data = _read(path, most=_LENGTH + HEADER_LIMIT + drafter_bytes(config))
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256.lower():
        raise RefusedDrafterError(
            DrafterRefusal.DIGEST_MISMATCH, f"{path} has sha256 {digest}, expected {sha256.lower()}"
        )
    _check_frame(data, path)
    try:
        tensors: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise RefusedDrafterError(DrafterRefusal.NOT_SAFETENSORS, f"{path}: {error}") from error
    try:
        check_drafter_tensors(tensors, config)
    except TensorError as error:
        raise RefusedDrafterError(error.reason, str(error)) from error
    return tensors


def read_shape(folder: Path, *, own: DrafterConfig) -> DrafterConfig | None:
    """What the revision says that it was made for; None when it says nothing.

    Raises:
        RefusedDrafterError: another target, or nothing that can be read.
    """
    path = folder / REVISION_SHAPE
    try:
        found = parse_drafter_config(json.loads(_read(path, most=TEXT_LIMIT)), where=str(path))
        check_same_target(found, own)
    except RefusedDrafterError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except TensorError as error:
        raise RefusedDrafterError(error.reason, str(error)) from error
    except (DrafterError, ValueError, RecursionError) as error:
        raise RefusedDrafterError(DrafterRefusal.WRONG_TARGET, f"{path}: cannot be read: {error}") from error
    return found


def find_revision(url: str, *, job_folder: JobFolder) -> FoundRevision:
    """Where a revision lies, and what its manifest says; a manifest that cannot be read says nothing.

    Raises:
        OutsideStoreError: the job has none there.
    """
    folder = job_folder.resolve(url)
    try:
        manifest = decode(RevisionManifest, json.loads(_read(folder / REVISION_MANIFEST, most=TEXT_LIMIT)))
    except (RefusedDrafterError, ContractError, ValueError, RecursionError):
        return FoundRevision(folder=folder)
    return FoundRevision(folder=folder, trained_to=manifest.policy_versions[1])


def _read(path: Path, *, most: int) -> bytes:
    """The whole file, once it is known to be one and not too large."""
    try:
        handle = _open(path)
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise RefusedDrafterError(DrafterRefusal.NOT_A_FILE, f"{path} is not a regular file")
            if facts.st_size > most:
                message = f"{path} has {facts.st_size} bytes, more than the {most} that such a file may have"
                raise RefusedDrafterError(DrafterRefusal.TOO_LARGE, message)
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read(facts.st_size)
        finally:
            os.close(handle)
    except OSError as error:
        is_link = error.errno in _LINK_ERRORS
        reason = DrafterRefusal.NOT_A_FILE if is_link else DrafterRefusal.UNREADABLE
        hint = " (links are not followed)" if is_link else ""
        raise RefusedDrafterError(reason, f"{path}: {error.strerror}{hint}") from error


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


def _check_frame(data: bytes, path: Path) -> None:
    """Whether these bytes are laid out as safetensors (https://github.com/huggingface/safetensors#format)."""
    length, begins = int.from_bytes(data[:_LENGTH], "little"), data[_LENGTH : _LENGTH + 1]
    if len(data) <= _LENGTH:
        raise RefusedDrafterError(DrafterRefusal.TRUNCATED, f"{path} has {len(data)} bytes, less than a header")
    if begins != b"{":
        raise RefusedDrafterError(
            DrafterRefusal.NOT_SAFETENSORS, f"{path}: not a safetensors file; pickles and archives are never opened"
        )
    if length > HEADER_LIMIT:
        raise RefusedDrafterError(
            DrafterRefusal.OVERSIZED_HEADER, f"{path}: a header of {length} bytes, more than {HEADER_LIMIT}"
        )
    try:
        header = json.loads(data[_LENGTH : _LENGTH + length])
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = DrafterRefusal.TRUNCATED if len(data) < _LENGTH + length else DrafterRefusal.NOT_SAFETENSORS
        raise RefusedDrafterError(reason, f"{path}: its header cannot be read") from error
    if (promised := _LENGTH + length + max(ends, default=0)) > len(data):
        raise RefusedDrafterError(
            DrafterRefusal.TRUNCATED, f"{path} has {len(data)} bytes of the {promised} that it says it has"
        )
