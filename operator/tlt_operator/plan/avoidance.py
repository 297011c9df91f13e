"""Engines that turn away from a revision on trial.

An engine that chooses how much it drafts (BEG-MAB, arXiv 2511.16665) stops with a bad drafter after some tens of
drafts, so that a trial of one would never have as many as its comparison needs.  What such an engine leaves undone
while the others go on drafting is evidence of its own.
"""

from __future__ import annotations

from tlt_operator.plan.trial import Side, Trial

AVOIDED = 3.0  # times fewer drafts than the others for as many tokens
USELESS = 0.2  # of the tokens that the others' drafts have accepted: what this saves does not pay for the drafting
USELESS_EXPECTED = 24.0  # tokens that would have been accepted, before so few are held against it
USELESS_DRAFTS = 100.0  # that its tokens would have taken, before engines that turn away from it are believed at once


def is_avoided(trial: Trial, min_drafts: int) -> bool:
    """Whether engines that choose how much they draft have turned away from the revision.

    Had the canaries drafted as the controls did, their tokens would have taken several times the drafts that they
    made; and the few that they made look worse.  How many it takes depends on how bad they look: `USELESS_DRAFTS`
    where hardly a token was accepted, else twice `min_drafts`, and more where nothing can be compared since they
    were all made in lengths that the controls do not draft.
    """
    canary, control = (sum(arm.written for arm in trial.arms if arm.side is side) for side in Side)
    expected = trial.control.drafts * canary / control if control else 0.0
    if expected < AVOIDED * trial.canary.drafts:
        return False
    if is_useless(trial):
        return expected >= USELESS_DRAFTS
    if any(item.canary.drafts and item.control.drafts for item in trial.strata):
        return expected >= 2 * min_drafts and trial.lean < 0
    return expected >= AVOIDED * min_drafts


def is_useless(trial: Trial) -> bool:
    """Whether hardly any token was accepted, where drafts of the others' drafter would have had many.

    The others may draft other lengths.  The later a token stands in a draft the more seldom it is accepted, so that
    a draft of k has at least as many accepted as a shorter one, and at least k / n of those of a longer one of n.
    """
    accepted, expected = 0, 0.0
    for item in trial.strata:
        others = [other for other in trial.strata if other.policy_version == item.policy_version]
        drafts = sum(other.control.drafts for other in others)
        if drafts:
            accepted += item.canary.accepted
            theirs = sum(other.control.accepted * min(1.0, item.draft_length / other.draft_length) for other in others)
            expected += item.canary.drafts * theirs / drafts
    return expected >= USELESS_EXPECTED and accepted <= USELESS * expected
