"""The operator has the rights that it uses and no others, measured at the API server with the chart's own roles."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.api.conftest import ROOT, World, devcluster, job_body
from tests.api.test_pool import LABELS, QUOTA, Node, pool
from tests.api.test_process import Process, operator_process
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import manifest
from tests.support.recording_proxy import RecordingProxy, Right, recording_proxy
from tlt_operator.api.names import token_secret_name
from tlt_operator.clients.kube import (
    CLAIM_TEMPLATE,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    NETWORK_POLICY,
    POD,
    SECRET,
    STATEFUL_SET,
    Kubernetes,
)
from tlt_operator.reconcile.answers import cancel

RELEASE = "rights"
QUICK = {"TLT_RECHECK_INTERVAL": "1", "TLT_TOKEN_OVERLAP": "1"}


@dataclass
class Installation:
    """The chart's roles, bound to its account, and an operator of that account behind a recording proxy."""

    system: str  # the release's namespace
    objects: list[dict[str, Any]]
    proxy: RecordingProxy
    process: Process

    def granted(self) -> set[Right]:
        """Every right in any role of the operator's."""
        roles = (item for item in self.objects if item["kind"] in ("Role", "ClusterRole"))
        bound = {item["roleRef"]["name"] for item in self.objects if item["kind"].endswith("RoleBinding")}
        return {
            Right(f"{group}/{resource}".lstrip("/"), verb)
            for role in roles
            if role["metadata"]["name"] in bound
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    def start(self) -> None:
        """The operator's process, with the variables that the chart gives it."""
        (deployment,) = [item for item in self.objects if item["kind"] == "Deployment"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        own = ("_PORT", "_IMAGE")
        variables = {item["name"]: item["value"] for item in container["env"] if item.get("value")}
        chosen = {name: value for name, value in variables.items() if not name.endswith(own)}
        self.process.start(**{"TLT_WATCH_NAMESPACES": "", **chosen, **QUICK})


def run(kubeconfig: Path, command: str, *arguments: str, text: str | None = None) -> str:
    answer = subprocess.run(
        [str(Path(devcluster("path").strip()) / command), *arguments],
        input=text,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def rendered(kubeconfig: Path, system: str, namespaces: Iterable[str], *, policies: bool) -> list[dict[str, Any]]:
    """The chart for these namespaces; for none of them, for the cluster."""
    only = ("rbac", "serviceaccount", "deployment", "priorityclass")
    text = run(
        kubeconfig,
        *("helm", "template", RELEASE, str(ROOT / "charts" / "tlt-operator"), "--namespace", system),
        *("--kube-version", "1.34", "--set-json", f"operator.watchNamespaces={json.dumps(list(namespaces))}"),
        *("--set", f"networkPolicy.jobs.enabled={json.dumps(policies)}"),
        *(word for name in only for word in ("--show-only", f"templates/{name}.yaml")),
    )
    return [item for item in yaml.safe_load_all(text) if item]


def with_account(kubeconfig: Path, path: Path, *, server: str, token: str) -> Path:
    """The same cluster by another address, as the account of a token."""
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    for cluster in config["clusters"]:
        cluster["cluster"] = {"server": server}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest_asyncio.fixture(params=["namespaces", "cluster", "cluster with policies"])
async def installation(
    request: pytest.FixtureRequest, world: World, kubeconfig: Path, tmp_path: Path
) -> AsyncIterator[Installation]:
    """With roles in named namespaces, with a cluster role, and with the rights that policies need."""
    await world.stop_operator()
    name = f"{world.namespace}-system"
    namespaces = [world.namespace] if request.param == "namespaces" else []
    objects = rendered(kubeconfig, name, namespaces, policies="policies" in request.param)
    system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    rights = [item for item in objects if item["kind"] != "Deployment"]
    run(kubeconfig, "kubectl", "apply", "-f", "-", text=yaml.safe_dump_all([system, *rights]))
    (account,) = [item["metadata"]["name"] for item in objects if item["kind"] == "ServiceAccount"]
    token = run(kubeconfig, "kubectl", "create", "token", account, "--namespace", name).strip()
    try:
        async with recording_proxy(kubeconfig) as proxy:
            path = with_account(kubeconfig, tmp_path / "account.kubeconfig", server=proxy.url, token=token)
            with operator_process(path, world.namespace, tmp_path / "operator.log") as process:
                yield Installation(name, objects, proxy, process)
    finally:
        run(kubeconfig, "kubectl", "delete", "--wait=false", "-f", "-", text=yaml.safe_dump_all([system, *rights]))


@pytest_asyncio.fixture
async def elsewhere(kube: Kubernetes, namespace: str) -> AsyncIterator[str]:
    """Another namespace with a job and a pod that it matches."""
    name = f"{namespace}-elsewhere"
    await kube._json("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    await kube.apply(job_body(name))
    metadata = {"name": "rollout-0", "namespace": name, "labels": {"app": "rollout"}}
    spec = {"containers": [{"name": "vllm", "image": "vllm"}]}
    await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    yield name
    await kube._json("DELETE", f"/api/v1/namespaces/{name}")


async def rotate(world: World, value: str) -> None:
    """Asks for another token and waits until it is the only one."""
    body = {"metadata": {"annotations": {"tlt.dev/rotate-token": value}}}
    await world.kube.patch(JOB, namespace=world.namespace, name="demo", body=body)

    async def is_over() -> bool:
        secret = await world.kube.get(SECRET, namespace=world.namespace, name=token_secret_name("demo"))
        answered = secret["metadata"]["annotations"].get("tlt.dev/rotate-token") == value
        return answered and set(secret["data"]) == {"token"}

    await eventually_async(is_over, deadline=60, reason="the rotation")
    token = await world.token("demo")
    for pod in (*world.rollouts.values(), *world.trainers.values()):
        pod.token = token


async def until_ready(process: Process) -> None:
    """Waits without holding up the proxy, which runs in this loop."""
    await eventually_async(
        lambda: asyncio.to_thread(process.is_ready), deadline=60, every=0.1, reason="the operator's readiness"
    )


async def live_in_a_pool(world: World, node: Node) -> None:
    """What an operator does for pods of its own, while others take them room and change its objects."""
    kube, place = world.kube, world.namespace
    name = "swarm-rollout"
    quota = {"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}}
    await kube._json("POST", QUOTA.path(place), body={"apiVersion": "v1", "kind": "ResourceQuota", **quota})

    async def is_full() -> bool:
        found = await kube.get(QUOTA, namespace=place, name="full")
        return "used" in (found.get("status") or {})

    await eventually_async(is_full, deadline=60, reason="the quota in force")
    await world.apply_job("swarm", rollout=pool(1), suspend=True)
    await world.until_condition("Degraded", "True", "QuotaExceeded", "swarm")
    await kube._json("DELETE", QUOTA.path(place, "full"))
    await node.until_up(f"{name}-0")

    async def kept(replicas: int) -> bool:
        found = await kube.get(STATEFUL_SET, namespace=place, name=name)
        return bool(found["spec"]["replicas"] == replicas)

    foreign = [("fieldManager", "somebody")]
    await kube._json(
        "PATCH",
        STATEFUL_SET.path(place, name),
        body={"spec": {"replicas": 2}},
        query=foreign,
        content_type="application/merge-patch+json",
    )
    await eventually_async(lambda: kept(1), deadline=60, reason="the number of pods that the job wants")
    await kube._json(
        "PATCH",
        DISRUPTION_BUDGET.path(place, name),
        body={"spec": {"maxUnavailable": 8}},
        query=foreign,
        content_type="application/merge-patch+json",
    )
    (before,) = await kube.list_all(CLAIM_TEMPLATE, namespace=place)
    await world.apply_job("swarm", rollout=pool(1, count=2), suspend=True)

    async def has_other_devices() -> bool:
        templates = await kube.list_all(CLAIM_TEMPLATE, namespace=place)
        assert [item["metadata"]["name"] for item in templates] != [before["metadata"]["name"]]
        pods = await kube.list_all(POD, namespace=place, labels=LABELS)
        assert len(pods) == 1, pods
        (claim,) = pods[0]["spec"]["resourceClaims"]
        return [claim["resourceClaimTemplateName"]] == [item["metadata"]["name"] for item in templates]

    await eventually_async(has_other_devices, deadline=60, reason="a pod with other devices")

    async def is_careful() -> bool:
        budget = await kube.get(DISRUPTION_BUDGET, namespace=place, name=name)
        return bool(budget["spec"]["maxUnavailable"] == 1)

    await eventually_async(is_careful, deadline=60, reason="the disruption budget as it should be")


async def live_a_whole_life(world: World, installation: Installation) -> None:
    """Everything that an operator ever does, a take-over after a crash included."""
    process = installation.process
    installation.start()
    await until_ready(process)
    await world.apply_job(gateway={"enabled": True})
    busy, idle = await world.add_rollout("rollout-0"), await world.add_rollout("rollout-1")
    busy.generate()
    idle.finish(captured=1000)
    await eventually_async(lambda: idle.lease, deadline=60, reason="a lease")
    world.trainers["rollout-1"].publish(manifest("demo", 1))
    await world.until_condition("DrafterReady", "True", "RevisionActive")
    await rotate(world, "first")
    await asyncio.to_thread(process.end, signal.SIGKILL)
    installation.start()
    await until_ready(process)
    await rotate(world, "second")  # the Event is there already, and is counted up
    await world.until_condition("RolloutReady", "True", "PodsReady")
    await world.apply_job(gateway={"enabled": False}, suspend=True)

    async def gone() -> bool:
        kept = await world.kube.list_all(DEPLOYMENT, namespace=world.namespace, labels="tlt.dev/job=demo")
        return not kept and not await world.trainer_pods()

    await eventually_async(gone, deadline=60, reason="the end of trainers and gateway")
    kept = [item["metadata"]["name"] for item in await world.kube.list_all(NETWORK_POLICY, namespace=world.namespace)]
    assert set(kept) <= {"demo-lighthouse", "demo-trainers"}  # its gateway is none of them
    node = Node(world)
    kubelet = asyncio.create_task(node.run())
    try:
        await live_in_a_pool(world, node)
    finally:
        await cancel(kubelet)
        for server in node.servers.values():
            await server.stop()
    asked = len(installation.proxy.asked)
    await eventually_async(
        lambda: Right("tlt.dev/tltjobs", "list") in {item.right for item in installation.proxy.asked[asked:]},
        deadline=60,
        reason="a look for jobs that are gone",
    )
    assert await asyncio.to_thread(process.end) == 0


async def test_each_right_that_is_used_is_granted_and_none_besides(
    world: World, installation: Installation, elsewhere: str
) -> None:
    await live_a_whole_life(world, installation)
    proxy, log = installation.proxy, installation.process.log.read_text()
    # Namespaces of the test before may still be there, and nothing can be made in them while they go.
    known = (None, world.namespace, elsewhere, installation.system)
    assert [item for item in proxy.asked if item.status in (401, 403) and item.namespace in known] == []
    assert sorted(proxy.rights() - installation.granted()) == [], "used without a rule, and yet allowed"
    assert sorted(installation.granted() - proxy.rights()) == [], "granted and never used"
    refused = [line for line in log.splitlines() if "forbidden" in line.lower() and "terminated" not in line]
    assert refused == []
    assert "Traceback" not in log
    assert await world.events("LeaseGranted")
    named = any(item["kind"] == "ClusterRole" for item in installation.objects)
    namespaces = {item.namespace for item in proxy.asked}
    job = await world.kube.get(JOB, namespace=elsewhere, name="demo")
    if named:
        assert None in namespaces
        assert job["status"]["phase"]
    else:
        assert namespaces == {world.namespace, installation.system}, "it looked beyond the namespaces that it was given"
        assert "status" not in job
        (pod,) = await world.kube.list_all(POD, namespace=elsewhere)
        assert pod["metadata"]["name"] == "rollout-0"
        assert await world.kube.list_all(SECRET, namespace=elsewhere) == []
