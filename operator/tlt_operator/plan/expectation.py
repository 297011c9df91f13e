"""How long a pod that is idle now should stay so."""

from __future__ import annotations

from dataclasses import dataclass

from tlt_operator.api.job import Scope
from tlt_operator.plan.generation import Generation
from tlt_operator.plan.windows import WindowHistory


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Seconds that a window should still last, and where that is known from."""

    seconds: float
    source: str


def expect_rest(
    uid: str, *, history: WindowHistory, generation: Generation, scope: Scope, now: float
) -> Expectation | None:
    """The rest of the pod's open window; None when nothing is known about it.

    The gateway knows this step, the history only the ones before.  With `Tail` the window ends with the last answer of
    the step, so the gateway's word counts alone; with `AnyIdle` it goes on into the learner's phase, and the wait for
    that answer is the least that it lasts.
    """
    past, counted = history.expected_rest(uid, now=now), generation.remaining
    by_history = Expectation(seconds=past, source="by the job's past windows") if past is not None else None
    if counted is None:
        return by_history
    by_gateway = Expectation(seconds=counted, source="by the gateway's count of what is left")
    if scope is Scope.ANY_IDLE and by_history is not None and by_history.seconds > counted:
        return by_history
    return by_gateway
