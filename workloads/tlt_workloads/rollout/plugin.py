"""vLLM's entry point: registers, nothing else.  Called in every process that vLLM starts, and safe to call twice."""

from __future__ import annotations

import contextlib


def register() -> None:
    """Adds the weight-transfer engine `tlt`, the capture tap, the control methods and the work-arounds.

    Raises:
        UnsupportedEngineError: another vLLM than the supported ones.
    """
    from tlt_workloads.rollout import compat
    from tlt_workloads.rollout.counters import create_page, inherited_page

    compat.check_engine_version(compat.engine_version())
    if inherited_page() is None:  # in the first process; the others inherit it
        create_page()

    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    with contextlib.suppress(ValueError):  # registered already
        WeightTransferEngineFactory.register_engine("tlt", "tlt_workloads.rollout.weights", "TltWeightTransferEngine")
    compat.attach_to_workers()
    compat.add_core_methods()
    compat.fix_expand_kernel()
