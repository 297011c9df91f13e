"""Which devices this container was given without a claim, as its container runtime was told.

Device plugins that list devices by environment (`DEVICE_LIST_STRATEGY=envvar`, the default of NVIDIA's) set the ids:
https://github.com/NVIDIA/k8s-device-plugin#configuration-option-details.  Other strategies, and claims, set `void`.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "NVIDIA_VISIBLE_DEVICES"
_NONE = ("void", "none")


def visible_devices(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Ids in order, each once, as they were written: UUIDs, indexes, or `all` where nobody chose."""
    named = dict.fromkeys(part.strip() for part in environment.get(VARIABLE, "").split(","))
    return tuple(part for part in named if part and part not in _NONE)
