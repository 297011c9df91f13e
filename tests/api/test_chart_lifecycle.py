"""Installing, installing again, upgrading and uninstalling on a real API server; nobody loses a job."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.binaries import command_path
from devcluster.settings import node_settings
from tests.api.conftest import devcluster
from tests.api.test_crds import JOB
from tests.support.eventually import eventually
from tlt_operator.api.job import parse_job
from tlt_operator.config import Settings
from tlt_operator.manifests.lighthouse import lighthouse_objects

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tlt-operator"
OWN = ("--control-plane", "--name", "tests-chart")
CRDS = ("tltjobs.tlt.dev", "drafterrevisions.tlt.dev")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """helm and kubectl on a control plane that holds nothing at first."""

    kubeconfig: Path

    def run(self, command: str, *arguments: str, text: str | None = None) -> str:
        answer = subprocess.run(
            [str(command_path(node_settings().binaries, command)), *arguments],
            input=text,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, f"{command} {' '.join(arguments)}: {answer.stderr}"
        return answer.stdout

    def ask(self, command: str, *arguments: str) -> str:
        """As `run`, for a command whose exit status is part of its answer."""
        answer = subprocess.run(
            [str(command_path(node_settings().binaries, command)), *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        return answer.stdout + answer.stderr

    def install(self, release: str, namespace: str, *options: str) -> str:
        where = ("--namespace", namespace, "--create-namespace")
        return self.run("helm", "upgrade", "--install", release, str(CHART), *where, *options)

    def uninstall(self, release: str, namespace: str) -> None:
        self.run("helm", "uninstall", release, "--namespace", namespace)

    def apply(self, body: dict[str, Any]) -> None:
        self.run("kubectl", "apply", "--server-side", "-f", "-", text=json.dumps(body))

    def names(self, kind: str) -> list[str]:
        found = json.loads(self.run("kubectl", "get", kind, "--all-namespaces", "-o", "json"))["items"]
        return [item["metadata"]["name"] for item in found]

    def wait_for_crds(self) -> None:
        names = [f"crd/{name}" for name in CRDS]
        self.run("kubectl", "wait", "--for=condition=Established", *names, "--timeout=30s")

    def remove_crds(self) -> None:
        """Lists each kind first: a CRD that is deleted before anybody has done so can stay for many minutes, since the
        API server itself then finds its "storage is (re)initializing" and waits.
        """
        for name in set(self.names("crd")).intersection(CRDS):
            self.run("kubectl", "get", name, "--all-namespaces")
        self.run("kubectl", "delete", "crd", *CRDS, "--ignore-not-found", "--timeout=60s")


@pytest.fixture(scope="module")
def control_plane() -> Iterator[Machine]:
    """A control plane of these tests' own: CRDs are cluster-wide, and other tests need theirs."""
    devcluster("up", *OWN)
    try:
        yield Machine(kubeconfig=Path(devcluster("kubeconfig", *OWN).strip()))
    finally:
        devcluster("down", *OWN)


@pytest.fixture
def machine(control_plane: Machine) -> Iterator[Machine]:
    """The control plane without releases and CRDs."""
    yield control_plane
    for release in json.loads(control_plane.run("helm", "list", "--all-namespaces", "--output", "json")):
        control_plane.uninstall(release["name"], release["namespace"])
    control_plane.remove_crds()


def test_a_release_comes_and_goes_and_the_jobs_stay(machine: Machine) -> None:
    machine.install("tlt-operator", "tlt-system")
    machine.wait_for_crds()
    machine.apply(JOB)

    machine.install("tlt-operator", "tlt-system", "--set", "operator.logLevel=DEBUG")
    assert machine.names("tltjobs") == ["demo"], "an upgrade keeps the jobs"

    notes = machine.install("second", "other", "--set", "operator.watchNamespaces={default}")
    assert "belongs to release tlt-operator in namespace tlt-system" in notes
    machine.uninstall("second", "other")
    assert machine.names("tltjobs") == ["demo"], "another release has no hold on the CRDs"

    machine.uninstall("tlt-operator", "tlt-system")
    assert machine.names("tltjobs") == ["demo"], "uninstalling deletes nobody's jobs"
    left = [*machine.names("clusterroles"), *machine.names("clusterrolebindings"), *machine.names("priorityclasses")]
    assert not [name for name in left if "tlt" in name]
    assert machine.names("deployments") == []

    machine.install("tlt-operator", "tlt-system")
    assert machine.names("tltjobs") == ["demo"], "installing again takes up the CRDs that were left"


def test_an_upgrade_brings_a_newer_schema(machine: Machine) -> None:
    machine.install("tlt-operator", "tlt-system")
    machine.wait_for_crds()
    older = [{"op": "remove", "path": "/spec/names/shortNames"}]
    machine.run("kubectl", "patch", "crd", CRDS[0], "--type=json", "--patch", json.dumps(older))
    machine.install("tlt-operator", "tlt-system")
    found = json.loads(machine.run("kubectl", "get", "crd", CRDS[0], "-o", "json"))
    assert found["spec"]["names"]["shortNames"] == ["tlt"]


def test_crds_that_somebody_applied_are_left_alone_and_can_be_taken_over(machine: Machine) -> None:
    for path in sorted((CHART / "files" / "crds").glob("*.yaml")):
        machine.run("kubectl", "apply", "--server-side", "-f", str(path))
    machine.wait_for_crds()
    notes = machine.install("tlt-operator", "tlt-system")
    commands = [line.split() for line in notes.splitlines() if line.startswith("  kubectl ") and " --overwrite" in line]
    assert len(commands) == 2 * len(CRDS)
    for command in commands:
        machine.run(*command)
    assert "was left as it is" not in machine.install("tlt-operator", "tlt-system")


def test_the_built_in_roles_learn_the_projects_kinds(machine: Machine) -> None:
    machine.install("tlt-operator", "tlt-system")

    def verbs(role: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for rule in json.loads(machine.run("kubectl", "get", "clusterrole", role, "-o", "json"))["rules"]:
            if rule.get("apiGroups") == ["tlt.dev"]:
                for resource in rule["resources"]:
                    found.setdefault(resource, set()).update(rule["verbs"])
        return found

    read = {"get", "list", "watch"}
    statuses = {f"{kind}/status": read for kind in ("tltjobs", "drafterrevisions")}
    write = read | {"create", "update", "patch", "delete", "deletecollection"}
    scale = read | {"update", "patch"}
    for role, rights, scaling in (("view", read, read), ("edit", write, scale), ("admin", write, scale)):
        wanted = {"tltjobs": rights, "drafterrevisions": rights, "tltjobs/scale": scaling, **statuses}
        eventually(lambda role=role, wanted=wanted: verbs(role) == wanted, deadline=60, every=0.2, reason=role)


def test_people_may_do_in_their_namespace_what_their_role_says(machine: Machine) -> None:
    machine.install("tlt-operator", "tlt-system")
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("ours", "theirs")]
    for body in namespaces:
        machine.run("kubectl", "apply", "-f", "-", text=json.dumps(body))
    for role in ("view", "edit"):
        machine.run("kubectl", "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", "ours")

    def may(user: str, verb: str, resource: str, namespace: str = "ours") -> bool:
        kind, _, part = resource.partition("/")
        question = ("auth", "can-i", verb, f"{kind}.tlt.dev", f"--subresource={part}", "--as", user, "-n", namespace)
        return "yes" in machine.ask("kubectl", *question)

    eventually(lambda: may("editer", "create", "tltjobs"), deadline=60, every=0.2, reason="the aggregated rights")
    for kind in ("tltjobs", "drafterrevisions"):
        for verb in ("get", "list", "watch"):
            assert may("viewer", verb, kind)
            assert may("editer", verb, kind)
        for verb in ("create", "update", "patch", "delete"):
            assert not may("viewer", verb, kind)
            assert may("editer", verb, kind)
            assert not may("editer", verb, kind, namespace="theirs")
        assert not may("editer", "patch", f"{kind}/status"), "only the operator writes what it has observed"
    machine.run("kubectl", "delete", "namespace", "ours", "theirs", "--wait=false")


def runbook_commands() -> list[str]:
    """Every kubectl and helm command of the runbooks and of the alerts' descriptions, in order, each once."""
    found: list[str] = []
    for page in sorted((ROOT / "docs" / "runbooks").glob("*.md")):
        text = page.read_text()
        found += re.findall(r"^(?:kubectl|helm) .+$", text, re.MULTILINE)
        found += re.findall(r"`((?:kubectl|helm) [^`]+)`", text)
    for cases in sorted((ROOT / "tests" / "chart" / "alerts").glob("*.yaml")):
        found += re.findall(r"(kubectl [^\n]+)", " ".join(_descriptions(cases)))
    return list(dict.fromkeys(found))


def _descriptions(cases: Path) -> list[str]:
    alerts = [
        alert
        for test in yaml.safe_load(cases.read_text())["tests"]
        for case in test["alert_rule_test"]
        for alert in case["exp_alerts"]
    ]
    return [f"{alert['exp_annotations']['description']}\n" for alert in alerts]


def test_every_command_of_the_runbooks_works(machine: Machine) -> None:
    machine.install("tlt", "tlt-system")
    machine.wait_for_crds()
    machine.run("kubectl", "apply", "-f", "-", text='{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"rl"}}')
    job = copy.deepcopy(JOB)
    job["metadata"] = {"name": "math", "namespace": "rl"}
    machine.apply(job)
    made = machine.run("kubectl", "--namespace", "rl", "get", "tltjob", "math", "-o", "json")
    settings = Settings(workloads_image="workloads:test", teams=True)  # as an operator with teams would have made it
    for body in lighthouse_objects(parse_job(json.loads(made)), settings=settings):
        machine.apply(dict(body))
    variables = {"namespace": "rl", "job": "math", "operator": "tlt-system", "release": "tlt"}
    commands = runbook_commands()
    assert len(commands) > 25
    folder = node_settings().commands
    for command in commands:
        answer = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env={**os.environ, **variables, "KUBECONFIG": str(machine.kubeconfig), "PATH": f"{folder}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, f"{command}: {answer.stderr}"
    machine.run("kubectl", "delete", "namespace", "rl", "--wait=false")
