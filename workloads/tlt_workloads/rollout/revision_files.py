"""Reads a revision's files without trusting names, sizes or headers; what is checked are the bytes in memory.

Where the files come from is a `RevisionFolder`'s matter, which bounds what is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

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
from tlt_workloads.rollout.revision_folder import MissingFileError, RefusedDrafterError, RevisionFolder

HEADER_LIMIT = 1 << 20  # bytes of a safetensors header; a drafter's has two thousand
TEXT_LIMIT = 1 << 20  # bytes of config.json and of manifest.json
_LENGTH = 8  # bytes that say how long the header is


@dataclass(frozen=True, kw_only=True)
class FoundRevision:
    """A revision of the job, not yet looked into."""

    location: str  # by which each worker finds its folder again
    trained_to: int | None = None  # the last policy that it has learnt from; None: it does not say


def read_tensors(folder: RevisionFolder, *, sha256: str, config: DrafterConfig) -> dict[str, torch.Tensor]:
    """The drafter in a folder, once every check has passed.

    Args:
        folder: of the revision.
        sha256: hex digest of the weights file.
        config: the shape that the engine runs.

    Raises:
        RefusedDrafterError: names what is wrong with it.
    """
    where = f"{folder.location}/{REVISION_WEIGHTS}"
    data = folder.read(REVISION_WEIGHTS, most=_LENGTH + HEADER_LIMIT + drafter_bytes(config))
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256.lower():
        raise RefusedDrafterError(
            DrafterRefusal.DIGEST_MISMATCH, f"{where} has sha256 {digest}, expected {sha256.lower()}"
        )
    _check_frame(data, where)
    try:
        tensors: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise RefusedDrafterError(DrafterRefusal.NOT_SAFETENSORS, f"{where}: {error}") from error
    try:
        check_drafter_tensors(tensors, config)
    except TensorError as error:
        raise RefusedDrafterError(error.reason, str(error)) from error
    return tensors


def read_shape(folder: RevisionFolder, *, own: DrafterConfig) -> DrafterConfig | None:
    """What the revision says that it was made for; None when it says nothing.

    Raises:
        RefusedDrafterError: another target, or nothing that can be read.
    """
    where = f"{folder.location}/{REVISION_SHAPE}"
    try:
        found = parse_drafter_config(json.loads(folder.read(REVISION_SHAPE, most=TEXT_LIMIT)), where=where)
        check_same_target(found, own)
    except MissingFileError:
        return None
    except TensorError as error:
        raise RefusedDrafterError(error.reason, str(error)) from error
    except (DrafterError, ValueError, RecursionError) as error:
        raise RefusedDrafterError(DrafterRefusal.WRONG_TARGET, f"{where}: cannot be read: {error}") from error
    return found


def find_revision(folder: RevisionFolder) -> FoundRevision:
    """What a revision's manifest says; one that is missing or is none says nothing.

    Raises:
        RefusedDrafterError: the store does not let the pod read, or does not answer: there is no use in going on.
    """
    try:
        manifest = decode(RevisionManifest, json.loads(folder.read(REVISION_MANIFEST, most=TEXT_LIMIT)))
    except (MissingFileError, ContractError, ValueError, RecursionError):
        return FoundRevision(location=folder.location)
    except RefusedDrafterError as error:
        if error.reason in (DrafterRefusal.UNREADABLE, DrafterRefusal.STORE_UNAVAILABLE):
            raise
        return FoundRevision(location=folder.location)
    return FoundRevision(location=folder.location, trained_to=manifest.policy_versions[1])


def _check_frame(data: bytes, where: str) -> None:
    """Whether these bytes are laid out as safetensors (https://github.com/huggingface/safetensors#format)."""
    length, begins = int.from_bytes(data[:_LENGTH], "little"), data[_LENGTH : _LENGTH + 1]
    if len(data) <= _LENGTH:
        raise RefusedDrafterError(DrafterRefusal.TRUNCATED, f"{where} has {len(data)} bytes, less than a header")
    if begins != b"{":
        raise RefusedDrafterError(
            DrafterRefusal.NOT_SAFETENSORS, f"{where}: not a safetensors file; pickles and archives are never opened"
        )
    if length > HEADER_LIMIT:
        raise RefusedDrafterError(
            DrafterRefusal.OVERSIZED_HEADER, f"{where}: a header of {length} bytes, more than {HEADER_LIMIT}"
        )
    try:
        header = json.loads(data[_LENGTH : _LENGTH + length])
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = DrafterRefusal.TRUNCATED if len(data) < _LENGTH + length else DrafterRefusal.NOT_SAFETENSORS
        raise RefusedDrafterError(reason, f"{where}: its header cannot be read") from error
    if (promised := _LENGTH + length + max(ends, default=0)) > len(data):
        raise RefusedDrafterError(
            DrafterRefusal.TRUNCATED, f"{where} has {len(data)} bytes of the {promised} that it says it has"
        )
