"""VisibleDevices with the chart's own policy and rights: the operator may show devices to its trainers, nobody else."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from devcluster.binaries import command_path
from devcluster.settings import node_settings
from tests.api.conftest import ROOT, World
from tests.api.test_placements import until_trainer
from tests.support.accounts import connect_as
from tests.support.eventually import eventually_async
from tlt_operator.clients.kube import POD
from tlt_operator.errors import RefusedError

Body = dict[str, Any]
DEVICE = "GPU-1b2c3d4e-0000-1111-2222-333344445555"
ALLOWED = {"metadata": {"labels": {"tlt.dev/visible-devices": "allowed"}}}
PLURALS = {
    "ServiceAccount": "serviceaccounts",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}


def rendered(namespace: str) -> list[Body]:
    """What guards the strategy and lets the operator act, of a release in this namespace and for it alone."""
    helm = command_path(node_settings().binaries, "helm")
    options = ("--set", "visibleDevices.enabled=true", "--set", f"operator.watchNamespaces={{{namespace}}}")
    chart = str(ROOT / "charts" / "tlt-operator")
    answer = subprocess.run(
        [str(helm), "template", "tlt", chart, "--namespace", namespace, "--kube-version", "1.34.4", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return [item for item in yaml.safe_load_all(answer.stdout) if item and item["kind"] in PLURALS]


def path_of(body: Body, *, one: bool = False) -> str:
    root = "/api" if body["apiVersion"] == "v1" else "/apis"
    namespace = body["metadata"].get("namespace")
    middle = f"/namespaces/{namespace}" if namespace else ""
    end = f"/{body['metadata']['name']}" if one else ""
    return f"{root}/{body['apiVersion']}{middle}/{PLURALS[body['kind']]}{end}"


@pytest_asyncio.fixture
async def guarded(world: World, kubeconfig: Path, tmp_path: Path) -> AsyncIterator[World]:
    """An operator under its own service account, on a cluster with the chart's policy and a node with a GPU."""
    await world.stop_operator()
    objects = rendered(world.namespace)
    for body in objects:
        await world.kube._json("POST", path_of(body), body=body)
    node = node_of(world.namespace)
    await world.kube._json("POST", "/api/v1/nodes", body={"metadata": {"name": node}})
    account = next(body["metadata"]["name"] for body in objects if body["kind"] == "ServiceAccount")
    kube = await connect_as(world.kube, account, namespace=world.namespace, kubeconfig=kubeconfig, folder=tmp_path)
    settings = dataclasses.replace(world.context.settings, visible_devices=True)
    world.context = dataclasses.replace(world.context, kube=kube, settings=settings)
    await until_guarded(world)
    await world.start_operator()
    yield world
    await world.stop_operator()
    await kube.close()
    for body in objects:
        await world.kube._json("DELETE", path_of(body, one=True))
    await world.kube._json("DELETE", f"/api/v1/nodes/{node}")


def pod(name: str, *, env: list[Body] | None = None, labels: dict[str, str] | None = None) -> Body:
    container: Body = {"name": "c", "image": "x", "env": env or []}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {"containers": [container]}}


SEEING = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]
HIDDEN = [{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]
TRAINER = {"tlt.dev/component": "trainer"}


async def refusal(world: World, body: Body) -> str:
    """What is said against a pod of a person's; empty when it is taken."""
    full = {"apiVersion": "v1", "kind": "Pod", **body}
    try:
        await world.kube._json("POST", POD.path(world.namespace), body=full, query=[("dryRun", "All")])
    except RefusedError as error:
        return str(error)
    return ""


async def until_guarded(world: World) -> None:
    """A policy counts a moment after it was made."""
    probe = pod("probe", env=SEEING, labels=TRAINER)
    await eventually_async(lambda: refusal(world, probe), deadline=30, reason="the policy")


async def allow(world: World) -> None:
    await world.kube._json(
        "PATCH",
        f"/api/v1/namespaces/{world.namespace}",
        body=ALLOWED,
        content_type="application/merge-patch+json",
    )

    async def known() -> bool:
        return "is left to the TLT operator" in await refusal(world, pod("probe", env=SEEING))

    await eventually_async(known, deadline=30, reason="the namespace's label")


def node_of(namespace: str) -> str:
    """Each test has a node of its own."""
    return f"gpu-of-{namespace}"


def with_gpu(body: Body) -> None:
    body["metadata"]["annotations"] = {"tlt.dev/visible-devices": DEVICE}
    body["spec"]["nodeName"] = node_of(body["metadata"]["namespace"])
    body["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}


async def test_trainer_is_shown_the_devices_of_the_rollout_pod_on_its_node(guarded: World) -> None:
    await allow(guarded)
    await guarded.apply_job(placement={"strategy": "VisibleDevices"}, idle={"after": "50ms", "scope": "AnyIdle"})
    rollout = await guarded.add_rollout("rollout-0", claim=False, change=with_gpu)
    trainer = await until_trainer(guarded, "rollout-0")
    spec = trainer["spec"]
    (container,) = spec["containers"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["NVIDIA_VISIBLE_DEVICES"] == DEVICE
    assert "nodeName" not in spec
    assert "resourceClaims" not in spec
    assert "nvidia.com/gpu" not in {**container["resources"].get("limits", {}), **container["resources"]["requests"]}
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    field = {"key": "metadata.name", "operator": "In", "values": [node_of(guarded.namespace)]}
    assert required == {"nodeSelectorTerms": [{"matchFields": [field]}]}
    rollout.finish(captured=1000)
    await eventually_async(lambda: rollout.lease, deadline=60, reason="a lease")
    await guarded.until_condition("Degraded", "False", "AsExpected")


async def test_a_pod_tells_its_devices_itself_when_nobody_wrote_them_down(guarded: World) -> None:
    def silent(body: Body) -> None:
        with_gpu(body)
        del body["metadata"]["annotations"]

    await allow(guarded)
    await guarded.apply_job(placement={"strategy": "VisibleDevices"})
    rollout = await guarded.add_rollout("rollout-0", claim=False, change=silent)
    found = await guarded.until_condition("Degraded", "True", "NoVisibleDevices")
    assert "DEVICE_LIST_STRATEGY" in found["message"]
    rollout.visible_devices = ("GPU-5f6a7b8c-0000-1111-2222-333344445555",)
    rollout.bump()
    trainer = await until_trainer(guarded, "rollout-0")
    assert trainer["metadata"]["annotations"]["tlt.dev/visible-devices"] == rollout.visible_devices[0]


async def test_namespace_that_did_not_opt_in_is_told_to(guarded: World) -> None:
    await guarded.apply_job(placement={"strategy": "VisibleDevices"})
    await guarded.add_rollout("rollout-0", claim=False, change=with_gpu)
    found = await guarded.until_condition("Degraded", "True", "TrainerFailed")
    assert f"kubectl label namespace {guarded.namespace} tlt.dev/visible-devices=allowed" in found["message"]
    await allow(guarded)
    await until_trainer(guarded, "rollout-0")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (pod("thief", env=SEEING), "ask for devices in resources.limits"),
        (pod("thief", env=HIDDEN), "ask for devices in resources.limits"),
        (pod("impostor", labels=TRAINER), "leave the label out"),
        (pod("plain"), ""),
        (pod("modest", env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]), ""),
    ],
    ids=["value", "reference", "label", "plain pod", "no devices"],
)
async def test_nobody_else_shows_devices_where_the_strategy_is_allowed(guarded: World, body: Body, words: str) -> None:
    await allow(guarded)
    said = await refusal(guarded, body)
    assert bool(said) == bool(words), said
    assert words in said


async def test_pods_that_exist_cannot_become_trainers_or_be_given_a_seeing_debugger(guarded: World) -> None:
    await allow(guarded)
    await guarded.kube.create({"apiVersion": "v1", "kind": "Pod", **_named(guarded, pod("plain"))})
    with pytest.raises(RefusedError, match="leave the label out"):
        await guarded.kube.patch(POD, namespace=guarded.namespace, name="plain", body={"metadata": {"labels": TRAINER}})
    harmless = {"metadata": {"labels": {"any": "other"}}}
    await guarded.kube.patch(POD, namespace=guarded.namespace, name="plain", body=harmless)
    debugger = {"name": "debug", "image": "x", "env": SEEING}
    with pytest.raises(RefusedError, match=r"ask for devices in resources\.limits"):
        await guarded.kube._json(
            "PATCH",
            POD.path(guarded.namespace, "plain", "ephemeralcontainers"),
            body={"spec": {"ephemeralContainers": [debugger]}},
            content_type="application/strategic-merge-patch+json",
        )


async def test_it_is_refused_where_the_administrator_has_not_allowed_it(world: World) -> None:
    await world.apply_job(placement={"strategy": "VisibleDevices"})
    await world.add_rollout("rollout-0", claim=False)
    found = await world.until_condition("Degraded", "True", "VisibleDevicesOff")
    assert "visibleDevices.enabled=true" in found["message"]
    assert await world.trainer_pods() == []


def _named(world: World, body: Body) -> Body:
    return {**body, "metadata": {**body["metadata"], "namespace": world.namespace}}
