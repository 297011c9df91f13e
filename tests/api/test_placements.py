"""How trainers get at devices, with real claims, quotas and budgets: what cannot work is told, what can is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import World
from tests.support.accounts import connect_as
from tests.support.eventually import eventually_async
from tlt_operator.api.names import trainer_name
from tlt_operator.clients.kube import POD, RESOURCE_CLAIM, Kind

QUOTA = Kind(api_version="v1", kind="ResourceQuota", plural="resourcequotas")
BUDGET = Kind(api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets")
ACCOUNT = Kind(api_version="v1", kind="ServiceAccount", plural="serviceaccounts")
ROLE = Kind(api_version="rbac.authorization.k8s.io/v1", kind="Role", plural="roles")
BINDING = Kind(api_version="rbac.authorization.k8s.io/v1", kind="RoleBinding", plural="rolebindings")
Body = dict[str, Any]


async def make(world: World, kind: Kind, body: Body) -> Body:
    full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
    return await world.kube._json("POST", kind.path(world.namespace), body=full)


async def make_claim(world: World, name: str, *requests: str) -> None:
    """A claim as the scheduler leaves it: allocated on the node, and protected for as long as a pod uses it."""
    devices = {"requests": [{"name": item, "exactly": {"deviceClassName": "gpu.example.com"}} for item in requests]}
    metadata = {"name": name, "finalizers": ["resource.kubernetes.io/delete-protection"]}
    await make(world, RESOURCE_CLAIM, {"metadata": metadata, "spec": {"devices": devices}})
    results = [
        {"request": item, "driver": "gpu.example.com", "pool": "node", "device": f"{name}-{item}"} for item in requests
    ]
    await set_claim_status(world, name, allocation={"devices": {"results": results}})


async def set_claim_status(world: World, name: str, **status: Any) -> None:
    await world.kube.patch_status(RESOURCE_CLAIM, namespace=world.namespace, name=name, status=status)


async def reserve(world: World, claim: str, pod: str) -> None:
    """What the scheduler does before a pod may run."""
    found = await world.kube.get(POD, namespace=world.namespace, name=pod)
    entry = {"resource": "pods", "name": pod, "uid": found["metadata"]["uid"]}
    before = (await world.kube.get(RESOURCE_CLAIM, namespace=world.namespace, name=claim))["status"]
    await set_claim_status(world, claim, reservedFor=[*before.get("reservedFor", ()), entry])


async def trainer_of(world: World, rollout: str) -> Body | None:
    return next(
        (
            pod
            for pod in await world.trainer_pods()
            if pod["metadata"]["annotations"]["tlt.dev/rollout-pod"] == rollout
            and "deletionTimestamp" not in pod["metadata"]
        ),
        None,
    )


async def until_trainer(world: World, rollout: str) -> Body:
    found = await eventually_async(lambda: trainer_of(world, rollout), deadline=60, reason=f"a trainer for {rollout}")
    assert found is not None
    return found


class TestClaims:
    async def test_next_trainer_waits_until_the_claim_has_forgotten_the_last_one(self, world: World) -> None:
        """The last one is gone for the operator, and the kubelet has not yet given its devices back."""
        await world.apply_job()
        for name in ("rollout-0", "rollout-1"):
            await make_claim(world, f"{name}-gpu", "gpu-0")
        last = trainer_name("demo", rollout_uid="an-earlier-pod-on-this-claim")
        pod = {
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "rollout-0-gpu"}],
            "containers": [{"name": "x", "image": "x", "resources": {"claims": [{"name": "gpu"}]}}],
        }
        await make(world, POD, {"metadata": {"name": last}, "spec": {**pod, "terminationGracePeriodSeconds": 0}})
        await reserve(world, "rollout-0-gpu", last)
        await world.add_rollout("rollout-0")
        await world.add_rollout("rollout-1")
        await until_trainer(world, "rollout-1")
        assert await trainer_of(world, "rollout-0") is None
        await world.kube.delete(POD, namespace=world.namespace, name=last)
        await until_trainer(world, "rollout-0")
        claim = await world.kube.get(RESOURCE_CLAIM, namespace=world.namespace, name="rollout-0-gpu")
        assert last not in [item["name"] for item in claim["status"].get("reservedFor", ())]

    async def test_claim_that_is_being_deleted_takes_no_trainer_and_the_other_pods_do(self, world: World) -> None:
        await world.apply_job()
        for name in ("rollout-0", "rollout-1"):
            await make_claim(world, f"{name}-gpu", "gpu-0")
            await world.add_rollout(name)
            await reserve(world, f"{name}-gpu", name)
        await until_trainer(world, "rollout-0")
        await world.kube.delete(RESOURCE_CLAIM, namespace=world.namespace, name="rollout-0-gpu")
        found = await world.until_condition("Degraded", "True", "ResourceClaimDeleted")
        assert "kubectl delete pod rollout-0" in found["message"]

        async def without() -> bool:
            return await trainer_of(world, "rollout-0") is None

        await eventually_async(without, deadline=60, reason="the end of the trainer on the claim")
        (event,) = await world.events("PodSkipped")
        assert event["type"] == "Warning"
        assert "rollout-0-gpu" in event["note"]
        await until_trainer(world, "rollout-1")

    async def test_named_requests_are_lent_and_unknown_ones_refused(self, world: World) -> None:
        def whole_claim(body: Body) -> None:
            body["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}

        await world.apply_job(placement={"requests": ["gpu-1", "gpu-9"]})
        await make_claim(world, "rollout-0-gpu", "gpu-0", "gpu-1", "gpu-2")
        await world.add_rollout("rollout-0", change=whole_claim)
        found = await world.until_condition("Degraded", "True", "NoSuchRequest")
        assert "names gpu-9" in found["message"]
        assert "gpu-0, gpu-1, gpu-2" in found["message"]
        assert await world.trainer_pods() == []
        await world.apply_job(placement={"requests": ["gpu-1"]})
        trainer = await until_trainer(world, "rollout-0")
        (container,) = trainer["spec"]["containers"]
        assert container["resources"]["claims"] == [{"name": "gpu", "request": "gpu-1"}]
        await world.until_condition("Degraded", "False", "AsExpected")

    async def test_device_of_a_plugin_is_told_with_the_way_to_opt_in(self, world: World) -> None:
        def plugin(body: Body) -> None:
            body["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}

        await world.apply_job()
        await world.add_rollout("rollout-0", claim=False, change=plugin)
        found = await world.until_condition("Harvesting", "False", "NoResourceClaim")
        assert "VisibleDevices" in found["message"]


class TestManners:
    async def test_full_quota_is_told_and_the_trainer_comes_when_there_is_room(self, world: World) -> None:
        await make(world, QUOTA, {"metadata": {"name": "team"}, "spec": {"hard": {"pods": "1"}}})

        async def counted() -> bool:
            quota = await world.kube.get(QUOTA, namespace=world.namespace, name="team")
            return "pods" in quota.get("status", {}).get("used", {})

        await eventually_async(counted, deadline=60, reason="the quota's count")
        await world.apply_job()
        await world.add_rollout("rollout-0")
        found = await world.until_condition("Degraded", "True", "QuotaExceeded")
        assert "spec.training.maxTrainers" in found["message"]
        assert "exceeded quota: team" in found["message"]
        (event,) = await world.events("TrainerRefused")
        assert "exceeded quota: team" in event["note"]
        failures = world.context.metrics.action_failures.labels(
            job=f"{world.namespace}/demo", action="create trainer"
        )._value.get()
        assert failures <= 3, "tried again at once, over and over"
        await world.kube.patch(QUOTA, namespace=world.namespace, name="team", body={"spec": {"hard": {"pods": "2"}}})
        await until_trainer(world, "rollout-0")
        await world.until_condition("Degraded", "False", "AsExpected")

    async def test_missing_priority_class_is_told_with_the_field(self, world: World) -> None:
        await world.apply_job(
            training={"trigger": {"minNewTokens": 100}, "template": {"priorityClassName": "nobody-made-it"}}
        )
        await world.add_rollout("rollout-0")
        found = await world.until_condition("Degraded", "True", "NoPriorityClass")
        assert "spec.training.template.priorityClassName" in found["message"]
        assert "nobody-made-it" in found["message"]
        await world.apply_job()
        await until_trainer(world, "rollout-0")
        await world.until_condition("Degraded", "False", "AsExpected")

    async def test_trainer_that_kueue_takes_is_given_up_and_told(self, world: World) -> None:
        """Kueue's webhook labels the pods of the namespaces that it manages; here the test does."""
        await world.apply_job()
        await world.add_rollout("rollout-0")
        trainer = await until_trainer(world, "rollout-0")
        assert "kueue.x-k8s.io/queue-name" not in trainer["metadata"]["labels"]
        labels = {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}}
        await world.kube.patch(POD, namespace=world.namespace, name=trainer["metadata"]["name"], body=labels)
        found = await world.until_condition("Degraded", "True", "QueuedByKueue")
        assert "managedJobsNamespaceSelector" in found["message"]

        async def gone() -> bool:
            pods = await world.trainer_pods()
            return trainer["metadata"]["uid"] not in [pod["metadata"]["uid"] for pod in pods]

        await eventually_async(gone, deadline=60, reason="the end of the queued trainer")
        assert await world.events("TrainerFailed")

    async def test_budget_of_the_rollout_pods_does_not_count_trainers(self, world: World) -> None:
        await world.apply_job()
        for name in ("rollout-0", "rollout-1"):
            await world.add_rollout(name)
        spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "rollout"}}}
        await make(world, BUDGET, {"metadata": {"name": "rollout"}, "spec": spec})
        for name in ("rollout-0", "rollout-1"):
            await world.until_warm(name)

        async def counted() -> bool:
            budget = await world.kube.get(BUDGET, namespace=world.namespace, name="rollout")
            status = budget.get("status", {})
            assert (status.get("expectedPods"), status.get("currentHealthy")) == (2, 2), status
            return True

        await eventually_async(counted, deadline=60, reason="the budget's count of two rollout pods and no trainer")


class TestSight:
    """An operator that cannot see claims says so and lends nothing; it goes on when it can."""

    async def test_cluster_without_the_claims_api(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The API server answers 404 as one without dynamic resource allocation does: the version does not exist."""
        await world.stop_operator()
        older = dataclasses.replace(RESOURCE_CLAIM, api_version="resource.k8s.io/v1alpha1")
        monkeypatch.setattr("tlt_operator.reconcile.observer.RESOURCE_CLAIM", older)
        await world.start_operator()
        await world.apply_job()
        await world.add_rollout("rollout-0")
        found = await world.until_condition("Degraded", "True", "ClusterWithoutDRA")
        assert "VisibleDevices" in found["message"]
        await world.until_condition("RolloutReady", "True", "PodsReady")
        assert await world.trainer_pods() == []

    async def test_operator_with_an_older_role(self, world: World, kubeconfig: Path, tmp_path: Path) -> None:
        await world.stop_operator()
        role = {"apiGroups": ["", "tlt.dev", "events.k8s.io"], "resources": ["*"], "verbs": ["*"]}
        await make(world, ACCOUNT, {"metadata": {"name": "older"}})
        await make(world, ROLE, {"metadata": {"name": "older"}, "rules": [role]})
        binding = {
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "older"},
            "subjects": [{"kind": "ServiceAccount", "name": "older", "namespace": world.namespace}],
        }
        await make(world, BINDING, {"metadata": {"name": "older"}, **binding})
        kube = await connect_as(world.kube, "older", namespace=world.namespace, kubeconfig=kubeconfig, folder=tmp_path)
        world.context = dataclasses.replace(world.context, kube=kube)
        await world.start_operator()
        await world.apply_job()
        await world.add_rollout("rollout-0")
        found = await world.until_condition("Degraded", "True", "ResourceClaimsHidden")
        assert "list and watch on resourceclaims" in found["message"]
        claims = {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["list", "watch"]}
        await world.kube.patch(ROLE, namespace=world.namespace, name="older", body={"rules": [role, claims]})
        await until_trainer(world, "rollout-0")
        await world.until_condition("Degraded", "False", "AsExpected")
        await world.stop_operator()
        await kube.close()
