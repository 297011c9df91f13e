"""The status of a DrafterRevision as written to the API server: phase, conditions, and the evidence for both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tlt_operator.api.names import RevisionCondition, RevisionPhase, RevisionReason
from tlt_operator.plan.acceptance import DraftCounts
from tlt_operator.plan.actions import LiveEvidence, MarkRevision, PodCounts
from tlt_operator.plan.conditions import Status
from tlt_operator.plan.rulings import log10
from tlt_operator.plan.sequential_test import FINE_ERROR, WORSE_ERROR
from tlt_operator.plan.stamps import stamped
from tlt_operator.plan.trial import Trial, write_trial


def revision_status(mark: MarkRevision, *, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """`status` of a DrafterRevision, to be merged into `previous`; `now` is RFC 3339."""
    phase = mark.phase
    facts = [_loaded(mark.pods, mark.message)]
    if mark.ruling is not None:
        facts += _ruled(phase, mark.ruling.reason, mark.ruling.words)
    written = {item["type"]: item for item in previous.get("conditions") or ()}
    conditions = []
    for kind in RevisionCondition:
        fact = next((item for item in facts if item[0] is kind), None)
        if fact is not None:
            _, holds, reason, words = fact
            status = Status.TRUE if holds else Status.FALSE
            conditions.append(stamped(kind.value, status, reason.value, words, 1, previous=previous, now=now))
        elif kind.value in written:
            conditions.append(written[kind.value])
    found: dict[str, Any] = {
        "observedGeneration": 1,  # the spec cannot be changed
        "phase": phase.value,
        "message": mark.message[:1024],
        "conditions": conditions,
        # The record is of use while the trial runs; None removes it.
        "trial": write_trial(mark.trial) if mark.trial is not None and phase is RevisionPhase.CANARY else None,
    }
    if mark.pods is not None:
        found["pods"] = {"total": mark.pods.total, "loaded": mark.pods.loaded, "failed": mark.pods.failed}
    evidence = _live(mark.evidence) | _compared(mark.trial)
    if evidence:
        found["evidence"] = evidence
    return found


def _loaded(pods: PodCounts | None, message: str) -> tuple[RevisionCondition, bool, RevisionReason, str]:
    complete = pods is not None and pods.total > 0 and pods.loaded == pods.total
    reason = RevisionReason.PODS_LOADED if complete else RevisionReason.PODS_MISSING
    return RevisionCondition.LOADED, complete, reason, message


def _ruled(
    phase: RevisionPhase, reason: RevisionReason, words: str
) -> list[tuple[RevisionCondition, bool, RevisionReason, str]]:
    if phase is RevisionPhase.ROLLED_BACK:
        return [
            (RevisionCondition.PROMOTED, False, RevisionReason.WITHDRAWN, words),
            (RevisionCondition.ROLLED_BACK, True, reason, words),
        ]
    return [
        (RevisionCondition.PROMOTED, phase is RevisionPhase.ACTIVE, reason, words),
        (RevisionCondition.ROLLED_BACK, False, RevisionReason.NOT_WITHDRAWN, "It was not rolled back"),
    ]


def _live(evidence: LiveEvidence | None) -> dict[str, Any]:
    if evidence is None or not evidence.drafts:
        return {}
    return {
        "drafts": evidence.drafts,
        "acceptLength": _rounded(evidence.accept_length),
        "swapStallSeconds": _rounded(evidence.swap_stall, digits=4),
    }


def _compared(trial: Trial | None) -> dict[str, Any]:
    """Both sides of a trial and what the test makes of them."""
    if trial is None:
        return {}
    evidence = trial.evidence
    return {
        "comparison": trial.comparison.value,
        "trialSeconds": round(trial.seconds, 1),
        "canaryDrafts": trial.canary.drafts,
        "canaryAcceptLength": _length(trial.canary),
        "baselineDrafts": trial.control.drafts,
        "baselineAcceptLength": _length(trial.control),
        "test": {
            "worse": round(log10(evidence.worse), 2),
            "worseDecides": round(-math.log10(WORSE_ERROR), 2),
            "fine": round(log10(evidence.fine), 2),
            "fineDecides": round(-math.log10(FINE_ERROR), 2),
        },
    }


def _length(counts: DraftCounts) -> float | None:
    return _rounded(counts.length) if counts.drafts else None


def _rounded(value: float | None, *, digits: int = 3) -> float | None:
    return round(value, digits) if value is not None else None
