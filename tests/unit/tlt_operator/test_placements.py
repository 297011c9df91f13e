"""Each placement says what is in its way, and what a trainer pod gets of it: never more than the rollout pod has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.snapshots import make_job, make_pod
from tlt_operator.api.claim import Claim, Consumer, parse_claim
from tlt_operator.api.job import PlacementOptions
from tlt_operator.api.names import Reason
from tlt_operator.api.pod import DeviceClaim, Pod, parse_pod
from tlt_operator.api.reasons import DEGRADED, HARVESTING
from tlt_operator.config import Settings
from tlt_operator.manifests.trainer_pod import trainer_pod
from tlt_operator.placement.choice import choose
from tlt_operator.placement.shared_claim import SharedClaim
from tlt_operator.placement.strategy import Site
from tlt_operator.placement.visible_devices import VisibleDevices

SETTINGS = Settings(workloads_image="workloads:1")
ALLOWED = Site(visible_devices=True)
GPU = "GPU-1b2c3d4e-0000-1111-2222-333344445555"
CLAIM = Claim(name="a-gpu", uid="claim-uid", requests=("gpu-0", "gpu-1"))


def claimed(*requests: str, **fields: Any) -> Pod:
    return make_pod("a", claims=(DeviceClaim(name="gpu", claim="a-gpu", requests=requests),), **fields)


def shown(*devices: str, asked: int | None = None, **fields: Any) -> Pod:
    asked = len(devices) if asked is None else asked
    return make_pod("a", claims=(), node="node-1", visible_devices=devices, plugin_devices=asked, **fields)


def trainer(pod: Pod, site: Site, **placement: Any) -> dict[str, Any]:
    return trainer_pod(make_job(placement=placement), pod, settings=SETTINGS, site=site)


def environment(manifest: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in manifest["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize(
    ("pod", "site", "reason", "words"),
    [
        (claimed(), Site(claims_served=False), Reason.NO_DRA, ("resource.k8s.io/v1", "VisibleDevices")),
        (claimed(), Site(claims_hidden="pods is forbidden"), Reason.CLAIMS_HIDDEN, ("list and watch", "is forbidden")),
        (make_pod("a", claims=()), Site(), Reason.NO_CLAIM, ("pod a", "spec.resourceClaims")),
        (make_pod("a", claims=(), plugin_devices=1), Site(), Reason.NO_CLAIM, ("Pod a", "VisibleDevices")),
        (
            make_pod("a", claims=(), plugin_devices=1, extended_claim="a-extended"),
            Site(),
            Reason.EXTENDED_RESOURCE,
            ("Pod a", "a-extended", "spec.resourceClaims"),
        ),
        (
            claimed(),
            Site(claims={"a-gpu": replace(CLAIM, deleting=True)}),
            Reason.CLAIM_DELETED,
            ("a-gpu", "kubectl delete pod a"),
        ),
    ],
)
def test_shared_claim_names_what_is_in_its_way_and_the_way_out(
    pod: Pod, site: Site, reason: Reason, words: tuple[str, ...]
) -> None:
    found = SharedClaim().obstacle(pod, site)
    assert found is not None
    assert found.reason is reason
    assert all(word in found.message for word in words), found.message


@pytest.mark.parametrize(
    ("pod", "site", "reason", "words"),
    [
        (shown(GPU), Site(), Reason.VISIBLE_DEVICES_OFF, ("visibleDevices.enabled=true", "SharedClaim")),
        (shown(), ALLOWED, Reason.NO_DEVICES, ("Pod a", "DEVICE_LIST_STRATEGY", "tlt.dev/visible-devices")),
        (shown("all"), ALLOWED, Reason.NO_DEVICES, ("'all'", "tlt.dev/visible-devices")),
        (shown(GPU, "nvidia.com/gpu=0"), ALLOWED, Reason.NO_DEVICES, ("'nvidia.com/gpu=0'",)),
        (shown(GPU, "1", asked=1), ALLOWED, Reason.NO_DEVICES, ("names 2 devices", "ask device plugins for 1")),
    ],
)
def test_visible_devices_names_what_is_in_its_way_and_the_way_out(
    pod: Pod, site: Site, reason: Reason, words: tuple[str, ...]
) -> None:
    found = VisibleDevices().obstacle(pod, site)
    assert found is not None
    assert found.reason is reason
    assert all(word in found.message for word in words), found.message


def test_a_pod_that_has_not_spoken_yet_is_waited_for() -> None:
    waiting = make_pod("a", claims=(), node="node-1", plugin_devices=1)
    assert VisibleDevices().obstacle(waiting, ALLOWED) is None
    assert not VisibleDevices().ready(waiting, ALLOWED)
    unscheduled = replace(shown(GPU), node=None)
    assert not VisibleDevices().ready(unscheduled, ALLOWED)
    assert VisibleDevices().ready(shown(GPU), ALLOWED)
    unmade = make_pod("a", claims=(DeviceClaim(name="gpu", claim=None),))
    assert SharedClaim(requests=("gpu-0",)).obstacle(unmade, Site()) is None
    assert not SharedClaim().ready(unmade, Site())


@pytest.mark.parametrize("requests", [("gpu-0", "gpu-1"), ()], ids=["each named", "the claim as a whole"])
def test_named_requests_alone_are_lent(requests: tuple[str, ...]) -> None:
    site = Site(claims={"a-gpu": CLAIM})
    spec = trainer(claimed(*requests), site, requests=["gpu-1"])["spec"]
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "gpu", "request": "gpu-1"}]
    missing = SharedClaim(requests=("gpu-1", "gpu-7")).obstacle(claimed(*requests), site)
    assert missing is not None
    assert missing.reason is Reason.NO_SUCH_REQUEST
    assert "names gpu-7" in missing.message
    assert "gpu-0, gpu-1" in missing.message


def test_claim_of_which_nothing_is_lent_is_not_referenced() -> None:
    claims = (
        DeviceClaim(name="gpu", claim="a-gpu", requests=("gpu-0",)),
        DeviceClaim(name="nic", claim="a-nic", requests=("nic-0",)),
    )
    nic = Claim(name="a-nic", uid="nic-uid", requests=("nic-0",), deleting=True)
    pod, site = make_pod("a", claims=claims), Site(claims={"a-gpu": CLAIM, "a-nic": nic})
    spec = trainer(pod, site, requests=["gpu-0"])["spec"]
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimName": "a-gpu"}]
    assert SharedClaim(requests=("gpu-0",)).obstacle(pod, site) is None
    assert SharedClaim().obstacle(pod, site) is not None


NAMES = st.sampled_from([f"gpu-{number}" for number in range(8)])
REQUESTS = st.lists(NAMES, unique=True, max_size=8).map(tuple)


@given(used=REQUESTS, present=REQUESTS, named=REQUESTS)
def test_a_trainer_never_gets_a_request_that_the_pod_does_not_use(
    used: tuple[str, ...], present: tuple[str, ...], named: tuple[str, ...]
) -> None:
    site = Site(claims={"a-gpu": replace(CLAIM, requests=tuple(dict.fromkeys((*present, *used))))})
    pod, placement = claimed(*used), SharedClaim(requests=named)
    theirs = set(used) or set(site.claims["a-gpu"].requests)
    obstacle = placement.obstacle(pod, site)
    assert (obstacle is not None) == bool(set(named) - theirs)
    if obstacle is not None:
        return
    share = placement.share(pod, site)
    lent = {item.get("request") for item in share.claims}
    assert lent == (set(named) or set(used) or {None})
    assert [item["resourceClaimName"] for item in share.pod["resourceClaims"]] == ["a-gpu"]


IDS = st.one_of(st.just(GPU), st.sampled_from(["0", "7", "MIG-1b2c3d4e-0000"]), st.text(max_size=12))


@given(devices=st.lists(IDS, unique=True, max_size=4), asked=st.integers(0, 4), node=st.sampled_from([None, "node-1"]))
def test_a_trainer_is_shown_exactly_what_the_pod_has_or_nothing(
    devices: list[str], asked: int, node: str | None
) -> None:
    pod = replace(shown(*devices, asked=asked), node=node)
    placement = VisibleDevices()
    if placement.obstacle(pod, ALLOWED) is not None or not placement.ready(pod, ALLOWED):
        return
    value = placement.share(pod, ALLOWED).environment["NVIDIA_VISIBLE_DEVICES"]
    assert value.split(",") == devices
    assert len(devices) <= asked
    assert not {"all", "none", "void", ""} & set(devices)


def test_a_trainer_of_visible_devices_asks_for_none_and_follows_the_pod_to_its_node() -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    pod = shown(GPU, "MIG-1b2c3d4e-0000", tolerations=(taint,))
    manifest = trainer(pod, ALLOWED, strategy="VisibleDevices", runtimeClassName="nvidia")
    spec = manifest["spec"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["tolerations"] == [taint]
    assert "nodeName" not in spec
    assert "resourceClaims" not in spec
    assert spec["containers"][0]["resources"].keys() == {"requests"}
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]
    assert environment(manifest)["NVIDIA_VISIBLE_DEVICES"] == f"{GPU},MIG-1b2c3d4e-0000"
    assert parse_pod({**manifest, "metadata": {**manifest["metadata"], "uid": "u"}}).visible_devices == (
        GPU,
        "MIG-1b2c3d4e-0000",
    )


def test_a_trainer_of_a_shared_claim_sees_no_other_device_whatever_its_image_says() -> None:
    job = make_job(store={"url": "s3://bucket/x", "secretRef": {"name": "keys"}})
    manifest = trainer_pod(job, claimed(), settings=SETTINGS, site=Site())
    assert environment(manifest)["NVIDIA_VISIBLE_DEVICES"] == "void", "wins over the image and over envFrom"
    assert "affinity" not in manifest["spec"]


def test_pods_that_the_operator_runs_itself_are_told_from_trainers() -> None:
    own = {"tlt.dev/job": "demo", "tlt.dev/component": "rollout"}
    labels = trainer(claimed(), Site())["metadata"]["labels"]
    assert not own.items() <= labels.items()


LABELS = st.dictionaries(
    st.sampled_from(["app", "app.kubernetes.io/name", "app.kubernetes.io/managed-by", "role"]),
    st.sampled_from(["rollout", "vllm", "Helm"]),
    min_size=1,
)


@given(labels=LABELS)
def test_no_selector_of_the_rollout_pods_takes_a_trainer_for_one(labels: dict[str, str]) -> None:
    """Budgets and Services of the rollout pods select by such labels; a trainer must not count in them."""
    job = make_job(rollout={"selector": {"matchLabels": labels}})
    manifest = trainer_pod(job, claimed(labels=labels), settings=SETTINGS, site=Site())
    assert not labels.items() <= manifest["metadata"]["labels"].items()
    assert all(key.startswith("tlt.dev/") or key.endswith("/managed-by") for key in manifest["metadata"]["labels"])


@pytest.mark.parametrize("reason", [item for item in Reason if item in HARVESTING and item in DEGRADED])
def test_every_obstacle_is_explained_wherever_it_shows(reason: Reason) -> None:
    assert HARVESTING[reason] == DEGRADED[reason]


def test_options_choose_the_strategy() -> None:
    assert choose(PlacementOptions()) == SharedClaim()
    job = make_job(placement={"strategy": "VisibleDevices", "runtimeClassName": "nvidia"})
    assert choose(job.spec.placement) == VisibleDevices(runtime_class_name="nvidia")


class TestWhatIsRead:
    def test_claim(self) -> None:
        exactly = {"exactly": {"deviceClassName": "gpu.nvidia.com"}}
        body = {
            "metadata": {"name": "c", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"devices": {"requests": [{"name": "gpu-0", **exactly}, {"name": "gpu-1", "firstAvailable": []}]}},
            "status": {
                "reservedFor": [
                    {"resource": "pods", "name": "p", "uid": "pu"},
                    {"apiGroup": "example.com", "resource": "pods", "name": "other", "uid": "ou"},
                ]
            },
        }
        assert parse_claim(body) == Claim(
            name="c",
            uid="u",
            requests=("gpu-0", "gpu-1"),
            consumers=(Consumer(name="p", uid="pu"),),
            deleting=True,
        )
        assert parse_claim({"metadata": {"name": "c", "uid": "u"}}) == Claim(name="c", uid="u")

    @pytest.mark.parametrize(
        ("limits", "devices"),
        [
            ({"nvidia.com/gpu": "2", "cpu": "4", "memory": "1Gi"}, 2),
            ({"nvidia.com/mig-1g.5gb": 1, "example.com/fpga": "1"}, 2),
            ({"node.kubernetes.io/widget": "3", "hugepages-2Mi": "4Mi"}, 0),
            ({}, 0),
        ],
    )
    def test_devices_asked_of_plugins(self, limits: dict[str, Any], devices: int) -> None:
        containers = [{"name": "c", "resources": {"limits": limits}}, {"name": "d"}]
        body = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": containers}}
        assert parse_pod(body).plugin_devices == devices

    def test_annotation_extended_claim_and_queue(self) -> None:
        metadata = {"name": "p", "namespace": "n", "uid": "u"}
        annotated = {"metadata": {**metadata, "annotations": {"tlt.dev/visible-devices": " 0, 1,0"}}, "spec": {}}
        assert parse_pod(annotated).visible_devices == ("0", "1")
        assert parse_pod({"metadata": metadata, "spec": {}}).visible_devices is None
        extended = {"extendedResourceClaimStatus": {"resourceClaimName": "p-extended", "requestMappings": []}}
        assert parse_pod({"metadata": metadata, "spec": {}, "status": extended}).extended_claim == "p-extended"
        labels = {"kueue.x-k8s.io/queue-name": "gpus"}
        assert parse_pod({"metadata": {**metadata, "labels": labels}, "spec": {}}).queued
        for gate, queued in (("kueue.x-k8s.io/admission", True), ("other", False)):
            assert parse_pod({"metadata": metadata, "spec": {"schedulingGates": [{"name": gate}]}}).queued is queued
