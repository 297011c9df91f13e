"""What an installation brings: one operator with few rights in a locked-down pod."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, ROOT, Chart, Object, RefusedError, only

READ = {"get", "list", "watch"}


def container(objects: list[Object]) -> Object:
    found: Object = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def environment(objects: list[Object]) -> dict[str, str]:
    """Variables by name; the value of one that comes from elsewhere is empty."""
    return {item["name"]: item.get("value", "") for item in container(objects)["env"]}


def granted(role: Object) -> dict[str, set[str]]:
    """`group/resource` to verbs."""
    rights: dict[str, set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                rights.setdefault(f"{group}/{resource}".lstrip("/"), set()).update(rule["verbs"])
    return rights


def test_lint_finds_nothing(chart: Chart) -> None:
    assert "0 chart(s) failed" in chart.run("lint", "--strict", str(CHART))


def test_one_operator_acts_and_its_successor_is_there_before_it_goes(chart: Chart, rendered: list[Object]) -> None:
    spec = only(rendered, "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert only(chart.render({"operator": {"replicas": 2}}), "Deployment")["spec"]["replicas"] == 2
    lease = environment(rendered)["TLT_LEADER_LEASE"]
    role = only(rendered, "Role", ending="-leader")
    assert role["metadata"]["namespace"] == environment(rendered)["TLT_LEADER_NAMESPACE"]
    assert [rule["resourceNames"] for rule in role["rules"] if "update" in rule["verbs"]] == [[lease]]
    assert granted(role) == {"coordination.k8s.io/leases": {"create", "get", "update"}}


def test_the_pod_meets_the_restricted_profile(rendered: list[Object]) -> None:
    pod = only(rendered, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(set(volume) - {"name"} == {"emptyDir"} for volume in pod["volumes"])
    assert container(rendered)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_probes_ask_the_operator_and_not_the_network(rendered: list[Object]) -> None:
    found = container(rendered)
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert ports == {"probes": 8080, "metrics": 9090}
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert found[probe]["httpGet"] == {"path": path, "port": "probes"}, probe
        assert found[probe]["timeoutSeconds"] > 1, f"{probe}: a busy machine answers late, and that is no failure"


def test_the_container_states_what_it_needs(rendered: list[Object]) -> None:
    resources = container(rendered)["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert "memory" in resources["limits"]


def test_metrics_have_a_service(rendered: list[Object]) -> None:
    service, pod = only(rendered, "Service")["spec"], only(rendered, "Deployment")["spec"]["template"]["metadata"]
    assert service["ports"] == [{"name": "metrics", "port": 9090, "targetPort": "metrics"}]
    assert service["selector"].items() <= pod["labels"].items()


def test_settings_reach_the_operator(chart: Chart) -> None:
    values = {
        "image": {"repository": "registry.example.com/operator", "digest": "sha256:" + "a" * 64},
        "operator": {"workloadsImage": "w:1", "watchNamespaces": ["one", "two"], "logFormat": "text"},
        "ports": {"probes": 18080, "metrics": 19090},
    }
    objects = chart.render(values)
    found = environment(objects)
    assert container(objects)["image"] == found["TLT_OPERATOR_IMAGE"]
    assert found["TLT_OPERATOR_IMAGE"] == "registry.example.com/operator@sha256:" + "a" * 64
    assert found["TLT_WORKLOADS_IMAGE"] == "w:1"
    assert found["TLT_WATCH_NAMESPACES"] == "one,two"
    assert found["TLT_LOG_FORMAT"] == "text"
    assert (found["TLT_PROBE_PORT"], found["TLT_METRICS_PORT"]) == ("18080", "19090")


def test_every_setting_is_one_that_the_operator_reads(rendered: list[Object]) -> None:
    from tlt_operator.config import Settings

    settings = Settings.from_environment(environment(rendered))
    assert settings.workloads_image == "localhost/tlt-workloads:dev"
    assert settings.trainer_priority_class == only(rendered, "PriorityClass")["metadata"]["name"]
    known = {f"TLT_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert environment(rendered).keys() <= known


def test_trainers_are_first_to_go_and_push_nobody_out(rendered: list[Object]) -> None:
    found = only(rendered, "PriorityClass")
    assert found["value"] < 0
    assert (found["preemptionPolicy"], found["globalDefault"]) == ("Never", False)


RIGHTS = {
    "tlt.dev/tltjobs": {"list", "watch"},
    "tlt.dev/tltjobs/status": {"patch"},
    "tlt.dev/drafterrevisions": READ | {"create"},
    "tlt.dev/drafterrevisions/status": {"patch"},
    "pods": {"list", "watch", "create", "delete"},
    "resource.k8s.io/resourceclaims": {"list", "watch"},
    "secrets": {"get", "create", "update"},
    "services": {"get", "create", "patch", "delete"},
    "apps/deployments": {"get", "create", "patch", "delete"},
    "apps/statefulsets": {"get", "list", "watch", "create", "patch"},
    "policy/poddisruptionbudgets": {"get", "create", "patch"},
    "resource.k8s.io/resourceclaimtemplates": {"list", "create", "patch", "delete"},
    "events.k8s.io/events": {"list", "create", "patch"},
}


def test_rights_are_these_and_no_others(rendered: list[Object]) -> None:
    assert granted(only(rendered, "ClusterRole", ending="tlt-operator")) == RIGHTS


def test_rights_on_policies_come_with_the_policies_only(chart: Chart) -> None:
    objects = chart.render({"networkPolicy": {"jobs": {"enabled": True}}})
    wanted = {**RIGHTS, "networking.k8s.io/networkpolicies": {"get", "create", "patch", "delete"}}
    assert granted(only(objects, "ClusterRole", ending="tlt-operator")) == wanted
    assert environment(objects)["TLT_NETWORK_POLICIES"] == "true"


def test_operator_knows_by_which_labels_policies_find_it(chart: Chart) -> None:
    store = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    objects = chart.render({"networkPolicy": {"jobs": {"enabled": True, "storePeers": [store]}}})
    (peer,) = json.loads(environment(objects)["TLT_OPERATOR_PEERS"])
    deployment = only(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    wanted = {"kubernetes.io/metadata.name": deployment["metadata"]["namespace"]}
    assert peer["namespaceSelector"]["matchLabels"] == wanted
    assert json.loads(environment(objects)["TLT_STORE_PEERS"]) == [store]


def test_operators_own_policy_limits_what_goes_out_where_the_api_server_is_known(chart: Chart) -> None:
    policy = only(chart.render({"networkPolicy": {"enabled": True}}), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert [rule["ports"][0]["port"] for rule in policy["spec"]["ingress"]] == ["probes", "metrics"]
    server = {"ipBlock": {"cidr": "10.0.0.1/32"}}
    values = {"networkPolicy": {"enabled": True, "apiServer": [server], "rolloutPorts": [8000, 9000]}}
    spec = only(chart.render({**values, "operator": {"watchNamespaces": ["rl"]}}), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    api, names, pods = spec["egress"]
    assert api == {"to": [server]}
    assert {rule["port"] for rule in names["ports"]} == {53}
    assert [rule["port"] for rule in pods["ports"]] == [8000, 8001, 9000]
    (expression,) = pods["to"][0]["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == ["rl"]


def test_peers_that_are_none_are_refused(chart: Chart) -> None:
    with pytest.raises(RefusedError) as refusal:
        chart.render({"networkPolicy": {"jobs": {"enabled": True, "storePeers": ["10.0.0.0/8"]}}})
    assert "storePeers" in refusal.value.message


def test_named_namespaces_are_the_only_ones_where_it_may_do_anything(chart: Chart) -> None:
    objects = chart.render({"operator": {"watchNamespaces": ["one", "two"]}})
    assert "ClusterRoleBinding" not in {item["kind"] for item in objects}
    roles = {item["metadata"]["namespace"]: item for item in objects if item["kind"] == "Role"}
    leader = roles.pop(only(objects, "Deployment")["metadata"]["namespace"])
    assert granted(leader).keys() == {"coordination.k8s.io/leases"}
    assert roles.keys() == {"one", "two"}
    assert granted(roles["one"]) == granted(roles["two"]) == RIGHTS
    bindings = [item for item in objects if item["kind"] == "RoleBinding" and item["metadata"]["namespace"] in roles]
    assert {item["metadata"]["namespace"] for item in bindings} == {"one", "two"}
    account = only(objects, "ServiceAccount")["metadata"]
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]


def test_people_get_rights_on_jobs_with_the_built_in_roles(rendered: list[Object]) -> None:
    viewer, editor = (only(rendered, "ClusterRole", ending=ending) for ending in ("-viewer", "-editor"))
    assert viewer["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert set().union(*granted(viewer).values()) == READ
    assert editor["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert not any(resource.endswith("/status") for resource in granted(editor)), "status is the operator's word"


def test_visible_devices_come_with_the_policy_that_guards_them_or_not_at_all(
    rendered: list[Object], chart: Chart
) -> None:
    guards = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert environment(rendered)["TLT_VISIBLE_DEVICES"] == "false"
    assert not guards & {item["kind"] for item in rendered}
    objects = chart.render({"visibleDevices": {"enabled": True}, "serviceAccount": {"create": False, "name": "mine"}})
    assert environment(objects)["TLT_VISIBLE_DEVICES"] == "true"
    policy, binding = (only(objects, kind) for kind in sorted(guards))
    assert policy["spec"]["failurePolicy"] == "Fail"
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    variables = {item["name"]: item["expression"] for item in policy["spec"]["variables"]}
    assert "'system:serviceaccount:tlt-system:mine'" in variables["operator"]


def test_nothing_optional_is_installed_unasked(rendered: list[Object], chart: Chart) -> None:
    optional = {"NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}
    assert not optional & {item["kind"] for item in rendered}
    asked = chart.render(
        {
            "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]},
            "serviceMonitor": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
        }
    )
    assert only(asked, "ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    policy = only(asked, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == only(asked, "Deployment")["spec"]["selector"]["matchLabels"]
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == ["probes", "metrics"]
    assert "from" not in policy["ingress"][0], "the kubelet's probes come from the node"


def test_two_releases_share_no_name(chart: Chart) -> None:
    def cluster_wide(objects: list[Object]) -> set[tuple[str, str]]:
        kept = {"CustomResourceDefinition"}
        return {
            (item["kind"], item["metadata"]["name"])
            for item in objects
            if "namespace" not in item["metadata"] and item["kind"] not in kept
        }

    one, two = cluster_wide(chart.render()), cluster_wide(chart.render(name="second"))
    assert one
    assert not one & two


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": {"repo": "typo"}}, "repo"),
        ({"image": {"tag": "with space"}}, "tag"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"operator": {"logFormat": "xml"}}, "logFormat"),
        ({"operator": {"watchNamespaces": "one"}}, "watchNamespaces"),
        ({"operator": {"watchNamespaces": ["Upper"]}}, "watchNamespaces"),
        ({"operator": {"workloadsImage": ""}}, "workloadsImage"),
        ({"ports": {"metrics": 80}}, "metrics"),
        ({"ports": {"probes": "http"}}, "probes"),
        ({"replicas": 2}, "replicas"),
        ({"trainerPriorityClass": {"value": 2000000000}}, "value"),
        ({"serviceMonitor": {"interval": "often"}}, "interval"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
        ({"visibleDevices": {"enabled": "yes"}}, "enabled"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: Chart, values: dict[str, Any], named: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        chart.render(values)
    assert named in refusal.value.message


def test_the_charts_crds_are_a_copy_of_the_projects() -> None:
    ours, copies = ROOT / "crds", CHART / "files" / "crds"
    names = {path.name for path in ours.glob("*.yaml")}
    assert names == {path.name for path in copies.iterdir()}
    for name in names:
        assert (ours / name).read_bytes() == (copies / name).read_bytes(), f"cp crds/{name} {copies}/"


def test_crds_are_rendered_whole_and_survive_the_release(rendered: list[Object]) -> None:
    crds = {item["metadata"]["name"]: item for item in rendered if item["kind"] == "CustomResourceDefinition"}
    sources = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert crds.keys() == {source["metadata"]["name"] for source in sources}
    for source in sources:
        found = crds[source["metadata"]["name"]]
        assert found["spec"] == source["spec"]
        assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_crds_can_be_left_to_somebody_else(chart: Chart) -> None:
    assert not [
        item for item in chart.render({"crds": {"install": False}}) if item["kind"] == "CustomResourceDefinition"
    ]


def test_the_chart_holds_no_link_that_a_package_would_lose() -> None:
    assert not [path for path in Path(CHART).rglob("*") if path.is_symlink()]
