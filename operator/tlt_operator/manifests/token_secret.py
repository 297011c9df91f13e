"""The Secret that holds the token of a job's control routes."""

from __future__ import annotations

from tlt_operator.api.job import Job
from tlt_operator.api.names import TOKEN_KEY, token_secret_name
from tlt_operator.manifests.common import Manifest, metadata


def token_secret(job: Job, *, token: str) -> Manifest:
    """The Secret with a token made by the caller.  To be created, never applied: an existing token stays in force."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(job, token_secret_name(job.name)),
        "type": "Opaque",
        "stringData": {TOKEN_KEY: token},
    }
