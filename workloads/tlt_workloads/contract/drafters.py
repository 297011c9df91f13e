"""Drafters as revisions: their manifest, their way into a pod, and why one is refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tlt_workloads.codec import limits
from tlt_workloads.contract.names import SHA256_PATTERN


class DrafterRefusal(enum.StrEnum):
    """Why a rollout pod does not take a drafter; the old one stays, and the rollout goes on."""

    OUTSIDE_STORE = "OutsideStore"  # not below the job's folder, or by a link that leads out of it
    NOT_A_FILE = "NotAFile"  # a link, a folder, a pipe or a device
    UNREADABLE = "Unreadable"  # missing, or no permission
    STORE_UNAVAILABLE = "StoreUnavailable"  # the store does not answer or fails, which tells nothing: ask again (502)
    TOO_LARGE = "TooLarge"  # more bytes than a drafter of this shape has; nothing was read
    DIGEST_MISMATCH = "DigestMismatch"  # other bytes than were announced
    NOT_SAFETENSORS = "NotSafetensors"  # a pickle, an archive or something else
    OVERSIZED_HEADER = "OversizedHeader"  # the header claims more bytes than one of a drafter has
    TRUNCATED = "Truncated"  # fewer bytes than the header promises
    WRONG_TARGET = "WrongTarget"  # made for a model of another shape
    WRONG_VOCABULARY = "WrongVocabulary"  # another draft vocabulary, or a map that leads nowhere
    UNKNOWN_TENSOR = "UnknownTensor"  # more than a drafter has, the policy's embedding for instance
    MISSING_TENSOR = "MissingTensor"
    WRONG_SHAPE = "WrongShape"
    WRONG_TYPE = "WrongType"
    NOT_FINITE = "NotFinite"  # NaN or infinity
    UNKNOWN_DRAFTER = "UnknownDrafter"  # the drafter that the server started with cannot be read
    NOT_STAGED = "NotStaged"
    LOAD_FAILED = "LoadFailed"  # the engine did not take it; the drafter before is back
    POLICY_TOUCHED = "PolicyTouched"  # loading it changed the policy; both were put back


@dataclass(frozen=True, kw_only=True)
class DrafterLoad:
    """Body of `POST drafter`.  409 while a policy update runs, 422 with the reason when the weights are refused, 502
    while the store does not answer.

    `DELETE drafter` puts the drafter back that the server started with, and answers as `GET state` does.
    """

    revision: str = field(metadata=limits(min_length=1))
    url: str = field(metadata=limits(min_length=1))  # folder of the job that holds model.safetensors
    sha256: str = field(metadata=limits(pattern=SHA256_PATTERN))  # of model.safetensors


@dataclass(frozen=True, kw_only=True)
class DrafterLoaded:
    """Answer of `POST drafter`."""

    revision: str
    seconds: float  # whole load
    stall: float  # the engine could not step for this long
    policy_checksum_before: str
    policy_checksum_after: str  # equal, or the load was undone and refused


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out quality of a drafter: simulated mean accept length, bonus token counted, with its standard error."""

    accept_length: float
    standard_error: float
    parent_accept_length: float | None
    sequences: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class RevisionManifest:
    """Content of `manifest.json` beside the weights."""

    revision: str  # "<job>-r<number>", unique in the job
    job: str
    sha256: str
    parent: str | None
    method: str
    policy_versions: tuple[int, int]  # first and last trained on
    trained_tokens: int  # in total, the parents' tokens included
    evaluation: Evaluation
    draft_vocab_size: int
    trainer_version: str
    created_at: str  # RFC 3339
