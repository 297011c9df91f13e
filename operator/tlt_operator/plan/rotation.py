"""When a job's token is replaced, one step at a time.

Each step waits until the one before is in all pods: the kubelet brings a changed Secret into a running pod within its
sync period and the delay of its cache
(https://kubernetes.io/docs/concepts/configuration/secret/#mounted-secrets-are-updated-automatically).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tlt_operator.api.token import Tokens, TokenStage


@dataclass(frozen=True, kw_only=True)
class RotationRule:
    """Seconds."""

    overlap: float  # from one step to the next
    lifetime: float  # a token is replaced when it is this old; 0 = only when asked for


def next_tokens(tokens: Tokens, *, request: str, now: float, rule: RotationRule, fresh: str) -> Tokens:
    """The Secret as it should be at `now` (seconds since 1970); the same when no step is due.

    Args:
        request: the job's annotation; a value that was not met yet asks for a rotation.
        fresh: the new token, if one is needed.
    """
    age = now - tokens.changed_at
    match tokens.stage:
        case TokenStage.ANNOUNCED if tokens.following is not None and age >= rule.overlap:
            return replace(tokens, current=tokens.following, following=None, previous=tokens.current, changed_at=now)
        case TokenStage.SWITCHED if age >= rule.overlap:
            return replace(tokens, previous=None, changed_at=now)
        case TokenStage.STEADY if request not in ("", tokens.request) or _is_old(tokens, age, rule):
            return replace(tokens, following=fresh, changed_at=now, request=request or tokens.request)
        case _:
            return tokens


def due_in(tokens: Tokens, *, now: float, rule: RotationRule) -> float:
    """Seconds until time alone makes a step due; infinite when it never does."""
    age = now - tokens.changed_at
    if tokens.stage is not TokenStage.STEADY:
        return max(0.0, rule.overlap - age)
    return max(0.0, rule.lifetime - age) if rule.lifetime and tokens.is_ours else float("inf")


def _is_old(tokens: Tokens, age: float, rule: RotationRule) -> bool:
    # Whoever made the Secret himself would see his own tool fight with the operator; he may still ask for a rotation.
    return bool(rule.lifetime) and tokens.is_ours and age >= rule.lifetime
