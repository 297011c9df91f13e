"""Why the API server did not take a trainer pod, by what it says: its answers carry no code that tells these apart."""

from __future__ import annotations

from tlt_operator.api.names import Reason
from tlt_operator.api.reasons import Obstacle
from tlt_operator.errors import OperatorError

# Words of the admission plugins ResourceQuota and Priority of kube-apiserver, and of its policies.
_KNOWN = (
    (
        "exceeded quota",
        Reason.QUOTA_EXCEEDED,
        "no room for a trainer pod in a ResourceQuota; raise it, lower spec.training.maxTrainers, "
        "or ask for less in spec.training.template.resources",
    ),
    (
        "failed quota",
        Reason.QUOTA_EXCEEDED,
        "a ResourceQuota wants trainer pods to say what they use; set it in spec.training.template.resources",
    ),
    (
        "status unknown for quota",
        Reason.QUOTA_EXCEEDED,
        "a ResourceQuota has not been counted yet; should this last, see to kube-controller-manager",
    ),
    (
        "no PriorityClass with name",
        Reason.NO_PRIORITY_CLASS,
        "make the priority class, or name another in spec.training.template.priorityClassName "
        "or the operator's TLT_TRAINER_PRIORITY_CLASS",
    ),
    (
        "ValidatingAdmissionPolicy",
        Reason.TRAINER_FAILED,
        "an admission policy of the cluster does not let the trainer pod in",
    ),
)
_OTHER = (Reason.TRAINER_FAILED, "the API server refuses the trainer pod, see spec.training.template")


def why_refused(error: OperatorError) -> Obstacle:
    """The reason and the way out, with the API server's own words."""
    said = str(error)
    reason, fix = next(((reason, fix) for words, reason, fix in _KNOWN if words in said), _OTHER)
    return Obstacle(reason=reason, message=f"{fix}: {said}")
