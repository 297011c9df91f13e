"""Where an emulated accelerator is: one processor core, named by the device plugin in the environment.

On a cluster without GPUs, dra-example-driver hands out devices `gpu-<N>` that stand for core N.  A server that finds
one pins itself there, so that two pods that share a claim really share that core.  Real GPUs need none of this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"^GPU_DEVICE_\d+$")
_DEVICE = re.compile(r"^gpu-(\d+)$")


class PlacementError(ValueError):
    """A named device does not exist here."""


def emulated_cores(environment: Mapping[str, str], *, available: frozenset[int]) -> tuple[int, ...]:
    """The cores that the environment names, in order; none when it names no emulated device.

    Raises:
        PlacementError: a core that this process may not use.
    """
    cores = []
    for name in sorted(filter(_VARIABLE.match, environment)):
        if match := _DEVICE.match(environment[name]):
            core = int(match[1])
            if core not in available:
                raise PlacementError(f"{name}: {environment[name]} is not one of the cores {sorted(available)}")
            cores.append(core)
    return tuple(dict.fromkeys(cores))


def pin(cores: tuple[int, ...]) -> dict[str, str]:
    """Keeps this process and its children on these cores; returns what vLLM and OpenMP must find in the environment."""
    os.sched_setaffinity(0, cores)
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
        "OMP_NUM_THREADS": str(len(cores)),
    }
