"""Real rollout pods for the cluster tests, and the requests that keep them busy."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from tlt_workloads.contract import (
    ROLLOUT_PORT,
    STATE_ROUTE,
    TRAINER_PORT,
    TRAINER_ROUTE,
    RolloutState,
    TrainerState,
    decode,
)

MODEL = "/opt/models/smollm2-135m-instruct"
LABELS = {"app": "rollout"}
QUESTIONS = (
    "What is 17 + 25 * 3? Show your reasoning step by step.",
    "Ana buys 12 boxes with 8 pens each and sells 31 pens. How many are left? Explain each step.",
    "A train travels 45 miles per hour for 3 hours and then 20 more miles. How far? Think step by step.",
    "Tom has 52 coins, gives away 17 and finds 9. How many coins does he have? Think step by step.",
)


def rollout_set(job: str, *, image: str, device_class: str, replicas: int = 2) -> Sequence[Mapping[str, Any]]:
    """A StatefulSet of rollout pods, each with a device of its own, as a user would write it."""
    claim = {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": device_class, "count": 1}}]}}
    container = {
        "name": "vllm",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "tlt_workloads.rollout.serve"],
        "args": [
            *("--model", MODEL, "--served-model-name", "policy"),
            *("--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager", "--port", str(ROLLOUT_PORT)),
        ],
        "env": [
            {"name": "TLT_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
        ],
        "ports": [{"name": "http", "containerPort": ROLLOUT_PORT}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "500m", "memory": "3Gi"}, "claims": [{"name": "gpu"}]},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "store", "mountPath": "/tlt"},
            {"name": "token", "mountPath": "/var/run/secrets/tlt", "readOnly": True},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "rollout-gpu"}],
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "store", "persistentVolumeClaim": {"claimName": "store"}},
            {"name": "token", "secret": {"secretName": f"{job}-tlt-control", "optional": True}},
        ],
    }
    return (
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaimTemplate",
            "metadata": {"name": "rollout-gpu"},
            "spec": {"spec": claim},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "rollout"},
            "spec": {
                "replicas": replicas,
                "serviceName": "rollout",
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": LABELS},
                "template": {"metadata": {"labels": LABELS}, "spec": pod},
            },
        },
    )


def store_claim() -> Mapping[str, Any]:
    """The volume that rollout pods and trainers share."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "store"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "devcluster",
            "resources": {"requests": {"storage": "10Gi"}},
        },
    }


def in_namespace(item: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """The same object in this namespace."""
    return {**item, "metadata": {**item["metadata"], "namespace": namespace}}


def state_of(address: str, token: str) -> RolloutState:
    """What a rollout pod says of itself."""
    return decode(RolloutState, _facts(f"http://{address}:{ROLLOUT_PORT}{STATE_ROUTE}", token))


def trainer_state_of(address: str, token: str) -> TrainerState:
    """What a trainer pod says of itself."""
    return decode(TrainerState, _facts(f"http://{address}:{TRAINER_PORT}{TRAINER_ROUTE}", token))


def _facts(url: str, token: str) -> Any:
    answer = requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    answer.raise_for_status()
    return answer.json()


def complete(address: str, *, tokens: int, count: int = 1, temperature: float = 0.7) -> list[str]:
    """Asks one pod or the gateway for `count` answers of exactly `tokens` tokens, all at once.

    Raises:
        requests.HTTPError: an answer failed.
    """

    def one(index: int) -> str:
        question = QUESTIONS[index % len(QUESTIONS)]
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        body = {
            "model": "policy",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": temperature,
            "ignore_eos": True,
        }
        answer = requests.post(f"http://{address}:{ROLLOUT_PORT}/v1/completions", json=body, timeout=600)
        answer.raise_for_status()
        text: str = answer.json()["choices"][0]["text"]
        return text

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class Load:
    """Requests that go on in the background until their answers are asked for."""

    def __init__(self, address: str, *, tokens: int, count: int = 1) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._answers = self._pool.submit(complete, address, tokens=tokens, count=count)

    @property
    def running(self) -> bool:
        return not self._answers.done()

    def answers(self) -> list[str]:
        """Waits for all answers; raises what went wrong."""
        try:
            return self._answers.result()
        finally:
            self._pool.shutdown()
