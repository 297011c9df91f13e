"""Whether training is worth a window: enough new data, a drafter that guesses worse, or one that is far behind."""

from __future__ import annotations

from dataclasses import dataclass

from tlt_operator.api.names import Reason
from tlt_operator.api.revision import Revision
from tlt_operator.plan.acceptance import AcceptanceMemory, find_fall, policy_version
from tlt_operator.plan.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Need:
    """Whether training is due; `reason` and `message` say why, or what is missing."""

    due: bool
    reason: Reason
    message: str


def assess_need(
    snapshot: Snapshot, *, active: Revision | None, acceptance: AcceptanceMemory, available_tokens: int
) -> Need:
    """Any trigger is enough; the first that holds is named."""
    trigger = snapshot.job.spec.training.trigger
    counts = f"{available_tokens} captured tokens wait, spec.training.trigger.minNewTokens is {trigger.min_new_tokens}"
    if available_tokens >= trigger.min_new_tokens:
        return Need(due=True, reason=Reason.ENOUGH_TOKENS, message=counts)
    behind = _acceptance_drop(snapshot, acceptance) or _policy_lag(snapshot, active)
    if behind is None:
        return Need(due=False, reason=Reason.NOT_ENOUGH_TOKENS, message=counts)
    reason, message = behind
    least = trigger.least_tokens
    if available_tokens < least:
        message = f"{message}, but only {available_tokens} captured tokens wait and training needs {least}"
        return Need(due=False, reason=Reason.NOT_ENOUGH_TOKENS, message=message)
    return Need(due=True, reason=reason, message=f"{message}; {available_tokens} captured tokens wait")


def _acceptance_drop(snapshot: Snapshot, acceptance: AcceptanceMemory) -> tuple[Reason, str] | None:
    fall, allowed = find_fall(acceptance), snapshot.job.spec.training.trigger.acceptance_drop
    if fall is None or fall.share < allowed:
        return None
    return Reason.ACCEPTANCE_DROPPED, (
        f"The accept length of {acceptance.revision} fell from {fall.before:.2f} to {fall.now:.2f}, "
        f"by {fall.share:.0%}; spec.training.trigger.acceptanceDrop is {allowed:.0%}"
    )


def _policy_lag(snapshot: Snapshot, active: Revision | None) -> tuple[Reason, str] | None:
    version, allowed = policy_version(snapshot), snapshot.job.spec.training.trigger.max_policy_lag
    if active is None or version is None or version - active.last_policy_version <= allowed:
        return None
    return Reason.POLICY_LAG, (
        f"{active.name} was trained on policy version {active.last_policy_version}, the pods have {version}; "
        f"spec.training.trigger.maxPolicyLag is {allowed}"
    )
