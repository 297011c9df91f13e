"""A small world for roll-outs: pods with drafters, an API that keeps statuses, an operator that dies now and then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.snapshots import NOW, make_job, make_pod, make_rollout, make_snapshot, make_state
from tlt_operator.api.names import PROMOTE_ANNOTATION, ROLL_BACK_ANNOTATION
from tlt_operator.api.revision import Revision, parse_revision
from tlt_operator.plan.actions import Action, LoadDrafter, MarkRevision, UnloadDrafter
from tlt_operator.plan.revision_status import revision_status
from tlt_operator.plan.revisions import ReleaseMemory, Rollout, decide_revisions
from tlt_operator.plan.snapshot import RolloutView, Snapshot
from tlt_operator.plan.worker import classify_all
from tlt_workloads.contract import AcceptanceCounters


@dataclass
class Server:
    """A rollout pod; `heard` is what the operator knows of it."""

    name: str
    boot: int = 0
    restarts: int = 0
    drafter: str | None = None
    policy_version: int = 1
    drafts: int = 0
    accepted: int = 0
    generated: int = 0  # tokens
    reachable: bool = True
    silent_since: float = NOW
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return f"{self.name}-uid"

    def restart(self) -> None:
        self.boot, self.restarts = self.boot + 1, self.restarts + 1
        self.drafter, self.drafts, self.accepted, self.generated, self.refused = None, 0, 0, 0, {}

    def take(self, drafter: str | None) -> None:
        self.drafter, self.drafts, self.accepted = drafter, 0, 0

    def view(self, now: float) -> RolloutView:
        number = int(self.drafter.rpartition("-r")[2]) if self.drafter is not None else None
        state = make_state(
            running=1,
            boot=f"{self.name}-{self.boot}",
            policy_version=self.policy_version,
            generated_tokens=self.generated,
            drafter_revision=self.drafter,
            drafter_digest=f"{number:064x}" if number is not None else None,
            acceptance=AcceptanceCounters(
                drafts=self.drafts, draft_tokens=3 * self.drafts, accepted_tokens=self.accepted
            ),
        )
        view = make_rollout(
            self.name, state, pod=make_pod(self.name, restarts=self.restarts), refusals=dict(self.refused)
        )
        if not self.reachable:
            return dataclasses.replace(view, heard_at=float("-inf"), silent_since=self.silent_since - (now - NOW))
        return view


class ReleaseWorld:
    """Everything about the revisions of one job.  `accept_lengths` says what a drafter is worth, by its number."""

    def __init__(self, pods: int, *, accept_lengths: Mapping[int | None, float], **release: Any) -> None:
        self.now = NOW
        self.release: dict[str, Any] = release
        self.suspend = False
        self.accept_lengths = dict(accept_lengths)
        self.servers = {f"pod-{number}": Server(f"pod-{number}") for number in range(pods)}
        self.objects: dict[str, dict[str, Any]] = {}
        self.avoided: set[str] = set()  # revisions that engines soon draft no more with
        self.refusing: set[str] = set()  # revisions that no pod takes
        self.memory = ReleaseMemory()
        self.last: Rollout | None = None
        self.loads: list[tuple[str, str | None]] = []

    # -- what happens ----------------------------------------------------------------------------------------------

    def publish(self) -> str:
        """A trainer's candidate has become an object; its name."""
        number = len(self.objects) + 1
        name = f"demo-r{number}"
        self.objects[name] = {
            "metadata": {"name": name, "annotations": {}},
            "spec": {"digest": f"{number:064x}", "url": f"file:///tlt/{name}", "policyVersions": {"last": 1}},
        }
        return name

    def generate(self, drafts: int) -> None:
        """Every pod that has not hung drafts so much, exactly as well as its drafter is.

        Engines that avoid a drafter draft with it fifty times and not again, and write as many tokens.
        """
        for server in self.servers.values():
            number = int(server.drafter.rpartition("-r")[2]) if server.drafter is not None else None
            length = self.accept_lengths.get(number, 1.4)
            made = min(drafts, max(0, 50 - server.drafts)) if server.drafter in self.avoided else drafts
            server.drafts += made
            server.accepted += round(made * (length - 1))
            server.generated += round(drafts * length)

    def wish(self, name: str, annotation: str) -> None:
        self.objects[name]["metadata"]["annotations"][annotation] = "true"

    def promote(self, name: str) -> None:
        self.wish(name, PROMOTE_ANNOTATION)

    def roll_back(self, name: str) -> None:
        self.wish(name, ROLL_BACK_ANNOTATION)

    def restart_operator(self) -> None:
        self.memory = ReleaseMemory()
        for server in self.servers.values():
            server.refused = {}

    # -- the operator ----------------------------------------------------------------------------------------------

    @property
    def revisions(self) -> tuple[Revision, ...]:
        return tuple(parse_revision(body) for body in self.objects.values())

    def phase(self, name: str) -> str | None:
        found: str | None = (self.objects[name].get("status") or {}).get("phase")
        return found

    def snapshot(self) -> Snapshot:
        views = [server.view(self.now) for server in self.servers.values()]
        job = make_job(release=self.release, suspend=self.suspend)
        return make_snapshot(*views, job=job, revisions=self.revisions, now=self.now)

    def operate(self, *, lost_marks: bool = False) -> Rollout:
        """One pass whose actions are done at once; `lost_marks`: the API server takes no writes."""
        snapshot = self.snapshot()
        rollout = decide_revisions(snapshot, classify_all(snapshot), self.memory)
        self.memory, self.last = rollout.memory, rollout
        for action in rollout.actions:
            self._do(action, lost_marks=lost_marks)
        self.now += 1.0
        return rollout

    def live(self, seconds: int, *, drafts: int) -> None:
        """Pods generate, and the operator looks once a second."""
        for _ in range(seconds):
            self.generate(drafts)
            self.operate()

    def _do(self, action: Action, *, lost_marks: bool) -> None:
        by_uid = {server.uid: server for server in self.servers.values()}
        match action:
            case LoadDrafter():
                server = by_uid[action.rollout_uid]
                self.loads.append((server.name, action.load.revision))
                if server.reachable and action.load.revision in self.refusing:
                    server.refused[action.load.revision] = "not finite"
                elif server.reachable:
                    server.take(action.load.revision)
            case UnloadDrafter():
                server = by_uid[action.rollout_uid]
                self.loads.append((server.name, None))
                if server.reachable:
                    server.take(None)
            case MarkRevision() if not lost_marks:
                body = self.objects[action.revision.name]
                before = body.get("status") or {}
                status = revision_status(action, previous=before, now="2026-01-01T00:00:00Z")
                body["status"] = json.loads(json.dumps(_merged(before, status)))


def _merged(before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396)."""
    found = dict(before)
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping):
            known = found.get(key)
            found[key] = _merged(known if isinstance(known, Mapping) else {}, value)
        else:
            found[key] = value
    return found
