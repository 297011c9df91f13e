"""The Secret that holds the token of a job's control routes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from tlt_operator.api.job import Job
from tlt_operator.api.names import ROTATE_ANNOTATION, ROTATED_AT_ANNOTATION, token_secret_name
from tlt_operator.api.token import Tokens, rfc3339
from tlt_operator.manifests.common import Manifest, metadata
from tlt_workloads.contract import TOKEN_KEY, TOKEN_NEXT_KEY, TOKEN_PREVIOUS_KEY


def token_secret(job: Job, tokens: Tokens) -> Manifest:
    """The Secret for a job that has none.  To be created, never applied: an existing token stays in force."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(job, token_secret_name(job.name)),
        "type": "Opaque",
    }
    return with_tokens(body, tokens)


def with_tokens(body: Mapping[str, Any], tokens: Tokens) -> Manifest:
    """A Secret with other tokens and all else as it was, its `resourceVersion` included."""
    annotations = {**(body["metadata"].get("annotations") or {}), ROTATED_AT_ANNOTATION: rfc3339(tokens.changed_at)}
    if tokens.request:
        annotations[ROTATE_ANNOTATION] = tokens.request
    wanted = {TOKEN_KEY: tokens.current, TOKEN_NEXT_KEY: tokens.following, TOKEN_PREVIOUS_KEY: tokens.previous}
    others = {key: value for key, value in (body.get("data") or {}).items() if key not in wanted}
    own = {key: base64.b64encode(token.encode()).decode() for key, token in wanted.items() if token is not None}
    return {**body, "metadata": {**body["metadata"], "annotations": annotations}, "data": {**others, **own}}
