"""VisibleDevices: the trainer pod asks for no device and is shown those of the rollout pod, on clusters with a plugin.

NVIDIA's container runtime brings the devices that `NVIDIA_VISIBLE_DEVICES` names into any container
(https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html).  Scheduler, kubelet
and quotas know nothing of it, so the chart brings a ValidatingAdmissionPolicy with it, and nothing is done without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tlt_operator.api.job import DEVICES_VARIABLE
from tlt_operator.api.names import DEVICES_ANNOTATION, Reason
from tlt_operator.api.pod import Pod
from tlt_operator.api.reasons import Obstacle
from tlt_operator.placement.strategy import Share, Site

# Never "all": a trainer must not see more than the rollout pod was given.
_DEVICE = re.compile(r"GPU-[0-9A-Fa-f-]{8,64}|MIG-[0-9A-Za-z/-]{8,128}|[0-9]{1,3}")
_CAPABILITIES = "compute,utility"


@dataclass(frozen=True, kw_only=True)
class VisibleDevices:
    """Shows the trainer what the rollout pod says that it has, on the pod's own node."""

    runtime_class_name: str | None = None

    def obstacle(self, pod: Pod, site: Site) -> Obstacle | None:
        """See `Strategy`."""
        if not site.visible_devices:
            return Obstacle(
                reason=Reason.VISIBLE_DEVICES_OFF,
                message="spec.placement.strategy is VisibleDevices, which this operator does not allow; install the "
                "chart with visibleDevices.enabled=true, which brings the admission policy that guards it, or use "
                "SharedClaim",
            )
        if pod.visible_devices is None:
            return None  # the pod may still say so
        return _unknown(pod) or _too_many(pod)

    def ready(self, pod: Pod, site: Site) -> bool:
        """See `Strategy`."""
        return pod.node is not None and bool(pod.visible_devices)

    def share(self, pod: Pod, site: Site) -> Share:
        """See `Strategy`.

        The node is chosen by affinity, so that the scheduler still counts the trainer's processor time and memory and
        looks at taints; by the node's name and not by its host name label, which may differ.
        """
        node = {"key": "metadata.name", "operator": "In", "values": [pod.node]}
        required = {"nodeSelectorTerms": [{"matchFields": [node]}]}
        spec: dict[str, object] = {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
        }
        if self.runtime_class_name is not None:
            spec["runtimeClassName"] = self.runtime_class_name
        return Share(
            pod=spec,
            environment={
                DEVICES_VARIABLE: ",".join(pod.visible_devices or ()),
                "NVIDIA_DRIVER_CAPABILITIES": _CAPABILITIES,
            },
        )


def _unknown(pod: Pod) -> Obstacle | None:
    if not pod.visible_devices:
        message = (
            f"Pod {pod.name} does not say which devices it has: {DEVICES_VARIABLE} in it names none. Set the device "
            f"plugin's DEVICE_LIST_STRATEGY to envvar, or annotate the pod with {DEVICES_ANNOTATION}: GPU-<uuid>,..."
        )
        return Obstacle(reason=Reason.NO_DEVICES, message=message)
    wrong = [device for device in pod.visible_devices if _DEVICE.fullmatch(device) is None]
    if not wrong:
        return None
    message = (
        f"Pod {pod.name} names {wrong[0]!r} as a device; only GPU-<uuid>, MIG-<uuid> and index numbers are taken, so "
        f"that a trainer never sees more than the pod has. Annotate the pod with {DEVICES_ANNOTATION}: GPU-<uuid>,..."
    )
    return Obstacle(reason=Reason.NO_DEVICES, message=message)


def _too_many(pod: Pod) -> Obstacle | None:
    """A pod that asks for one device and names two would lend one of somebody else's."""
    named = len(pod.visible_devices or ())
    if named <= pod.plugin_devices:
        return None
    return Obstacle(
        reason=Reason.NO_DEVICES,
        message=f"Pod {pod.name} names {named} devices, but its containers ask device plugins for "
        f"{pod.plugin_devices}; correct its annotation {DEVICES_ANNOTATION}, or its resources.limits",
    )
