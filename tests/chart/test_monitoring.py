"""What Prometheus and Grafana get: alerts from one source, a current dashboard, and only names that are served."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from charts.monitoring.__main__ import DASHBOARD, GRAFANA, RULES, made
from devcluster.binaries import command_path
from devcluster.settings import node_settings
from tests.chart.conftest import CHART, ROOT, Chart, Object, RefusedError, only
from tlt_operator.api.names import Reason
from tlt_operator.telemetry.metrics import Metrics

ALERT_TESTS = sorted((ROOT / "tests" / "chart" / "alerts").glob("*.yaml"))
SOURCES: list[dict[str, str]] = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
SETTINGS: dict[str, dict[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())["alerts"]["rules"]
ALL = {
    "serviceMonitor": {"enabled": True},
    "podMonitor": {"enabled": True, "rollout": {"selector": {"matchLabels": {"app": "rollout"}}}},
    "alerts": {"prometheusRule": {"enabled": True}, "grafana": {"enabled": True}},
    "dashboard": {"enabled": True},
}


@pytest.fixture(scope="session")
def promtool() -> Path:
    found = command_path(node_settings().binaries, "promtool")
    assert found.exists(), f"{found} is missing: make prometheus"
    return found


@pytest.fixture(scope="module")
def monitored(chart: Chart) -> list[Object]:
    """A release with everything that monitoring can have."""
    return chart.render(ALL)


def rules_of(objects: list[Object]) -> dict[str, dict[str, Any]]:
    (group,) = only(objects, "PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def grafana_rules_of(objects: list[Object]) -> dict[str, dict[str, Any]]:
    data = only(objects, "ConfigMap", ending="-grafana-alerts")["data"]
    (group,) = yaml.safe_load(data["tlt-operator.yaml"])["groups"]
    return {rule["title"]: rule for rule in group["rules"]}


def run(promtool: Path, *arguments: str) -> None:
    answer = subprocess.run([str(promtool), *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def served() -> set[str]:
    """Names of all series of an operator."""
    found: list[Metric] = list(Metrics().registry.collect())
    names = set()
    for metric in found:
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def read(expression: str) -> set[str]:
    """Names of the series that an expression reads."""
    return set(re.findall(r"\b(?:tlt|process)_[a-z_]+", expression))


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


EXPRESSIONS = [target["expr"] for panel in panels() for target in panel.get("targets", ())]


# Alerts


@pytest.mark.parametrize("path", ALERT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(promtool: Path, path: Path) -> None:
    run(promtool, "test", "rules", str(path))


def test_every_alert_is_tried_both_ways_and_has_a_page() -> None:
    assert {path.stem for path in ALERT_TESTS} == {source["runbook"].removesuffix(".md") for source in SOURCES}
    for source in SOURCES:
        tests = yaml.safe_load((ROOT / "tests/chart/alerts" / source["runbook"]).with_suffix(".yaml").read_text())
        cases = [case for test in tests["tests"] for case in test["alert_rule_test"]]
        assert {case["alertname"] for case in cases} == {source["alert"]}
        assert {bool(case["exp_alerts"]) for case in cases} == {True, False}, source["alert"]
        page = (ROOT / "docs" / "runbooks" / source["runbook"]).read_text()
        headings = re.findall(r"^#+ (.*)", page, re.MULTILINE)
        assert headings == [source["alert"], "Meaning", "Impact", "How to look", "How to fix", "How to silence"]


def test_the_reasons_that_a_page_explains_are_reasons_that_conditions_have() -> None:
    page = (ROOT / "docs" / "runbooks" / "gpus-not-harvested.md").read_text()
    rows = re.findall(r"^\| (`[A-Z].*?) \|", page, re.MULTILINE)
    explained = {reason for row in rows for reason in re.findall(r"`(\w+)`", row)}
    assert len(explained) > 5
    assert explained <= set(Reason)


def test_the_files_made_from_the_sources_are_current() -> None:
    for path, text in made().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: python -m charts.monitoring"


def test_values_and_source_name_the_same_thresholds() -> None:
    general = {"enabled", "severity", "for"}
    assert SETTINGS.keys() == {source["alert"] for source in SOURCES}
    for source in SOURCES:
        used = set(re.findall(r"\$\{(\w+)\}", "".join(source.values())))
        assert used == SETTINGS[source["alert"]].keys() - general, source["alert"]


def test_thresholds_are_the_values(chart: Chart, promtool: Path, tmp_path: Path) -> None:
    changed = {name: {"for": "7m"} for name in SETTINGS}
    changed["TLTReclaimSlow"] |= {"seconds": 12.5, "handBacks": 1000000, "window": "3h"}
    changed["TLTOperatorStale"] |= {"enabled": False}
    objects = chart.render(
        {
            "alerts": {
                "prometheusRule": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
                "runbookBaseUrl": "https://docs.example.com/tlt",
                "labels": {"team": "rl"},
                "rules": changed,
            }
        }
    )
    assert only(objects, "PrometheusRule")["metadata"]["labels"]["release"] == "prometheus"
    rules = rules_of(objects)
    assert rules.keys() == SETTINGS.keys() - {"TLTOperatorStale"}
    slow = rules["TLTReclaimSlow"]
    assert "> 12.5" in slow["expr"]
    assert "[3h]" in slow["expr"]
    assert slow["for"] == "7m"
    assert slow["labels"] == {"severity": "warning", "team": "rl"}
    assert slow["annotations"]["runbook_url"] == "https://docs.example.com/tlt/reclaim-slow.md"
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(only(objects, "PrometheusRule")["spec"]))
    run(promtool, "check", "rules", str(file))


def test_annotations_name_the_job_the_number_and_a_command(monitored: list[Object]) -> None:
    for name, rule in rules_of(monitored).items():
        summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
        assert "$value" in summary, name
        assert "$labels.job" in summary or name == "TLTOperatorStale"
        assert "kubectl" in description, name
        assert (ROOT / rule["annotations"]["runbook_url"]).exists(), name


def test_grafana_gets_the_same_alerts(monitored: list[Object]) -> None:
    rules, ours = rules_of(monitored), grafana_rules_of(monitored)
    assert ours.keys() == rules.keys()
    assert len({rule["uid"] for rule in ours.values()}) == len(ours)
    for name, rule in ours.items():
        query, condition = rule["data"]
        assert query["model"]["expr"] == rules[name]["expr"]
        assert (rule["condition"], condition["refId"], condition["datasourceUid"]) == ("B", "B", "__expr__")
        assert rule["for"] == rules[name]["for"]
        assert rule["labels"] == rules[name]["labels"]
        assert rule["noDataState"] == "OK", "no series is what a healthy expression yields"
        assert len(rule["uid"]) <= 40
        for text in rule["annotations"].values():
            assert "${" not in text, "Grafana puts environment variables there"
            assert "$value " not in text, "Grafana's $value is a sentence, not a number"


def test_sidecars_find_their_config_maps(chart: Chart, monitored: list[Object]) -> None:
    alerts = only(monitored, "ConfigMap", ending="-grafana-alerts")
    assert alerts["metadata"]["labels"]["grafana_alert"] == "1"
    board = only(monitored, "ConfigMap", ending="-grafana-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["tlt-operator.json"]) == json.loads(DASHBOARD.read_text())
    other = chart.render({"dashboard": {"enabled": True, "annotations": {"grafana_folder": "TLT"}}})
    metadata = only(other, "ConfigMap", ending="-grafana-dashboard")["metadata"]
    assert metadata["annotations"] == {"grafana_folder": "TLT"}


def test_alerts_and_dashboard_read_only_what_the_operator_serves(monitored: list[Object]) -> None:
    names = served()
    for name, rule in rules_of(monitored).items():
        assert read(rule["expr"]), name
        assert read(rule["expr"]) <= names, name
    for expression in EXPRESSIONS:
        assert read(expression), expression
        assert read(expression) <= names, expression


# Dashboard


def test_every_expression_of_the_dashboard_can_be_evaluated(promtool: Path, tmp_path: Path) -> None:
    filled = [
        expression.replace("$job", ".*")
        .replace("$window", "15m")
        .replace("$__rate_interval", "5m")
        .replace("$__range", "6h")
        for expression in EXPRESSIONS
    ]
    assert not [expression for expression in filled if "$" in expression]
    rules = [{"record": f"panel:{index}", "expr": expression} for index, expression in enumerate(filled)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", "--lint=none", str(file))


def test_panels_have_room_and_do_not_overlap() -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} lies on {cells[x, y]}"
                cells[x, y] = panel["title"]
    numbers = [panel["id"] for panel in panels()]
    assert len(numbers) == len(set(numbers))


def test_the_dashboard_has_a_row_for_each_concern() -> None:
    rows = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert rows == ["Fleet", "Windows and reclaim", "Drafter", "Capture and training", "Operator"]


# Scraping


def test_the_operators_scrape_keeps_the_label_job(chart: Chart, monitored: list[Object]) -> None:
    found = only(monitored, "ServiceMonitor")
    (endpoint,) = found["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True, "the label job is the TLTJob"
    service = only(monitored, "Service")["metadata"]
    assert found["spec"]["selector"]["matchLabels"].items() <= service["labels"].items()
    assert found["spec"]["namespaceSelector"] == {"matchNames": ["tlt-system"]}
    elsewhere = chart.render({"serviceMonitor": {"enabled": True, "namespace": "monitoring", "interval": "1m"}})
    moved = only(elsewhere, "ServiceMonitor")
    assert moved["metadata"]["namespace"] == "monitoring"
    assert moved["spec"]["namespaceSelector"] == {"matchNames": ["tlt-system"]}
    assert moved["spec"]["endpoints"][0]["interval"] == "1m"


def test_gateways_are_found_by_what_the_operator_gives_them(monitored: list[Object]) -> None:
    from tests.support.snapshots import make_job
    from tlt_operator.config import Settings
    from tlt_operator.manifests.gateway import gateway_objects

    deployment = gateway_objects(make_job(), settings=Settings())[-1]["spec"]["template"]
    monitor = only(monitored, "PodMonitor", ending="-gateways")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
    ports = {port["name"] for container in deployment["spec"]["containers"] for port in container["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports
    assert monitor["namespaceSelector"] == {"any": True}


def test_rollout_pods_are_scraped_by_their_owners_labels(chart: Chart, monitored: list[Object]) -> None:
    monitor = only(monitored, "PodMonitor", ending="-rollouts")["spec"]
    assert monitor["selector"] == {"matchLabels": {"app": "rollout"}}
    assert monitor["podMetricsEndpoints"] == [{"portNumber": 8000, "interval": "15s"}]
    unnamed = chart.render({"podMonitor": {"enabled": True}, "operator": {"watchNamespaces": ["rl"]}})
    (gateways,) = [item for item in unnamed if item["kind"] == "PodMonitor"]
    assert gateways["spec"]["namespaceSelector"] == {"matchNames": ["rl"]}
    chosen = chart.render({"podMonitor": {"enabled": True, "namespaceSelector": {"matchNames": ["a", "b"]}}})
    assert only(chosen, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"alerts": {"rules": {"TLTReclaimSlow": {"seconds": 0}}}}, "seconds"),
        ({"alerts": {"rules": {"TLTReclaimSlow": {"second": 1}}}}, "second"),
        ({"alerts": {"rules": {"TLTReclaimSlow": {"for": "soon"}}}}, "for"),
        ({"alerts": {"rules": {"TLTAcceptanceFalling": {"drop": 15}}}}, "drop"),
        ({"alerts": {"rules": {"TLTGpusNotHarvested": {"window": None}}}}, "window"),
        ({"alerts": {"rules": {"TLTOther": {}}}}, "TLTOther"),
        ({"alerts": {"runbookBaseUrl": "docs.example.com"}}, "runbookBaseUrl"),
        ({"alerts": {"grafana": {"datasourceUid": ""}}}, "datasourceUid"),
        ({"dashboard": {"sidecarLabels": {"grafana_dashboard": None}}}, "sidecarLabels"),
        ({"podMonitor": {"rollout": {"selector": {"app": "rollout"}}}}, "app"),
        ({"podMonitor": {"rollout": {"port": "http"}}}, "port"),
        ({"podMonitor": {"interval": 15}}, "interval"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: Chart, values: dict[str, Any], named: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        chart.render(values)
    assert named in refusal.value.message


def test_plain_files_hold_what_a_release_would() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    grafana = yaml.safe_load(GRAFANA.read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [source["alert"] for source in SOURCES]
    assert [rule["title"] for rule in grafana] == [source["alert"] for source in SOURCES]
