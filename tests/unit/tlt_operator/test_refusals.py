"""What the API server says against a trainer pod becomes a reason and a way out; its words are kept."""

from __future__ import annotations

import pytest

from tlt_operator.api.names import Reason
from tlt_operator.api.reasons import DEGRADED
from tlt_operator.errors import RefusedError, UnauthorizedError
from tlt_operator.reconcile.refusals import why_refused

FORBIDDEN = 'POST /api/v1/namespaces/n/pods: pods "demo-trainer-1" is forbidden: '


@pytest.mark.parametrize(
    ("said", "reason", "fix"),
    [
        ("exceeded quota: q, requested: pods=1, used: pods=4, limited: pods=4", Reason.QUOTA_EXCEEDED, "maxTrainers"),
        ("failed quota: q: must specify limits.cpu for: trainer", Reason.QUOTA_EXCEEDED, "template.resources"),
        ("status unknown for quota: q, resources: pods", Reason.QUOTA_EXCEEDED, "has not been counted yet"),
        ("no PriorityClass with name low was found", Reason.NO_PRIORITY_CLASS, "template.priorityClassName"),
        (
            "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            Reason.TRAINER_FAILED,
            "admission policy of the cluster",
        ),
        ('violates PodSecurity "restricted:latest": ...', Reason.TRAINER_FAILED, "spec.training.template"),
    ],
)
def test_each_refusal_has_a_reason_and_a_way_out(said: str, reason: Reason, fix: str) -> None:
    found = why_refused(UnauthorizedError(FORBIDDEN + said))
    assert found.reason is reason
    assert reason in DEGRADED
    assert fix in found.message
    assert said in found.message


def test_what_is_not_known_points_to_the_template() -> None:
    found = why_refused(RefusedError("Pod is invalid: spec.containers[0].resources.requests: too much"))
    assert found.reason is Reason.TRAINER_FAILED
    assert found.message.startswith("the API server refuses the trainer pod, see spec.training.template: ")
