"""Watches a run from outside, tells it line by line, and records it.

Everything is read again and again and remembered by what it says, so that a restarted pod or a broken connection loses
nothing: the learner's and the operator's logs through the API server, the pods' state over forwarded ports.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.demo.cluster import ApiServer, Cluster, get_json
from bench.demo.console import Console, StageError, tail
from bench.demo.recording import Recording

JOB = "grpo"
LEARNER = "grpo-learner"
ROLLOUT = "grpo-rollout"
OPERATOR_NAMESPACE = "tlt-system"
OPERATOR_LABELS = "app.kubernetes.io/name=tlt-operator"
STATE_PATH = "/tlt/v1/state"
GATEWAY_PATH = "/tlt/v1/gateway"
PASS_SECONDS = 1.0
SETTLING_SECONDS = 4.0  # after the learner's end: the last windows close
OVERLAP_SECONDS = 10  # of the operator's log that is read again each time
POLICY_CHANGED = "changed the policy's weights"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to watch: a namespace of the example, its steps and its pods."""

    name: str
    namespace: str
    steps: int
    pods: int = 2

    @property
    def pod_names(self) -> list[str]:
        """The rollout pods, by name."""
        return [f"{ROLLOUT}-{index}" for index in range(self.pods)]


class PodReader:
    """State of one pod over a forwarded port, which is forwarded anew when it breaks."""

    def __init__(self, cluster: Cluster, target: str, *, namespace: str, path: str, token: str) -> None:
        self._open = contextlib.ExitStack()
        self._cluster = cluster
        self._target = target
        self._namespace = namespace
        self._path = path
        self._token = token
        self._url: str | None = None

    def read(self) -> dict[str, Any] | None:
        """The state now; None while the pod does not answer."""
        if self._url is None:
            forward = self._cluster.forward(self._target, 8000, namespace=self._namespace)
            try:
                self._url = self._open.enter_context(forward)
            except StageError:
                return None
        state: dict[str, Any] | None = get_json(self._url + self._path, token=self._token)
        if state is None:
            self.close()
        return state

    def close(self) -> None:
        """Ends the forwarding."""
        self._open.close()
        self._url = None


class Follower:
    """Follows one run to the learner's end."""

    def __init__(self, *, console: Console, cluster: Cluster, api: ApiServer, run: Run) -> None:
        self._console = console
        self._cluster = cluster
        self._api = api
        self._run = run
        self._recording = Recording(
            name=run.name, namespace=run.namespace, job=JOB, pods=run.pod_names, began=time.time()
        )
        self._seen: set[str] = set()  # lines of the operator's log
        self._told_waiting = ""

    def follow(self, *, limit: float) -> Recording:
        """Returns the recording when the learner is done.

        Raises:
            StageError: the learner failed, or `limit` seconds passed.
        """
        deadline = time.monotonic() + limit
        with self._readers() as readers:
            while (end := self._learner_end()) is None:
                if time.monotonic() > deadline:
                    raise self._failure(f"the learner was not done after {limit / 60:.0f} minutes")
                self._pass(readers)
                time.sleep(PASS_SECONDS)
            time.sleep(SETTLING_SECONDS)
            self._pass(readers)
        if end == "failed":
            raise self._failure("the learner failed")
        return self._finish()

    def _pass(self, readers: dict[str, PodReader]) -> None:
        for pod, reader in readers.items():
            if (state := reader.read()) is not None:
                self._recording.samples.append({"at": time.time(), "pod": pod, "state": state})
        self._read_operator()
        self._read_learner()

    @contextlib.contextmanager
    def _readers(self) -> Iterator[dict[str, PodReader]]:
        token = self._token()
        readers = {
            pod: PodReader(self._cluster, f"pod/{pod}", namespace=self._run.namespace, path=STATE_PATH, token=token)
            for pod in self._run.pod_names
        }
        try:
            yield readers
        finally:
            for reader in readers.values():
                reader.close()

    def _token(self) -> str:
        token = self._cluster.secret(f"{JOB}-tlt-control", "token", namespace=self._run.namespace)
        if token is None:
            raise StageError(
                f"the operator made no Secret {JOB}-tlt-control in {self._run.namespace}",
                advice=f"look at `kubectl describe tltjob {JOB} -n {self._run.namespace}` and the operator's log",
            )
        return token

    def _learner_end(self) -> str | None:
        job = self._api.get(f"/apis/batch/v1/namespaces/{self._run.namespace}/jobs/{LEARNER}") or {}
        status = job.get("status", {})
        return "succeeded" if status.get("succeeded") else "failed" if status.get("failed") else None

    def _learner_log(self) -> str:
        pods = self._api.get(f"/api/v1/namespaces/{self._run.namespace}/pods", labelSelector=f"app={LEARNER}") or {}
        names = [item["metadata"]["name"] for item in pods.get("items", ())]
        return "".join(self._api.text(f"/api/v1/namespaces/{self._run.namespace}/pods/{name}/log") for name in names)

    def _read_learner(self) -> None:
        known = {line["step"] for line in self._recording.steps}
        lines = [_as_object(line) for line in self._learner_log().splitlines()]
        waiting = [line["waiting"] for line in lines if "waiting" in line]
        if waiting and waiting[-1] != self._told_waiting and not known:
            self._told_waiting = waiting[-1]
            self._console.say(f"  learner waits: {self._told_waiting}")
        for line in lines:
            if "step" in line and line["step"] not in known:
                known.add(line["step"])
                self._recording.steps.append(line)
                self._console.say(self._step_line(line))

    def _step_line(self, line: dict[str, Any]) -> str:
        return (
            f"  step {line['step']}/{self._run.steps}: {line['wallSeconds']:.1f} s = generation "
            f"{line['generationSeconds']:.1f} + sync {line['syncSeconds']:.1f} + learner {line['learnerSeconds']:.1f}; "
            f"{line['tokens']} tokens, reward {line['reward']:.2f}"
        )

    def _read_operator(self) -> None:
        pods = self._api.get(f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods", labelSelector=OPERATOR_LABELS) or {}
        since = datetime.datetime.fromtimestamp(self._newest() - OVERLAP_SECONDS, tz=datetime.UTC)
        for pod in pods.get("items", ()):
            path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod['metadata']['name']}/log"
            for line in self._api.text(path, sinceTime=since.strftime("%Y-%m-%dT%H:%M:%SZ")).splitlines():
                if line not in self._seen:
                    self._seen.add(line)
                    self._hear(line)

    def _hear(self, line: str) -> None:
        if POLICY_CHANGED in line and self._run.namespace in line:
            self._recording.policy_changes += 1
        event = _as_object(line)
        if event.get("job") == f"{self._run.namespace}/{JOB}" and {"at", "kind", "pod"} <= event.keys():
            self._recording.events.append(event)
            if text := told(event):
                self._console.say(f"    {text}")

    def _newest(self) -> float:
        return max((float(event["at"]) for event in self._recording.events), default=self._recording.began)

    def _failure(self, message: str) -> StageError:
        namespace = self._run.namespace
        evidence = (
            f"{self._cluster.trouble(namespace=namespace)}\nthe learner's last lines:\n{tail(self._learner_log())}"
        )
        advice = (
            f"`kubectl get pods,tltjob -n {namespace}` shows the rest; `make demo` again goes on from what is built"
        )
        return StageError(message, advice=advice, evidence=evidence)

    def _finish(self) -> Recording:
        recording, namespace = self._recording, self._run.namespace
        gateway = PodReader(
            self._cluster, f"service/{JOB}-gateway", namespace=namespace, path=GATEWAY_PATH, token=self._token()
        )
        recording.gateway = gateway.read() or {}
        gateway.close()
        recording.tltjob = self._cluster.find("tltjob", JOB, namespace=namespace) or {}
        recording.revisions = self._cluster.list("drafterrevisions", namespace=namespace)
        recording.events.sort(key=lambda event: float(event["at"]))
        recording.ended = time.time()
        return recording


def told(event: dict[str, Any]) -> str | None:
    """The sentence for an event that a spectator wants to hear of; None for the others."""
    kind, pod = event["kind"], event["pod"]
    if kind == "worker" and event["to"] == "Lent":
        after = f" {event['edgeToLease']:.2f} s after it fell idle" if "edgeToLease" in event else ""
        return f"{pod}: lent{after}"
    if kind == "worker" and "handBack" in event:
        return f"{pod}: back in {event['handBack']:.2f} s ({event.get('reason')})"
    if kind == "trainer" and event["to"] in ("Training", "Failed"):
        return f"{event.get('rollout', pod)}: {'window begins' if event['to'] == 'Training' else 'trainer failed'}"
    if kind == "swap":
        return (
            f"{pod}: has {event['revision']}, swapped in {event['seconds']:.2f} s, stall {1000 * event['stall']:.0f} ms"
        )
    if kind == "revision":
        return f"revision {pod}: {event['to']}"
    return None


def _as_object(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
