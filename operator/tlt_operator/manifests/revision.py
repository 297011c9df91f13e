"""DrafterRevision objects: one for each candidate that is worth a swap."""

from __future__ import annotations

from tlt_operator.api.job import Job
from tlt_operator.api.names import API_VERSION, REVISION_KIND
from tlt_operator.manifests.common import Manifest, metadata
from tlt_workloads.contract import RevisionManifest, encode


def drafter_revision(job: Job, manifest: RevisionManifest, *, url: str) -> Manifest:
    """The DrafterRevision of a candidate whose folder is `url`."""
    first, last = manifest.policy_versions
    spec: Manifest = {
        "job": job.name,
        "digest": manifest.sha256,
        "url": url,
        "method": manifest.method,
        "policyVersions": {"first": first, "last": last},
        "trainedTokens": manifest.trained_tokens,
        "evaluation": {key: value for key, value in encode(manifest.evaluation).items() if value is not None},
    }
    if manifest.parent is not None:
        spec["parent"] = manifest.parent
    return {
        "apiVersion": API_VERSION,
        "kind": REVISION_KIND,
        "metadata": metadata(job, manifest.revision),
        "spec": spec,
    }
