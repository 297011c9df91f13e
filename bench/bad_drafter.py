"""What bad drafters cost: random weights are offered again and again, while two real vLLM pods generate.

A first drafter is trained and active.  Then every round generates the same requests in both pods, once as it is and
once with a bad drafter offered at its start, in alternating order, so that a drift of the machine falls on both alike:
the loss is that of a job in which *every* step offers a bad one.  The operator tries each in one pod beside the other.
A bad drafter has the shapes of the good one, and random numbers as large as its own.

python -m bench.bad_drafter [--offers 20] [--seed 1]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import results, tables
from bench.demo.cluster import wait_until
from bench.demo.console import Console, StageError
from bench.demo.follow import JOB
from bench.rig import Rig, RolloutPod, connect, rig

NAMESPACE = "bench-bad-drafter"
TIME_LIMIT = 20.0  # seconds; a core makes some 40 drafts in one, which is few for the test alone
SPEC = {
    "gateway": {"enabled": False},
    "idle": {"after": "300ms", "minWindow": "2500ms", "scope": "AnyIdle"},
    "training": {"trigger": {"minNewTokens": 1000}, "keepWarm": "6h"},
    "capture": {"maxTokensPerStep": 1 << 30},
    "release": {"canary": {"replicas": 0, "minDrafts": 200, "timeLimit": f"{TIME_LIMIT:g}s"}},
}
RECORDED_REQUESTS, RECORDED_TOKENS, COPIES = 8, 300, 3  # of eight sequences in a shard one is held out
REQUESTS, TOKENS = 4, 600  # of each pod and round
NO_MORE_TRAINING = 1 << 40  # tokens
LEARNING_SECONDS, RULING_SECONDS, BACK_SECONDS = 600.0, 5.0, 120.0
BAD_WEIGHTS = """
import hashlib, json, pathlib, sys
import torch
from safetensors.torch import load_file, save
job, good, bad, seed = sys.argv[1:]
torch.manual_seed(int(seed))
folder = pathlib.Path("/tlt", job, "revisions")
tensors = load_file(folder / good / "model.safetensors")
for name, item in tensors.items():
    if item.is_floating_point():
        tensors[name] = (torch.randn(item.shape) * item.float().std(correction=0)).to(item.dtype)
data = save(tensors)
(folder / bad).mkdir(exist_ok=True)
(folder / bad / ".model.safetensors").write_bytes(data)
(folder / bad / ".model.safetensors").rename(folder / bad / "model.safetensors")
print(json.dumps(hashlib.sha256(data).hexdigest()))
"""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The same requests in both pods; times in seconds."""

    offered: bool
    tokens: int
    seconds: float
    promoted: bool = False  # the bad drafter was the active one at some time
    canary_seconds: float | None = None  # of the trial
    canary_drafts: int | None = None
    reason: str = ""

    @property
    def rate(self) -> float:
        """Tokens per second of the whole job."""
        return self.tokens / self.seconds


class Bench:
    """Two pods with a trained drafter, and the bad ones."""

    def __init__(self, made: Rig) -> None:
        self._rig = made
        self._pool = concurrent.futures.ThreadPoolExecutor(4 * REQUESTS)

    def learn(self) -> str:
        """A first drafter in both pods, and an end of the training; its name."""
        for pod in self._rig.pods:
            self._generate(pod, tokens=RECORDED_TOKENS, requests=RECORDED_REQUESTS)
        self._rig.multiply_records(COPIES)
        if not wait_until(self._active, seconds=LEARNING_SECONDS):
            raise StageError(
                "no drafter was trained", advice="see the conditions of the TLTJob", evidence=self._rig.evidence()
            )
        # A window that is under way may still publish one, which must not be taken for a bad one.
        self._rig.patch_job({"suspend": True})
        if not wait_until(self._quiet, seconds=LEARNING_SECONDS):
            raise StageError(
                "training does not end", advice="look at the operator's log", evidence=self._rig.evidence()
            )
        self._rig.patch_job(
            {
                "suspend": False,
                "training": {"trigger": {"minNewTokens": NO_MORE_TRAINING}},
                "release": {"canary": {"replicas": 1}},
            }
        )
        return self._active()

    def round(self, *, good: str, number: int, seed: int, offered: bool) -> Round:
        """One round; it ends with the last answer, and the next one begins when both pods have the good drafter."""
        name = f"{JOB}-r{number}"
        digest = self._write(name, good=good, seed=seed) if offered else ""  # not within the time that counts
        began = time.monotonic()
        pods = [self._pool.submit(self._generate, pod, tokens=TOKENS, requests=REQUESTS) for pod in self._rig.pods]
        if not offered:
            return _round(pods, began)
        self._offer(name, good=good, digest=digest)
        generated = _round(pods, began)  # looking for the ruling meanwhile would take from the pods' cores
        status = self._ruled(name)
        if not status:  # neither side's engine drafts with what it has: nothing is known, and nothing was lost
            self._rig.cluster.kubectl(
                "annotate", "drafterrevision", name, "-n", self._rig.namespace, "tlt.dev/rollback=true"
            )
            status = self._ruled(name)
        if not status:
            evidence = self._rig.evidence()
            raise StageError(
                f"{name} was not rolled back by hand", advice="look at the operator's log", evidence=evidence
            )
        counted = status.get("evidence", {})
        facts = {item["type"]: item for item in status["conditions"]}
        if not wait_until(lambda: self._all_have(good), seconds=BACK_SECONDS):
            raise StageError("the good drafter did not come back", advice="see the DrafterRevisions")
        return replace(
            generated,
            offered=True,
            promoted=facts["Promoted"]["status"] == "True" or status["phase"] in ("Active", "Superseded"),
            canary_seconds=counted.get("trialSeconds"),
            canary_drafts=counted.get("canaryDrafts"),
            reason=facts["RolledBack"]["reason"],
        )

    def next_number(self) -> int:
        """The first number that no revision has."""
        return 1 + max(int(item["metadata"]["name"].rpartition("-r")[2]) for item in self._revisions())

    def _write(self, name: str, *, good: str, seed: int) -> str:
        """Bad weights in the store; their digest."""
        pod, job = self._rig.pods[0].name, self._rig.job
        return str(
            self._rig.cluster.python_in_pod(pod, BAD_WEIGHTS, job, good, name, str(seed), namespace=self._rig.namespace)
        )

    def _offer(self, name: str, *, good: str, digest: str) -> None:
        """The DrafterRevision that the operator would make of a candidate."""
        namespace = self._rig.namespace
        known = self._rig.cluster.find("drafterrevision", good, namespace=namespace)
        assert known is not None
        body = {
            "apiVersion": known["apiVersion"],
            "kind": known["kind"],
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": known["metadata"]["labels"],
                "ownerReferences": known["metadata"]["ownerReferences"],
            },
            "spec": {
                **{key: known["spec"][key] for key in ("job", "method", "policyVersions", "trainedTokens")},
                "digest": digest,
                "url": f"file:///tlt/{self._rig.job}/revisions/{name}",
                "parent": good,
            },
        }
        self._rig.cluster.kubectl("create", "-f", "-", text=json.dumps(body))

    def _ruled(self, name: str) -> dict[str, Any]:
        """The status of a revision that was decided on, or nothing."""
        status: dict[str, Any] = {}

        def ruled() -> bool:
            found = self._rig.cluster.find("drafterrevision", name, namespace=self._rig.namespace)
            status.update((found or {}).get("status") or {})
            return status.get("phase") in ("RolledBack", "Active", "Superseded")

        return status if wait_until(ruled, seconds=RULING_SECONDS, every=0.5) else {}

    def _revisions(self) -> list[dict[str, Any]]:
        return self._rig.cluster.list("drafterrevisions", namespace=self._rig.namespace)

    def _active(self) -> str:
        names = [
            item["metadata"]["name"]
            for item in self._revisions()
            if (item.get("status") or {}).get("phase") == "Active"
        ]
        return names[-1] if names and self._all_have(names[-1]) else ""

    def _all_have(self, name: str) -> bool:
        return all(pod.state().drafter_revision == name for pod in self._rig.pods)

    def _quiet(self) -> bool:
        """No window runs, and no revision is on its way."""
        open_ones = [item for item in self._revisions() if _phase(item) in ("", "Candidate", "Canary")]
        return not open_ones and bool(self._active()) and all(pod.state().lease is None for pod in self._rig.pods)

    def _generate(self, pod: RolloutPod, *, tokens: int, requests: int) -> tuple[int, float]:
        """Tokens of all answers, and when the last of them was there."""
        jobs = [
            self._pool.submit(pod.generate, number=number, tokens=tokens, temperature=0.0) for number in range(requests)
        ]
        return sum(job.result() for job in jobs), time.monotonic()


def _round(pods: Sequence[concurrent.futures.Future[tuple[int, float]]], began: float) -> Round:
    """What the pods have generated, until the last of them was done; a ruling may come later."""
    answers = [job.result() for job in pods]
    return Round(
        offered=False, tokens=sum(tokens for tokens, _ in answers), seconds=max(end for _, end in answers) - began
    )


def _phase(revision: dict[str, Any]) -> str:
    return str((revision.get("status") or {}).get("phase") or "")


def metrics(rounds: Sequence[Round]) -> dict[str, float | int | None]:
    """The figures of a run; rounds come in pairs, one of each kind."""
    offers = [item for item in rounds if item.offered]
    pairs = [rounds[index : index + 2] for index in range(0, len(rounds) - 1, 2)]
    rates = [{item.offered: item.rate for item in pair} for pair in pairs]
    ruled = [item.canary_seconds for item in offers if item.canary_seconds is not None]
    drafts = [float(item.canary_drafts) for item in offers if item.canary_drafts is not None]
    with_them, without = [_rate(rounds, offered=offered) for offered in (True, False)]
    return {
        "offered": len(offers),
        "promoted": sum(item.promoted for item in offers),
        "shown_worse": sum(item.reason == "Worse" for item in offers),
        "avoided": sum(item.reason == "Avoided" for item in offers),
        "undecided": sum(item.reason == "ByHand" for item in offers),
        "throughput_loss_share": 1 - with_them / without if with_them and without else None,
        "throughput_loss_median_share": 1 - statistics.median(rate[True] / rate[False] for rate in rates)
        if rates
        else None,
        "lost_s_per_offer": statistics.median(_seconds(pair, True) - _seconds(pair, False) for pair in pairs)
        if pairs
        else None,
        "ruling_p50_s": results.percentile(ruled, 0.5),
        "ruling_max_s": max(ruled, default=None),
        "canary_drafts_p50": results.percentile(drafts, 0.5),
        "tokens_per_s_with_offers": with_them,
        "tokens_per_s_without": without,
    }


def _seconds(pair: Sequence[Round], offered: bool) -> float:
    return next(item.seconds for item in pair if item.offered is offered)


def _rate(rounds: Sequence[Round], *, offered: bool) -> float | None:
    chosen = [item for item in rounds if item.offered is offered]
    seconds = sum(item.seconds for item in chosen)
    return sum(item.tokens for item in chosen) / seconds if seconds else None


def measure(console: Console, *, offers: int, seed: int, keep: bool) -> list[Round]:
    """Runs everything on the embedded cluster."""
    cluster, rounds = connect(), list[Round]()
    with rig(console, cluster, namespace=NAMESPACE, replicas=2, spec=SPEC, keep=keep) as made:
        bench = Bench(made)
        with console.stage("a first drafter", expected=240):
            good = bench.learn()
        number = bench.next_number()
        with console.stage(f"{offers} bad drafters, each in a round beside one without", expected=50.0 * offers):
            for index in range(offers):
                for offered in (True, False) if index % 2 == 0 else (False, True):
                    rounds.append(bench.round(good=good, number=number + index, seed=seed + index, offered=offered))
                    console.say(f"  {index + 1}: {_told(rounds[-1])}")
    return rounds


def _told(item: Round) -> str:
    if not item.offered:
        return f"without: {item.rate:.1f} tokens/s"
    became = "PROMOTED" if item.promoted else f"rolled back ({item.reason})"
    return f"{became} after {item.canary_seconds:.0f} s and {item.canary_drafts} drafts, {item.rate:.1f} tokens/s"


def main() -> int:
    """Measures, writes bench/results/bad_drafter.json and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.bad_drafter", description=__doc__)
    parser.add_argument("--offers", type=int, default=20, help="bad drafters (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of their weights (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave pods and namespace for a look")
    options = parser.parse_args()
    if options.offers < 1:
        parser.error(f"--offers: {options.offers} is less than 1")
    console = Console()
    try:
        rounds = measure(console, offers=options.offers, seed=options.seed, keep=options.keep)
    except StageError as failure:
        print(failure.told, file=sys.stderr)
        return 1
    tables.publish("bad_drafter", metrics(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
