"""Kubernetes objects that a fresh cluster needs, as plain dictionaries."""

from typing import Any

from devcluster import configuration
from devcluster.settings import Settings

Object = dict[str, Any]

DEVICE_CLASS = "gpu.example.com"
"""Also the name of the example driver."""


def base(settings: Settings) -> list[Object]:
    """Rights of our components, cluster DNS, the device class and the storage class."""
    return [
        *_rights(settings),
        *_dns(settings),
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": DEVICE_CLASS},
            "spec": {"selectors": [{"cel": {"expression": f"device.driver == '{DEVICE_CLASS}'"}}]},
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": settings.storage_class,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "Immediate",
        },
    ]


def volume_names(settings: Settings) -> list[str]:
    return [f"devcluster-{number:02d}" for number in range(settings.volumes)]


def volume(settings: Settings, name: str) -> Object:
    """A PersistentVolume: a folder of this machine, which several pods may mount at once."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": settings.volume_size},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "storageClassName": settings.storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(settings.volumes_folder / name), "type": "Directory"},
        },
    }


def released_volumes(volumes: Object, settings: Settings) -> list[str]:
    """Names of our volumes whose claim is gone, in a list of PersistentVolumes."""
    ours = set(volume_names(settings))
    return [
        item["metadata"]["name"]
        for item in volumes["items"]
        if item["metadata"]["name"] in ours and item.get("status", {}).get("phase") in ("Released", "Failed")
    ]


def absent_volumes(volumes: Object, settings: Settings) -> list[str]:
    """Names of our volumes that the same list does not have."""
    listed = {item["metadata"]["name"] for item in volumes["items"]}
    return [name for name in volume_names(settings) if name not in listed]


def _rights(settings: Settings) -> list[Object]:
    read_names = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    offer_devices = [
        {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "resourceNames": [settings.node_name], "verbs": ["get"]},
        {
            "apiGroups": ["resource.k8s.io"],
            "resources": ["resourceslices"],
            "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
        },
    ]
    return [
        _role(configuration.DNS_USER, read_names),
        _binding(configuration.DNS_USER, role=configuration.DNS_USER),
        _role(configuration.DEVICE_DRIVER_USER, offer_devices),
        _binding(configuration.DEVICE_DRIVER_USER, role=configuration.DEVICE_DRIVER_USER),
        _binding(configuration.KUBELET_CLIENT, role="system:kubelet-api-admin"),
    ]


def _role(name: str, rules: list[Object]) -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }


def _binding(user: str, *, role: str) -> Object:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


def _dns(settings: Settings) -> list[Object]:
    names = (("dns", "UDP"), ("dns-tcp", "TCP"))
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata, "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "clusterIP": settings.dns_service,
            "ports": [
                {"name": name, "protocol": protocol, "port": 53, "targetPort": settings.dns_port}
                for name, protocol in names
            ],
        },
    }
    # CoreDNS runs beside the kubelet, not in a pod, so its place is written down by hand.
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [settings.gateway], "conditions": {"ready": True}}],
        "ports": [{"name": name, "protocol": protocol, "port": settings.dns_port} for name, protocol in names],
    }
    return [service, slice_]
