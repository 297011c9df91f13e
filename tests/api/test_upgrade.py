"""From the chart of an older release to the present one, with a job in the middle of its work: nothing is lost.

`older_release` holds what the older chart rendered and what its operator left of a job in a cluster; both were taken
from that release as it ran, and are not changed afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api.conftest import World, devcluster
from tests.api.test_chart_lifecycle import Machine
from tests.support.eventually import eventually_async
from tests.support.fake_rollout import FakeRollout
from tlt_operator.api.names import token_secret_name, trainer_name
from tlt_operator.clients.kube import JOB, POD, REVISION, SECRET
from tlt_workloads.contract import DRAFTER_ROUTE, LEASE_ROUTE, DrafterLoad, LeaseRequest, encode

OLDER = Path(__file__).parent / "older_release"
OWN = ("--control-plane", "--name", "tests-upgrade")
TOKEN = "made-by-the-older-operator"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A control plane with the older release in it."""
    devcluster("up", *OWN)
    try:
        found = Machine(kubeconfig=Path(devcluster("kubeconfig", *OWN).strip()))
        found.run("helm", "install", "tlt", str(OLDER), "--namespace", "tlt-system", "--create-namespace")
        found.wait_for_crds()
        yield found
    finally:
        devcluster("down", *OWN)


@pytest.fixture
def kubeconfig(machine: Machine) -> Path:
    """In the place of the other tests' control plane."""
    return machine.kubeconfig


def left(kind: str = "", **names: str) -> list[dict[str, Any]]:
    """What the older operator left, under the names of this cluster."""
    text = (OLDER / "left.yaml").read_text()
    for placeholder, name in names.items():
        text = text.replace(placeholder.replace("_", "-"), name)
    return [body for body in yaml.safe_load_all(text) if kind in ("", body["kind"])]


async def put(world: World, body: dict[str, Any]) -> dict[str, Any]:
    """Makes an object as it was, its status too."""
    status = body.pop("status", None)
    made = await world.kube.apply(body)
    if status is not None:
        kind = {JOB.kind: JOB, REVISION.kind: REVISION}[body["kind"]]
        made = await world.kube.patch_status(
            kind, namespace=world.namespace, name=body["metadata"]["name"], status=status
        )
    return made


def keeps(after: Any, before: Any) -> bool:
    """Whether everything is as it was; fields that the newer release has defaults for may have come."""
    if isinstance(before, dict):
        return isinstance(after, dict) and all(key in after and keeps(after[key], before[key]) for key in before)
    return bool(after == before)


async def put_rollout(world: World, entry: dict[str, Any], revision: dict[str, Any]) -> FakeRollout:
    """A rollout pod in the middle of its work."""
    pod = await world.add_rollout(entry["pod"], token=TOKEN)
    pod.boot = entry["boot"]
    pod.busy_seconds, pod.idle_seconds, pod.lent_seconds = entry["busy"], entry["idle"], entry["harvested"]
    spec = revision["spec"]
    pod.revision = DrafterLoad(revision=revision["metadata"]["name"], url=spec["url"], sha256=spec["digest"])
    return pod


async def put_everything(world: World) -> tuple[FakeRollout, FakeRollout]:
    """The cluster as the older operator left it: the busy pod and the lent one."""
    names = {"NAMESPACE": world.namespace}
    job = await put(world, left(JOB.kind, **names)[0])
    names["JOB_UID"] = job["metadata"]["uid"]
    newest = left(REVISION.kind, **names)[-1]
    busy, lent = [await put_rollout(world, entry, newest) for entry in job["status"]["ledger"]]
    pod = await world.kube._json("GET", POD.path(world.namespace, "rollout-1"))
    names |= {
        "ROLLOUT_UID": pod["metadata"]["uid"],
        "ROLLOUT_ADDRESS": lent.address,
        "TRAINER": trainer_name("demo", rollout_uid=pod["metadata"]["uid"]),
    }
    for body in left(**names)[1:]:
        await put(world, body)
    gateway = await world.run_gateway()
    gateway.outstanding = 2
    busy.generate()
    lent.finish(captured=1500)
    trainer = await world.until_warm("rollout-1")
    await eventually_async(lambda: lent.idle, reason="the idle pod")
    request = encode(LeaseRequest(holder=trainer.holder, ttl=60.0, window=600.0))
    url, headers = f"http://{lent.address}:{lent.port}{LEASE_ROUTE}", {"Authorization": f"Bearer {TOKEN}"}
    async with world.context.session.post(url, json=request, headers=headers) as answer:
        assert answer.status == 201, await answer.text()
    return busy, lent


async def test_upgrade_loses_no_job_revision_token_or_lease(machine: Machine, world: World) -> None:
    await world.stop_operator()
    busy, lent = await put_everything(world)
    before = await world.kube.get(JOB, namespace=world.namespace, name="demo")
    lease = lent.lease
    revisions = {item["metadata"]["uid"] for item in await world.kube.list_all(REVISION, namespace=world.namespace)}
    lent.calls.clear()
    busy.calls.clear()

    machine.install("tlt", "tlt-system")
    machine.wait_for_crds()
    for kind in ("tltjobs", "drafterrevisions"):
        for item in json.loads(machine.run("kubectl", "get", kind, "-n", world.namespace, "-o", "json"))["items"]:
            machine.run("kubectl", "replace", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(item))
    await world.start_operator()

    async def counts_on() -> bool:
        seconds, was = (await world.status())["gpuSeconds"], before["status"]["gpuSeconds"]
        assert seconds["busy"] > was["busy"], (seconds, was)
        assert seconds["harvested"] > was["harvested"], (seconds, was)
        busy._count()
        lent._count()
        assert abs(seconds["busy"] - busy.busy_seconds - lent.busy_seconds) < 2.0, (seconds, busy.busy_seconds)
        return True

    await eventually_async(counts_on, deadline=60, reason="device seconds that count on")
    await world.until_condition("Harvesting", "True", "LeaseHeld")
    assert lease is not None
    assert lent.lease is not None, lent.last_lease
    assert lent.lease.id == lease.id
    assert len(lent.granted) == 1
    await world.until_status(activeRevision="demo-r2", candidateRevision=None)
    assert not [call for call in (*lent.calls, *busy.calls) if call == f"POST {DRAFTER_ROUTE}"], "loaded again"
    now = {item["metadata"]["uid"] for item in await world.kube.list_all(REVISION, namespace=world.namespace)}
    assert now == revisions
    job = await world.kube.get(JOB, namespace=world.namespace, name="demo")
    assert job["metadata"]["uid"] == before["metadata"]["uid"]
    assert keeps(job["spec"], before["spec"]), "what was set stays as it was set"
    secret = await world.kube.get(SECRET, namespace=world.namespace, name=token_secret_name("demo"))
    assert secret["data"]["token"] == left(SECRET.kind)[0]["data"]["token"]

    lent.generate()
    await eventually_async(lambda: lent.last_lease, deadline=60, reason="the end of the adopted lease")

    async def counted() -> bool:
        windows = (await world.status())["windows"]["count"]
        return bool(windows == before["status"]["windows"]["count"] + 1)

    await eventually_async(counted, deadline=60, reason="one window more")
    assert not await world.events("FieldSetBack"), "one field manager in both releases"
