"""The example's rollout pods without its learner, for benchmarks that drive them by hand.

Pods are spoken to by their addresses, which only the embedded cluster's own machine can reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.demo import deploy
from bench.demo.cluster import ROOT, Cluster, is_ready, wait_until
from bench.demo.console import Console, StageError
from bench.demo.follow import JOB, LEARNER, ROLLOUT
from tlt_workloads.contract import (
    LEASE_ROUTE,
    ROLLOUT_PORT,
    STATE_ROUTE,
    TRAINER_PORT,
    TRAINER_ROUTE,
    LeaseRequest,
    LeaseView,
    RevokeReason,
    RolloutState,
    TrainerState,
    decode,
    encode,
)

BASE = ROOT / "examples" / "trl-grpo" / "base"
FOLDER = ROOT / "build" / "bench"
CALL_SECONDS = 30.0
GENERATION_SECONDS = 600.0
REST_SECONDS = 120.0  # a worker may write its checkpoint for a minute
TRAINER_SECONDS = 240.0  # a cold trainer imports for a while
QUESTION = "A baker has {number} rolls and sells some of them each hour. Explain how many are left, step by step."
COPIES = """
import json, pathlib, shutil, sys
folder = pathlib.Path("/tlt", sys.argv[1], "hidden-states")
shards = [path for path in folder.glob("*/*.safetensors") if not path.parent.name.startswith("copy-")]
for number in range(int(sys.argv[2])):
    target = folder / f"copy-{number:03d}"
    target.mkdir(exist_ok=True)
    for path in shards:
        shutil.copyfile(path, target / f".{path.name}")
        (target / f".{path.name}").rename(target / path.name)
print(json.dumps(len(shards)))
"""


class CallRefusedError(Exception):
    """A pod answered, but not as asked."""


def call(url: str, *, token: str, method: str = "GET", body: Any = None, timeout: float = CALL_SECONDS) -> Any:
    """JSON of an answer.

    Raises:
        CallRefusedError: the status is not one of success.
        OSError: no answer.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as refusal:
        raise CallRefusedError(f"{method} {url}: {refusal.code} {refusal.read()[:300]!r}") from refusal


State = TypeVar("State", RolloutState, TrainerState)


def until(poll: Callable[..., State], holds: Callable[[State], bool], *, name: str, seconds: float) -> State:
    """The first state for which `holds` is true, by long polls; `poll` takes `seq` and `wait` as the routes do.

    Raises:
        TimeoutError: there was none within `seconds`.
    """
    deadline, state = time.monotonic() + seconds, poll()
    while not holds(state):
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"{name}: not so within {seconds:g} s; last state: {state}")
        state = poll(seq=state.seq, wait=min(left, 10.0))
    return state


@dataclass(frozen=True, kw_only=True)
class RolloutPod:
    """A rollout pod, spoken to from outside."""

    name: str
    uid: str
    address: str
    token: str

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{self.address}:{ROLLOUT_PORT}"

    def state(self, *, seq: int = 0, wait: float = 0.0) -> RolloutState:
        """Its facts; with `wait` at the next change after `seq`."""
        url = f"{self.url}{STATE_ROUTE}?seq={seq}&wait={wait:g}"
        return decode(RolloutState, call(url, token=self.token, timeout=wait + CALL_SECONDS))

    def until(self, holds: Callable[[RolloutState], bool], *, seconds: float) -> RolloutState:
        """The first state for which `holds` is true; see `until`."""
        return until(self.state, holds, name=self.name, seconds=seconds)

    def lend(self, holder: str) -> LeaseView:
        """Grants a lease, as the operator does."""
        body = encode(LeaseRequest(holder=holder))
        return decode(LeaseView, call(f"{self.url}{LEASE_ROUTE}", token=self.token, method="POST", body=body))

    def revoke(self, reason: RevokeReason) -> None:
        """Asks the lease back, as the operator does."""
        call(f"{self.url}{LEASE_ROUTE}?revoke={reason.value}", token=self.token, method="DELETE")

    def post(self, path: str, body: Any = None) -> None:
        """One of the engine's own routes."""
        call(self.url + path, token=self.token, method="POST", body={} if body is None else body)

    def generate(self, *, number: int, tokens: int, temperature: float = 0.7) -> int:
        """One answer of exactly so many tokens; returns how many came."""
        prompt = f"<|im_start|>user\n{QUESTION.format(number=number)}<|im_end|>\n<|im_start|>assistant\n"
        body = {"model": "policy", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        answer = call(
            f"{self.url}/v1/completions",
            token=self.token,
            method="POST",
            body={**body, "temperature": temperature},
            timeout=GENERATION_SECONDS,
        )
        return int(answer["usage"]["completion_tokens"])


@dataclass(frozen=True, kw_only=True)
class TrainerPod:
    """The trainer pod on a rollout pod's device."""

    name: str
    uid: str
    address: str
    token: str

    @property
    def holder(self) -> str:
        """As it is called in leases."""
        return f"{self.name}/{self.uid}"

    def state(self, *, seq: int = 0, wait: float = 0.0) -> TrainerState:
        """Its facts; with `wait` at the next change after `seq`."""
        url = f"http://{self.address}:{TRAINER_PORT}{TRAINER_ROUTE}?seq={seq}&wait={wait:g}"
        return decode(TrainerState, call(url, token=self.token, timeout=wait + CALL_SECONDS))

    def until(self, holds: Callable[[TrainerState], bool], *, seconds: float) -> TrainerState:
        """The first state for which `holds` is true; see `until`."""
        return until(self.state, holds, name=self.name, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A namespace with ready rollout pods and their TLTJob."""

    cluster: Cluster
    namespace: str
    pods: Sequence[RolloutPod]

    @property
    def job(self) -> str:
        """As the workloads call it."""
        return f"{self.namespace}/{JOB}"

    def trainer_of(self, pod: RolloutPod) -> TrainerPod | None:
        """The pod's trainer, None while there is no ready one."""
        labels = f"tlt.dev/job={JOB},tlt.dev/component=trainer"
        for item in self.cluster.list("pods", namespace=self.namespace, labels=labels):
            if item["metadata"]["annotations"].get("tlt.dev/rollout-pod") == pod.name and is_ready(item):
                meta, address = item["metadata"], item["status"]["podIP"]
                return TrainerPod(name=meta["name"], uid=meta["uid"], address=address, token=pod.token)
        return None

    def wait_for_trainer(self, pod: RolloutPod) -> TrainerPod:
        """The pod's trainer, once it is warm."""
        if not wait_until(lambda: self.trainer_of(pod), seconds=TRAINER_SECONDS):
            raise StageError(
                f"{pod.name} got no trainer pod", advice="see the conditions of the TLTJob", evidence=self.evidence()
            )
        trainer = self.trainer_of(pod)
        assert trainer is not None
        trainer.until(lambda state: state.phase == "Waiting", seconds=TRAINER_SECONDS)
        return trainer

    def multiply_records(self, copies: int) -> int:
        """Copies what was captured under further names, so that training has enough for a long run."""
        return int(
            self.cluster.python_in_pod(self.pods[0].name, COPIES, self.job, str(copies), namespace=self.namespace)
        )

    def patch_job(self, spec: Mapping[str, Any]) -> None:
        """Changes the TLTJob."""
        patch = json.dumps({"spec": spec})
        self.cluster.kubectl("patch", "tltjob", JOB, "-n", self.namespace, "--type=merge", "-p", patch)

    def evidence(self) -> str:
        """What a person wants to see when something went wrong."""
        return self.cluster.trouble(namespace=self.namespace)


def connect() -> Cluster:
    """The embedded cluster, which must be up.

    Raises:
        StageError: another one was named, or it is not up.
    """
    if os.environ.get("CLUSTER", "embedded") != "embedded":
        raise StageError(
            "this benchmark speaks to pods by their addresses and looks at their processes",
            advice="run it on the embedded cluster: leave CLUSTER unset",
        )
    return Cluster.embedded()


@contextlib.contextmanager
def rig(
    console: Console, cluster: Cluster, *, namespace: str, replicas: int, spec: Mapping[str, Any], keep: bool = False
) -> Iterator[Rig]:
    """Installs the operator and starts rollout pods in a fresh namespace, which is deleted at the end.

    Args:
        spec: merged into the TLTJob's.
    """
    choices = deploy.Choices.read()
    with console.stage("operator: helm upgrade --install", expected=25):
        deploy.check_classes(cluster, choices)
        deploy.install_operator(cluster, choices)
    with console.stage(f"{replicas} rollout pods in {namespace}", expected=60):
        cluster.delete_namespaces(namespace)
        cluster.kubectl("apply", "-k", str(_overlay(choices, namespace=namespace, replicas=replicas, spec=spec)))
        made = Rig(cluster=cluster, namespace=namespace, pods=_ready_pods(cluster, namespace, replicas))
    try:
        yield made
    finally:
        if not keep:
            with console.stage(f"namespace {namespace} ends", expected=15):
                cluster.delete_namespaces(namespace)


def _overlay(choices: deploy.Choices, *, namespace: str, replicas: int, spec: Mapping[str, Any]) -> Path:
    repository, tag = deploy.split_image(choices.workloads_image)
    folder = FOLDER / namespace
    folder.mkdir(parents=True, exist_ok=True)
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = {"name": namespace, "labels": restricted}
    (folder / "namespace.yaml").write_text(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": name}))
    template = {"template": {"image": choices.workloads_image}}
    job = {**spec, "training": {**template, **spec.get("training", {})}}
    patches: list[dict[str, Any]] = [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": LEARNER}, "$patch": "delete"},
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": ROLLOUT},
            "spec": {"replicas": replicas},
        },
        {"apiVersion": "tlt.dev/v1alpha1", "kind": "TLTJob", "metadata": {"name": JOB}, "spec": job},
    ]
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": ["namespace.yaml", os.path.relpath(BASE, folder)],
        "images": [{"name": "localhost/tlt-workloads", "newName": repository, "newTag": tag}],
        "patches": [{"patch": json.dumps(patch)} for patch in patches],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(content, indent=2))
    return folder


def _ready_pods(cluster: Cluster, namespace: str, replicas: int) -> Sequence[RolloutPod]:
    def ready() -> list[dict[str, Any]]:
        found = [pod for pod in cluster.list("pods", namespace=namespace, labels=f"app={ROLLOUT}") if is_ready(pod)]
        return found if len(found) == replicas else []

    if not wait_until(ready, seconds=deploy.READY_SECONDS):
        raise StageError(
            "the rollout pods were not ready in time",
            advice=f"`kubectl describe pods -n {namespace}` shows the events",
            evidence=cluster.trouble(namespace=namespace),
        )
    if not wait_until(lambda: cluster.secret(f"{JOB}-tlt-control", "token", namespace=namespace), seconds=60):
        raise StageError("the operator made no token", advice="look at the operator's log")
    token = cluster.secret(f"{JOB}-tlt-control", "token", namespace=namespace) or ""
    pods = tuple(
        RolloutPod(
            name=pod["metadata"]["name"], uid=pod["metadata"]["uid"], address=pod["status"]["podIP"], token=token
        )
        for pod in sorted(ready(), key=lambda pod: str(pod["metadata"]["name"]))
    )
    if not wait_until(lambda: all(_configured(pod) for pod in pods), seconds=120):
        raise StageError("the rollout pods were not configured", advice="look at the operator's log")
    return pods


def _configured(pod: RolloutPod) -> bool:
    with contextlib.suppress(OSError, CallRefusedError):
        return pod.state().config_digest is not None
    return False
