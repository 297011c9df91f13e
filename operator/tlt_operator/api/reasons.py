"""What each reason of a condition means: the public list, one sentence each, by the conditions that use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlt_operator.api.names import ConditionType, Reason, RevisionCondition, RevisionReason


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why something that should be is not: a listed reason, and a sentence that names the object and the fix."""

    reason: Reason
    message: str


ROLLOUT_READY: Mapping[Reason, str] = {
    Reason.PODS_READY: "Every rollout pod answers.",
    Reason.SOME_PODS_READY: "Some rollout pods answer; these are used.",
    Reason.NO_PODS_MATCH: "`spec.rollout.selector` matches no pod in the job's namespace.",
    Reason.PODS_NOT_READY: "No rollout pod answers, and the first one is not ready by Kubernetes' own account.",
    Reason.PODS_UNREACHABLE: "No rollout pod answers on `spec.port`.",
    Reason.PLUGIN_MISSING: "The server on `spec.port` runs without the rollout plugin, and cannot be lent.",
    Reason.TOKEN_REFUSED: "The pod has another control token than the job's Secret.",
    Reason.INCOMPATIBLE: "Plugin and operator are of versions that do not understand each other.",
    Reason.POOL_SCALING: "Pods of `spec.rollout.pool` are on their way in or out; those that answer are used.",
    Reason.POOL_ROLLING: "Pods of `spec.rollout.pool` are replaced by pods of the new template, one at a time.",
    Reason.POOL_STUCK: "No pod of `spec.rollout.pool` exists, and nothing has moved for long.",
    Reason.QUOTA_EXCEEDED: "A ResourceQuota leaves no room for pods of `spec.rollout.pool`.",
    Reason.PODS_REFUSED: "The API server refuses pods of `spec.rollout.pool`; the message has its words.",
    Reason.NO_DRA: "The cluster has no dynamic resource allocation, which a pool needs.",
    Reason.INVALID_SPEC: "A field of the job cannot be used; the message names it.",
}

DATA_READY: Mapping[Reason, str] = {
    Reason.ENOUGH_TOKENS: "`spec.training.trigger.minNewTokens` captured tokens wait to be trained on.",
    Reason.ACCEPTANCE_DROPPED: (
        "The accept length of the active revision has fallen by `spec.training.trigger.acceptanceDrop`, from its first "
        "whole step to the last one, by more than chance explains; a tenth of `minNewTokens` is then enough."
    ),
    Reason.POLICY_LAG: (
        "The policy is more than `spec.training.trigger.maxPolicyLag` updates ahead of what the active revision was "
        "trained on; a tenth of `minNewTokens` is then enough."
    ),
    Reason.NOT_ENOUGH_TOKENS: "No trigger holds, or one does and there is too little data for it.",
    Reason.CAPTURE_OFF: "`spec.capture.sampleRate` is 0, so nothing is recorded.",
    Reason.NO_ANSWER: "No rollout pod has answered yet.",
}

PLACEMENT: Mapping[Reason, str] = {
    Reason.NO_CLAIM: "A rollout pod uses no ResourceClaim, so no trainer can share its device.",
    Reason.NO_DRA: "The cluster has no dynamic resource allocation.",
    Reason.CLAIMS_HIDDEN: "The operator may not list ResourceClaims in the job's namespace.",
    Reason.NO_SUCH_REQUEST: "`spec.placement.requests` names a request that the claims of a rollout pod do not have.",
    Reason.CLAIM_DELETED: "The ResourceClaim of a rollout pod is being deleted; no further pod may use it.",
    Reason.EXTENDED_RESOURCE: (
        "A rollout pod has its device from a claim that the scheduler made for an extended resource; "
        "such a claim is not for other pods."
    ),
    Reason.VISIBLE_DEVICES_OFF: "`spec.placement.strategy` is `VisibleDevices`, and the operator does not allow it.",
    Reason.NO_DEVICES: "A rollout pod does not say which devices it has, or says what cannot be right.",
}

HARVESTING: Mapping[Reason, str] = {
    Reason.LEASE_HELD: "The device of the named pod is lent, or is just being handed back.",
    Reason.NO_IDLE_POD: (
        "No rollout pod is idle, or requests wait in the gateway, or a pod that is not idle shares the device."
    ),
    Reason.WAITING_FOR_DATA: "A pod is idle, and no trigger of `spec.training.trigger` holds.",
    Reason.GIVEN_BACK: "The trainer gave the device back unasked a moment ago; it is offered again soon.",
    Reason.OFTEN_INTERRUPTED: (
        "Requests ended the pod's last windows soon after they began, so it must be idle for longer before the next."
    ),
    Reason.TRAINER_STARTING: "A pod is idle, and its trainer pod is not ready yet.",
    Reason.OUT_OF_SCOPE: "A pod is idle in the learner's phase, and `spec.idle.scope` is `Tail`.",
    Reason.WINDOW_TOO_SHORT: "A pod is idle, but is expected to be so for less than `spec.idle.minWindow`.",
    Reason.BUDGET_SPENT: (
        "The leases that all jobs of this operator share are out, or go first to jobs that have harvested less."
    ),
    Reason.SUSPENDED: "`spec.suspend` is true.",
    Reason.DELETING: "The TLTJob is being deleted.",
    **PLACEMENT,
    Reason.INVALID_SPEC: "A field of the job cannot be used; the message names it.",
}

DRAFTER_READY: Mapping[Reason, str] = {
    Reason.REVISION_ACTIVE: "Every pod that takes drafters has the active revision, or tries the next one.",
    Reason.REVISION_ON_TRIAL: "The first revision is tried in a few pods; the others have their server's own drafter.",
    Reason.REVISION_LOADING: "The active revision is on its way into the pods.",
    Reason.PIN_NOT_FOUND: "`spec.release.pin` names no DrafterRevision of this job.",
    Reason.NO_REVISION: "No revision has been trained yet.",
    Reason.REVISION_REFUSED: "A pod refused the revision, or it was rolled back.",
    Reason.SPECULATION_OFF: "The servers were started without speculation and cannot take a drafter.",
}

DEGRADED: Mapping[Reason, str] = {
    Reason.AS_EXPECTED: "Nothing needs a person.",
    Reason.POOL_STUCK: "Pods of `spec.rollout.pool` do not come up, or its change has stood still for long.",
    Reason.PODS_REFUSED: "The API server refuses pods of `spec.rollout.pool`; the message has its words.",
    **PLACEMENT,
    Reason.CHILD_NOT_APPLIED: "The gateway, the pool, a Service or the token's Secret could not be made.",
    Reason.PODS_NOT_READY: "A rollout pod has been silent for long, and is not ready by Kubernetes' own account.",
    Reason.PODS_UNREACHABLE: "A rollout pod has not answered on `spec.port` for long.",
    Reason.PLUGIN_MISSING: "The server on `spec.port` runs without the rollout plugin, and cannot be lent.",
    Reason.TOKEN_REFUSED: "The pod has another control token than the job's Secret.",
    Reason.INCOMPATIBLE: "Plugin and operator are of versions that do not understand each other.",
    Reason.QUEUED: "Kueue holds a trainer pod back; trainers must not be queued.",
    Reason.QUOTA_EXCEEDED: "A ResourceQuota leaves no room for a trainer pod or a pod of `spec.rollout.pool`.",
    Reason.NO_PRIORITY_CLASS: "The priority class of the trainer pods does not exist.",
    Reason.TRAINER_FAILED: "A trainer pod does not start, has died, or its last window failed.",
    Reason.REVISION_REFUSED: "A pod refused the revision; the message says why.",
    Reason.GATEWAY_UNREACHABLE: "The gateway has not answered for long.",
    Reason.INVALID_SPEC: "A field of the job cannot be used; the message names it.",
}

EXPLANATIONS: Mapping[ConditionType, Mapping[Reason, str]] = {
    ConditionType.ROLLOUT_READY: ROLLOUT_READY,
    ConditionType.DATA_READY: DATA_READY,
    ConditionType.HARVESTING: HARVESTING,
    ConditionType.DRAFTER_READY: DRAFTER_READY,
    ConditionType.DEGRADED: DEGRADED,
}

REVISION_EXPLANATIONS: Mapping[RevisionCondition, Mapping[RevisionReason, str]] = {
    RevisionCondition.LOADED: {
        RevisionReason.PODS_LOADED: "Every pod that should have it has it.",
        RevisionReason.PODS_MISSING: "Pods that should have it lack it, or none should have it.",
    },
    RevisionCondition.PROMOTED: {
        RevisionReason.TEST_PASSED: "True: the trial has shown that it is not worse.",
        RevisionReason.NO_REGRESSION: (
            "True: `spec.release.canary.timeLimit` passed, with drafts enough, and it does not look worse."
        ),
        RevisionReason.WITHOUT_CANARY: "True: `spec.release.canary.replicas` is 0.",
        RevisionReason.BY_HAND: "True: somebody set `tlt.dev/promote`.",
        RevisionReason.PINNED: "True: `spec.release.pin` names it.",
        RevisionReason.RESTORED: "True: the revision after it was rolled back.",
        RevisionReason.WAITING: "False: it waits for its trial; the message says for what.",
        RevisionReason.ON_TRIAL: "False: it is tried in a few pods.",
        RevisionReason.OVERTAKEN: (
            "False: a newer revision came before it was decided on, or its time was over with too few drafts."
        ),
        RevisionReason.WITHDRAWN: "False: it was rolled back.",
    },
    RevisionCondition.ROLLED_BACK: {
        RevisionReason.WORSE: "True: the trial has shown that it is worse.",
        RevisionReason.SEEMS_WORSE: "True: `spec.release.canary.timeLimit` passed, and it looks worse.",
        RevisionReason.AVOIDED: (
            "True: engines that had it stopped drafting with it, as `spec.speculation.mode: Adaptive` lets them, while "
            "the others drafted."
        ),
        RevisionReason.REFUSED: "True: a canary refused it, or most pods did.",
        RevisionReason.CRASH_LOOP: "True: canaries that had it started again and again.",
        RevisionReason.BY_HAND: "True: somebody set `tlt.dev/rollback`.",
        RevisionReason.NOT_WITHDRAWN: "False: it was not rolled back.",
    },
}

REVISION_QUESTIONS: Mapping[RevisionCondition, str] = {
    RevisionCondition.LOADED: "Do all pods that should have the revision have it?",
    RevisionCondition.PROMOTED: "Was it made the revision of all pods, and by whom?",
    RevisionCondition.ROLLED_BACK: "Was it withdrawn for good, and why?",
}

QUESTIONS: Mapping[ConditionType, str] = {
    ConditionType.ROLLOUT_READY: "Can rollout pods be watched?",
    ConditionType.DATA_READY: "Is what was captured worth training on?",
    ConditionType.HARVESTING: "Does an idle device train now?",
    ConditionType.DRAFTER_READY: "Do the pods have the drafter that they should have?",
    ConditionType.DEGRADED: "Does something need a person?",
}
