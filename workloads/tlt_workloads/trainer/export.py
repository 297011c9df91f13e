"""`tlt-export-drafter`: a published drafter as a folder that plain `vllm serve` and speculators load.

Revisions lie in the store in the form that the rollout plugin swaps in.  Serving after training needs no plugin, and
other tools know speculators' `config.json`; the tensors are the same.  The policy's embedding is not among them: vLLM
lets a drafter without one share the policy's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tlt_workloads.contract import REVISION_WEIGHTS, RevisionManifest
from tlt_workloads.drafter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    DrafterConfig,
    DrafterError,
    check_drafter_tensors,
    parse_drafter_config,
)
from tlt_workloads.store import Store, StoreError, open_store
from tlt_workloads.trainer.model import speculators_config
from tlt_workloads.trainer.revisions import published_revisions, revision_folder


class ExportError(ValueError):
    """Nothing was exported; the message says what is wrong and what to change."""


@dataclass(frozen=True)
class Exported:
    """What was written where."""

    folder: Path
    manifest: RevisionManifest
    serve_flag: str  # of `vllm serve <policy>`


def export_drafter(
    store: Store, folder: Path, *, revision: str | None = None, policy: str | None = None, speculative_tokens: int = 3
) -> Exported:
    """Writes `config.json` and `model.safetensors`, seen whole or not at all.

    Args:
        store: the job's folder.
        folder: to make; must not be there, or be empty.
        revision: its name; None takes the newest that was published.
        policy: name or folder of the policy, for tools that pair the two by themselves.
        speculative_tokens: drafts per step that the files propose.

    Raises:
        ExportError: no such revision, its weights are not what its manifest says, or the folder is not empty.
        OSError: the store cannot be read or the folder cannot be written.
    """
    if speculative_tokens < 1:
        raise ExportError(f"--speculative-tokens: {speculative_tokens} is not at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder}: is there already; name another folder or remove it")
    manifest = _chosen(store, revision)
    shape, weights = _read(store, manifest)
    config = speculators_config(
        shape, draft_length=speculative_tokens, device=torch.device("cpu"), verifier=policy
    ).to_dict()
    config["dtype"] = "bfloat16"
    unfinished = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        unfinished.mkdir(parents=True)
        (unfinished / WEIGHTS_FILE).write_bytes(weights)
        (unfinished / CONFIG_FILE).write_text(json.dumps(config, indent=2, default=str) + "\n")
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    flag = {
        "method": "eagle3",
        "model": str(folder),
        "num_speculative_tokens": speculative_tokens,
        "draft_sample_method": "probabilistic",  # that the evaluation speaks of; greedy answers are drafted greedily
    }
    return Exported(folder, manifest, f"--speculative-config '{json.dumps(flag)}'")


def _chosen(store: Store, name: str | None) -> RevisionManifest:
    revisions = published_revisions(store)
    if not revisions:
        raise ExportError(f"{store.url}: no revision was published there; look at --store and --job")
    if name is None:
        return revisions[-1]
    for manifest in revisions:
        if manifest.revision == name:
            return manifest
    known = ", ".join(manifest.revision for manifest in revisions[-5:])
    raise ExportError(f"--revision: {store.url} has no {name!r}; the newest are {known}")


def _read(store: Store, manifest: RevisionManifest) -> tuple[DrafterConfig, bytes]:
    folder = revision_folder(manifest.revision)
    weights = store.read(f"{folder}/{REVISION_WEIGHTS}")
    if (digest := hashlib.sha256(weights).hexdigest()) != manifest.sha256:
        raise ExportError(
            f"{store.url}/{folder}/{REVISION_WEIGHTS}: its SHA-256 is {digest} and not {manifest.sha256} as its "
            "manifest says; the file is damaged, name another revision"
        )
    try:
        data = json.loads(store.read(f"{folder}/{CONFIG_FILE}"))
        shape = parse_drafter_config(data, where=f"{folder}/{CONFIG_FILE}")
        check_drafter_tensors(load(weights), shape)
    except (DrafterError, SafetensorError, ValueError) as error:
        raise ExportError(f"{store.url}/{folder}: {error}") from error
    return shape, weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports and says how to serve it; 1 when that is not possible."""
    parser = argparse.ArgumentParser(prog="tlt-export-drafter", description=__doc__)
    parser.add_argument("folder", type=Path, help="to make")
    parser.add_argument("--store", required=True, help="URL of the store, as in spec.store.url")
    parser.add_argument("--job", required=True, help="<namespace>/<name> of the TLTJob")
    parser.add_argument("--revision", help="its name (default: the newest that was published)")
    parser.add_argument("--policy", help="name or folder of the policy, for tools that pair the two by themselves")
    parser.add_argument("--speculative-tokens", type=int, default=3, help="drafts per step (default 3)")
    options = parser.parse_args(arguments)
    if options.job.count("/") != 1:
        parser.error(f"--job: {options.job!r} is not <namespace>/<name>")
    try:
        exported = export_drafter(
            open_store(f"{options.store.rstrip('/')}/{options.job}"),
            options.folder.absolute(),
            revision=options.revision,
            policy=options.policy,
            speculative_tokens=options.speculative_tokens,
        )
    except (ExportError, StoreError, OSError) as error:
        print(f"tlt-export-drafter: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    evaluation = exported.manifest.evaluation
    print(  # noqa: T201 - a command
        f"{exported.manifest.revision}: accept length {evaluation.accept_length:.2f} on held-out answers\n"
        f"vllm serve {options.policy or '<policy>'} {exported.serve_flag}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
