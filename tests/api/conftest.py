"""A real control plane (etcd, kube-apiserver, controller manager) with the CRDs, and a kubelet played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeGateway, FakeRollout, FakeTrainer
from tlt_operator.api.names import COMPONENT_LABEL, JOB_LABEL, ROLLOUT_UID_LABEL, token_secret_name
from tlt_operator.clients.kube import JOB, POD, REVISION, SECRET, Kind, Kubernetes, WatchEvent
from tlt_operator.config import Settings
from tlt_operator.errors import TemporaryError
from tlt_operator.reconcile.answers import cancel
from tlt_operator.reconcile.context import Context
from tlt_operator.reconcile.jobs import Jobs

ROOT = Path(__file__).parents[2]
CONTROL_PLANE = "tests-api"
ROLLOUT_PORT = 18000
NAMESPACE_KIND = Kind(api_version="v1", kind="Namespace", plural="namespaces")

_addresses = itertools.count()


def next_address() -> str:
    """A loopback address that no other server of this run has had."""
    number = next(_addresses)
    return f"127.1.{number // 250}.{number % 250 + 1}"


def devcluster(*arguments: str) -> str:
    command = [sys.executable, "-m", "devcluster", *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr or answer.stdout}"
    return answer.stdout


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """A control plane of its own, removed at the end."""
    own = ("--control-plane", "--name", CONTROL_PLANE)
    devcluster("up", *own)
    try:
        path = Path(devcluster("kubeconfig", *own).strip())
        kubectl = Path(devcluster("path").strip()) / "kubectl"
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            subprocess.run(
                [str(kubectl), "apply", "--server-side", "-f", str(file)],
                env={**os.environ, "KUBECONFIG": str(path)},
                check=True,
                capture_output=True,
            )
        subprocess.run(
            [str(kubectl), "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"],
            env={**os.environ, "KUBECONFIG": str(path)},
            check=True,
            capture_output=True,
        )
        yield path
    finally:
        devcluster("down", *own)


@pytest_asyncio.fixture
async def kube(kubeconfig: Path) -> AsyncIterator[Kubernetes]:
    """The API server as the administrator."""
    connection = await Kubernetes.connect(kubeconfig=str(kubeconfig))
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def namespace(kube: Kubernetes) -> AsyncIterator[str]:
    """A namespace of the test's own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await kube._json("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    yield name
    await kube._json("DELETE", f"/api/v1/namespaces/{name}")


async def follow(kube: Kubernetes, kind: Kind, namespace: str, *, labels: str = "") -> AsyncIterator[WatchEvent]:
    """Every change of objects of a kind, for ever."""
    while True:
        try:
            async for event in kube.watch(kind, namespace=namespace, labels=labels):
                if event.body:
                    yield event
        except TemporaryError:
            await asyncio.sleep(0.1)


async def feed(jobs: Jobs, kube: Kubernetes, namespace: str) -> None:
    """Tells an operator of every TLTJob, as Kopf does."""
    async for event in follow(kube, JOB, namespace):
        if event.change == "DELETED":
            await jobs.gone(event.body)
        else:
            jobs.seen(event.body)


@dataclass
class World:
    """A namespace with an operator, and the means to play users, kubelet and pods in it."""

    kube: Kubernetes
    namespace: str
    context: Context
    jobs: Jobs
    rollouts: dict[str, FakeRollout] = field(default_factory=dict)
    trainers: dict[str, FakeTrainer] = field(default_factory=dict)
    gateways: list[FakeGateway] = field(default_factory=list)
    _kubelet: asyncio.Task[None] | None = None
    _feeder: asyncio.Task[None] | None = None

    async def start_operator(self) -> None:
        self.jobs = Jobs(self.context)
        self.jobs.begin()
        await self.start_feeding()

    async def stop_operator(self) -> None:
        """Ends the operator; leases, trainers and pods go on."""
        await self.stop_feeding()
        await self.jobs.close()

    async def start_feeding(self) -> None:
        """Tells the operator of every TLTJob from now on, as Kopf does."""
        self._feeder = asyncio.create_task(feed(self.jobs, self.kube, self.namespace))

    async def stop_feeding(self) -> None:
        if self._feeder is not None:
            await cancel(self._feeder)
            self._feeder = None

    async def restart_operator(self) -> None:
        await self.stop_operator()
        await self.start_operator()

    async def start(self) -> None:
        self._kubelet = asyncio.create_task(self._play_kubelet())

    async def stop_kubelet(self) -> None:
        """Pods that are made from now on do not start."""
        if self._kubelet is not None:
            await cancel(self._kubelet)

    async def close(self) -> None:
        await self.stop_operator()
        await self.stop_kubelet()
        for pod in (*self.trainers.values(), *self.rollouts.values(), *self.gateways):
            await pod.stop()

    async def apply_job(self, name: str = "demo", **spec: Any) -> dict[str, Any]:
        """A TLTJob that adopts `app: rollout`; keywords replace fields of the spec."""
        body = job_body(self.namespace, name, **spec)
        return await self.kube.apply(body)

    async def add_rollout(
        self,
        name: str,
        *,
        job: str = "demo",
        app: str = "rollout",
        claim: bool = True,
        plugin: bool = True,
        token: str | None = None,
        port: int = ROLLOUT_PORT,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> FakeRollout:
        """A rollout pod, scheduled, running and ready, with a server at its address; `change` edits its manifest."""
        address = next_address()
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": app}},
            "spec": {"containers": [{"name": "vllm", "image": "vllm"}], "terminationGracePeriodSeconds": 0},
        }
        if claim:
            body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": f"{name}-gpu"}]
            body["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu", "request": "gpu-0"}]}
        if change is not None:
            change(body)
        await self.kube.create(body)
        server = FakeRollout(address, port, token=token or await self.token(job))
        if not plugin:
            server.routes = list  # type: ignore[method-assign]
        self.rollouts[name] = server
        await server.start()
        await self.set_pod_running(name, address)
        return server

    async def token(self, job: str) -> str | None:
        """The job's control token, once the operator has made it; None while there is no job."""
        if await self.kube.find(JOB, namespace=self.namespace, name=job) is None:
            return None
        import base64

        async def read() -> str | None:
            secret = await self.kube.find(SECRET, namespace=self.namespace, name=token_secret_name(job))
            return base64.b64decode(secret["data"]["token"]).decode() if secret else None

        return await eventually_async(read, deadline=30, reason="the token Secret")

    async def set_pod_running(self, name: str, address: str, *, ready: bool = True) -> None:
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        await self.kube.patch_status(POD, namespace=self.namespace, name=name, status=status)

    async def restart_container(self, name: str, *, count: int) -> None:
        """The kubelet has started a container of the pod again, `count` times so far."""
        container = {"name": "vllm", "image": "vllm", "imageID": "", "ready": True, "restartCount": count}
        await self.kube.patch_status(
            POD, namespace=self.namespace, name=name, status={"containerStatuses": [container]}
        )

    async def fail_pod(self, name: str, message: str) -> None:
        status = {"phase": "Failed", "message": message}
        await self.kube.patch_status(POD, namespace=self.namespace, name=name, status=status)

    async def status(self, name: str = "demo") -> dict[str, Any]:
        body = await self.kube.get(JOB, namespace=self.namespace, name=name)
        found: dict[str, Any] = body.get("status") or {}
        return found

    async def condition(self, kind: str, name: str = "demo") -> dict[str, Any]:
        status = await self.status(name)
        return next((item for item in status.get("conditions", ()) if item["type"] == kind), {})

    async def until_status(self, **fields: Any) -> None:
        """Waits until the job's status has these fields."""

        async def probe() -> bool:
            status = await self.status()
            found = {name: status.get(name) for name in fields}
            assert found == fields, found
            return True

        await eventually_async(probe, deadline=60, reason=f"status {fields}")

    async def until_workers(self, total: int) -> None:
        """Waits until the job's status counts so many rollout pods."""

        async def probe() -> bool:
            workers = (await self.status()).get("workers", {})
            assert workers.get("total") == total, workers
            return True

        await eventually_async(probe, deadline=60, reason=f"{total} workers")

    async def until_condition(self, kind: str, status: str, reason: str, name: str = "demo") -> dict[str, Any]:
        """Waits for a condition and returns it."""

        async def probe() -> dict[str, Any] | None:
            found = await self.condition(kind, name)
            assert (found.get("status"), found.get("reason")) == (status, reason), found
            return found

        found = await eventually_async(probe, deadline=60, reason=f"{kind}={status} ({reason})")
        assert found is not None
        return found

    async def trainer_pods(self, job: str = "demo") -> list[dict[str, Any]]:
        return await self.kube.list_all(
            POD, namespace=self.namespace, labels=f"{JOB_LABEL}={job},{COMPONENT_LABEL}=trainer"
        )

    async def revision(self, name: str) -> dict[str, Any] | None:
        return await self.kube.find(REVISION, namespace=self.namespace, name=name)

    async def events(self, reason: str) -> list[dict[str, Any]]:
        kind = Kind(api_version="events.k8s.io/v1", kind="Event", plural="events")
        return [item for item in await self.kube.list_all(kind, namespace=self.namespace) if item["reason"] == reason]

    async def until_warm(self, rollout: str) -> FakeTrainer:
        """Waits for the trainer of a rollout pod."""
        return await eventually_async(
            lambda: self.trainers.get(rollout), deadline=60, reason=f"a warm trainer for {rollout}"
        )

    async def run_gateway(self, job: str = "demo") -> FakeGateway:
        """Plays the gateway pod that the Deployment controller has made."""
        pod = await self._made_pod("gateway", job)
        server = FakeGateway(next_address(), token=await self.token(job))
        await server.start()
        self.gateways.append(server)
        await self.set_pod_running(pod["metadata"]["name"], server.address)
        return server

    async def run_lighthouse(self, job: str = "demo", *, ready: bool = True) -> None:
        """Says that the lighthouse's pod, which the Deployment controller has made, runs."""
        pod = await self._made_pod("lighthouse", job)
        await self.set_pod_running(pod["metadata"]["name"], next_address(), ready=ready)

    async def _made_pod(self, component: str, job: str) -> dict[str, Any]:
        async def find() -> dict[str, Any] | None:
            labels = f"{JOB_LABEL}={job},{COMPONENT_LABEL}={component}"
            return next(iter(await self.kube.list_all(POD, namespace=self.namespace, labels=labels)), None)

        pod = await eventually_async(find, deadline=60, reason=f"the pod of the {component}")
        assert pod is not None
        return pod

    async def _play_kubelet(self) -> None:
        async for event in follow(self.kube, POD, self.namespace, labels=f"{COMPONENT_LABEL}=trainer"):
            metadata = event.body["metadata"]
            rollout = metadata["annotations"]["tlt.dev/rollout-pod"]
            if event.change == "DELETED":
                server = self.trainers.pop(rollout, None)
                if server is not None:
                    await server.stop()
            elif rollout not in self.trainers and event.change == "ADDED":
                await self._run_trainer(event.body, rollout)

    async def _run_trainer(self, body: dict[str, Any], rollout: str) -> None:
        metadata = body["metadata"]
        address = next_address()
        environment = {item["name"]: item.get("value") for item in body["spec"]["containers"][0]["env"]}
        server = FakeTrainer(
            address,
            rollout_url=environment["TLT_ROLLOUT_URL"],
            holder=f"{metadata['name']}/{metadata['uid']}",
            token=await self.token(metadata["labels"][JOB_LABEL]),
        )
        await server.start()
        self.trainers[rollout] = server
        await self.set_pod_running(metadata["name"], address)
        assert metadata["labels"][ROLLOUT_UID_LABEL]


def job_body(namespace: str, name: str = "demo", **spec: Any) -> dict[str, Any]:
    """A small valid TLTJob."""
    fields: dict[str, Any] = {
        "target": {"model": "/models/policy"},
        "rollout": {"selector": {"matchLabels": {"app": "rollout"}}},
        "port": ROLLOUT_PORT,
        "gateway": {"enabled": False},
        "idle": {"after": "50ms", "minWindow": "5s", "scope": "Tail"},
        "training": {"trigger": {"minNewTokens": 100}},
        "release": {"canary": {"replicas": 0}},
        "store": {"url": "file:///tlt", "volumeClaim": "tlt"},
        **spec,
    }
    return {
        "apiVersion": "tlt.dev/v1alpha1",
        "kind": "TLTJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": fields,
    }


@contextlib.asynccontextmanager
async def open_world(kube: Kubernetes, namespace: str, *, operator: Kubernetes | None = None) -> AsyncIterator[World]:
    """A world whose operator has a connection of its own to the API server, or the test's."""
    settings = Settings(
        workloads_image="workloads:test",
        operator_image="operator:test",
        poll_wait=1.0,
        tick=0.2,
        watch_namespaces=(namespace,),
        status_interval=0.2,
        counter_interval=0.5,
        recheck_interval=0.2,
        request_timeout=5.0,
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        context = Context(kube=operator or kube, session=session, settings=settings)
        found = World(kube=kube, namespace=namespace, context=context, jobs=Jobs(context))
        await found.start()
        await found.start_operator()
        try:
            yield found
        finally:
            await found.close()


@pytest_asyncio.fixture
async def world(kube: Kubernetes, namespace: str) -> AsyncIterator[World]:
    """An operator on a real API server; pods are played by the test."""
    async with open_world(kube, namespace) as found:
        yield found


def read_crd(name: str) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load((ROOT / "crds" / f"{name}.yaml").read_text())
    return json.loads(json.dumps(body))  # type: ignore[no-any-return]
