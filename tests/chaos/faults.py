"""What can be broken: processes of pods and of the cluster are killed or stopped, a pod is cut off the network."""

from __future__ import annotations

import contextlib
import enum
import signal
import subprocess
import time
from collections.abc import Iterator

from bench import node
from devcluster.processes import living
from devcluster.settings import node_settings
from tests.chaos.scene import Pod, Scene
from tests.cluster.conftest import OPERATOR_NAMESPACE, devcluster

PAUSE_SECONDS = 8.0  # of a process that is stopped: longer than clients wait, shorter than a lease's time to live
CUT_SECONDS = 8.0
OPERATOR = "app.kubernetes.io/name=tlt-operator"


class Fault(enum.Enum):
    """One thing that goes wrong."""

    OPERATOR_KILLED = "operator killed"
    GATEWAY_KILLED = "gateway killed"
    ROLLOUT_KILLED = "rollout server killed"
    SUPERVISOR_KILLED = "trainer supervisor killed"
    WORKER_KILLED = "trainer worker killed"
    APISERVER_KILLED = "kube-apiserver killed"
    APISERVER_PAUSED = "kube-apiserver paused"
    ETCD_KILLED = "etcd killed"
    ETCD_PAUSED = "etcd paused"
    KUBELET_KILLED = "kubelet killed"
    KUBELET_PAUSED = "kubelet paused"
    ROLLOUT_CUT = "rollout pod off the network"
    TRAINER_CUT = "trainer pod off the network"

    @property
    def spares_leases(self) -> bool:
        """Whether a lease must outlive it: rollout pod and trainer go on without whatever it hits."""
        return self not in _ENDS_LEASES

    @property
    def hits_pod_zero(self) -> bool:
        """Whether requests to pod 0 may fail."""
        return self is Fault.ROLLOUT_KILLED


_ENDS_LEASES = frozenset(
    {Fault.ROLLOUT_KILLED, Fault.SUPERVISOR_KILLED, Fault.WORKER_KILLED, Fault.ROLLOUT_CUT, Fault.TRAINER_CUT}
)


def inject(fault: Fault, scene: Scene) -> bool:
    """Does it, and undoes what does not heal by itself; False when there is nothing to hit (no worker, no trainer)."""
    match fault:
        case Fault.OPERATOR_KILLED:
            [item] = scene.cluster.list("pods", OPERATOR_NAMESPACE, labels=OPERATOR)[:1]
            return _kill(node.main_process(str(item["metadata"]["uid"])))
        case Fault.GATEWAY_KILLED:
            return _kill(node.main_process(scene.gateway().uid))
        case Fault.ROLLOUT_KILLED:
            return _kill(node.main_process(scene.pods[0].uid))
        case Fault.SUPERVISOR_KILLED:
            trainer = _trainer(scene)
            return trainer is not None and _kill(node.main_process(trainer.uid))
        case Fault.WORKER_KILLED:
            trainer = _trainer(scene)
            return trainer is not None and _kill(node.trainer_worker(trainer.uid))
        case Fault.APISERVER_KILLED | Fault.ETCD_KILLED | Fault.KUBELET_KILLED:
            _component(fault, signal.SIGKILL)
            devcluster("up")  # as a node's own process manager would
            return True
        case Fault.APISERVER_PAUSED | Fault.ETCD_PAUSED | Fault.KUBELET_PAUSED:
            _component(fault, signal.SIGSTOP)
            try:
                time.sleep(PAUSE_SECONDS)
            finally:
                _component(fault, signal.SIGCONT)
            return True
        case Fault.ROLLOUT_CUT:
            return _cut(scene.pods[0])
        case Fault.TRAINER_CUT:
            trainer = _trainer(scene)
            return trainer is not None and _cut(trainer)


def _trainer(scene: Scene) -> Pod | None:
    with contextlib.suppress(AssertionError):
        return scene.trainer_of(scene.pods[0])
    return None


def _kill(process: node.PodProcess | None) -> bool:
    if process is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        process.send(signal.SIGKILL)
        return True
    return False


def _component(fault: Fault, number: signal.Signals) -> None:
    name = fault.value.split()[0]
    found = [process for process in living(node_settings()) if process.component == name]
    assert found, f"{name} does not run"
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            node.send(process.pid, number)


def _cut(pod: Pod) -> bool:
    """Takes the pod's cable out of the node's bridge for a while."""
    process = node.main_process(pod.uid)
    if process is None:
        return False
    with _without_link(_host_link(process.pid)):
        time.sleep(CUT_SECONDS)
    return True


def _host_link(pid: int) -> str:
    """Name of the node's end of a pod's cable."""
    inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "link", "show", "eth0")
    number = _run(*inside).split("@if")[1].split(":")[0]
    [line] = [line for line in _run("ip", "-o", "link").splitlines() if line.startswith(f"{number}:")]
    return line.split()[1].split("@")[0].rstrip(":")


@contextlib.contextmanager
def _without_link(name: str) -> Iterator[None]:
    _run("ip", "link", "set", name, "down")
    try:
        yield
    finally:
        _run("ip", "link", "set", name, "up")


def _run(*command: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
    return answer.stdout
