"""From the job's options to the strategy."""

from __future__ import annotations

from tlt_operator.api.job import Placement, PlacementOptions
from tlt_operator.placement.shared_claim import SharedClaim
from tlt_operator.placement.strategy import Strategy
from tlt_operator.placement.visible_devices import VisibleDevices


def choose(options: PlacementOptions) -> Strategy:
    """The strategy of a job."""
    match options.strategy:
        case Placement.SHARED_CLAIM:
            return SharedClaim(requests=options.requests)
        case Placement.VISIBLE_DEVICES:
            return VisibleDevices(runtime_class_name=options.runtime_class_name)
