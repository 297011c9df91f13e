"""`decide`: from what was observed to what should be done, shown and remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tlt_operator.api.job import Job
from tlt_operator.api.names import Phase
from tlt_operator.plan.acceptance import AcceptanceMemory, follow_acceptance
from tlt_operator.plan.actions import Action, Configure, CreateTrainer
from tlt_operator.plan.conditions import (
    Condition,
    data_ready,
    degraded,
    drafter_ready,
    harvesting,
    message_of,
    phase_of,
    rollout_ready,
)
from tlt_operator.plan.generation import lendable, observe_generation
from tlt_operator.plan.ledger import CountedLease, Ledger, account
from tlt_operator.plan.lending import Knowledge, LeaseTerms, Lending, decide_leases
from tlt_operator.plan.patience import Patience, learn_patience
from tlt_operator.plan.pool import PoolPlan, Progress, decide_pool
from tlt_operator.plan.recalls import Recall, decide_recalls
from tlt_operator.plan.revisions import ReleaseMemory, Rollout, decide_revisions
from tlt_operator.plan.shares import Wish
from tlt_operator.plan.snapshot import Snapshot
from tlt_operator.plan.tokens import TokenMemory, count_tokens
from tlt_operator.plan.training import decide_trainers
from tlt_operator.plan.triggers import assess_need
from tlt_operator.plan.windows import ClosedWindow, WindowHistory, advance
from tlt_operator.plan.worker import WorkerState, classify_all, is_legal
from tlt_workloads.contract import (
    CaptureSettings,
    RolloutConfig,
    SpeculationSettings,
    TrainerPhase,
    config_digest,
)

GONE = "Gone"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one pass hands to the next.  Losing it costs history, never correctness; the status keeps the ledger."""

    workers: Mapping[str, WorkerState] = field(default_factory=dict)
    trainers: Mapping[str, TrainerPhase] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # of both, by uid
    windows: WindowHistory = field(default_factory=WindowHistory)
    patience: Mapping[str, Patience] = field(default_factory=dict)
    recalls: Mapping[str, Recall] = field(default_factory=dict)
    tokens: TokenMemory = field(default_factory=TokenMemory)
    acceptance: AcceptanceMemory = field(default_factory=AcceptanceMemory)
    release: ReleaseMemory = field(default_factory=ReleaseMemory)
    pool: Progress | None = None
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A pod that changed its state between two passes; `age` seconds ago, `from_state` None when it is new."""

    pod: str
    uid: str
    from_state: str | None
    to_state: str
    age: float
    expected: bool = True  # the table of moves has it


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Everything that follows from a snapshot."""

    actions: tuple[Action, ...]
    conditions: tuple[Condition, ...]
    phase: Phase
    message: str
    workers: Mapping[str, WorkerState]
    lending: Lending
    rollout: Rollout
    pool: PoolPlan | None
    available_tokens: int
    worker_transitions: tuple[Transition, ...]
    trainer_transitions: tuple[Transition, ...]
    ended_leases: tuple[CountedLease, ...]
    closed_windows: tuple[ClosedWindow, ...]
    memory: Memory


def rollout_config(job: Job) -> RolloutConfig:
    """What each rollout pod of the job must be told."""
    spec = job.spec
    return RolloutConfig(
        job=job.key,
        store_url=spec.store.url,
        idle_after=spec.idle.after,
        capture=CaptureSettings(
            enabled=spec.capture.sample_rate > 0,
            max_tokens_per_step=spec.capture.max_tokens_per_step,
            max_bytes_per_step=spec.capture.max_bytes_per_step,
            max_bytes=spec.capture.max_bytes,
            sample_rate=spec.capture.sample_rate,
            prompt_rows=spec.capture.prompt_rows,
            element_type=spec.capture.element_type,
        ),
        speculation=SpeculationSettings(mode=spec.speculation.mode, draft_length=spec.drafter.speculative_tokens),
    )


def decide(snapshot: Snapshot, memory: Memory, *, terms: LeaseTerms) -> Decision:
    """The whole decision of one pass over one job."""
    workers = classify_all(snapshot)
    available, tokens = count_tokens(snapshot, memory.tokens)
    generation = observe_generation(snapshot, workers)
    windows, closed = advance(
        memory.windows,
        lendable(snapshot, workers, generation),
        phase=generation.phase,
        now=snapshot.now,
        lost=_lost(memory.workers, workers),
    )
    ledger, ended = account(memory.ledger, snapshot)
    rollout = decide_revisions(snapshot, workers, memory.release)
    acceptance = follow_acceptance(memory.acceptance, snapshot, rollout.active)
    need = assess_need(snapshot, active=rollout.active, acceptance=acceptance, available_tokens=available)
    pool = decide_pool(snapshot, workers, before=memory.pool)
    leaving = pool.leaving if pool is not None else frozenset()
    known = Knowledge(
        workers=workers,
        generation=generation,
        history=windows,
        patience=learn_patience(memory.patience, snapshot),
        need=need,
        account=Wish(job=snapshot.job.key, idle=ledger.idle, harvested=ledger.harvested),
        terms=terms,
        leaving=leaving | rollout.arriving,
    )
    recalls = decide_recalls(snapshot, workers, generation, before=memory.recalls, leaving=leaving)
    lending = decide_leases(snapshot, known)
    conditions = (
        rollout_ready(snapshot, workers, pool),
        data_ready(snapshot, need),
        harvesting(snapshot, lending),
        drafter_ready(snapshot, rollout),
        degraded(snapshot, workers, rollout, pool),
    )
    trainers = {view.pod.uid: view.state.phase for view in snapshot.trainers if view.state is not None}
    names = {view.pod.uid: view.pod.name for view in snapshot.rollouts}
    names |= {view.pod.uid: view.pod.name for view in snapshot.trainers}

    def name(uid: str) -> str:
        return names[uid] if uid in names else memory.names[uid]

    return Decision(
        actions=(
            *recalls.actions,
            *lending.grants,
            *_configurations(snapshot, workers),
            *(
                action
                for action in decide_trainers(
                    snapshot, workers, available_tokens=available, due=need.due, recalls=recalls.open
                )
                if not (isinstance(action, CreateTrainer) and action.rollout_uid in leaving)
            ),
            *rollout.actions,
            *(pool.actions if pool is not None else ()),
        ),
        conditions=conditions,
        phase=phase_of(conditions, suspended=snapshot.job.spec.suspend),
        message=message_of(conditions),
        workers=workers,
        lending=lending,
        rollout=rollout,
        pool=pool,
        available_tokens=available,
        worker_transitions=_transitions(
            memory.workers, workers, name=name, age=lambda uid: _age_of_rollout(snapshot, uid)
        ),
        trainer_transitions=_transitions(
            memory.trainers, trainers, name=name, age=lambda uid: _age_of_trainer(snapshot, uid)
        ),
        ended_leases=ended,
        closed_windows=closed,
        memory=Memory(
            workers=workers,
            trainers=trainers,
            names=names,
            windows=windows,
            patience=known.patience,
            recalls=recalls.open,
            tokens=tokens,
            acceptance=acceptance,
            release=rollout.memory,
            pool=pool.progress if pool is not None else None,
            ledger=ledger,
        ),
    )


def _lost(before: Mapping[str, WorkerState], workers: Mapping[str, WorkerState]) -> set[str]:
    """Pods (uids) that have gone, or cannot be asked."""
    silent = (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE)
    return {uid for uid in before if uid not in workers} | {uid for uid, worker in workers.items() if worker in silent}


def _configurations(snapshot: Snapshot, workers: Mapping[str, WorkerState]) -> tuple[Action, ...]:
    config = rollout_config(snapshot.job)
    digest = config_digest(config)
    return tuple(
        Configure(rollout_uid=view.pod.uid, config=config)
        for view in snapshot.rollouts
        if view.state is not None
        and workers[view.pod.uid] not in (WorkerState.UNKNOWN, WorkerState.UNAVAILABLE)
        and view.state.config_digest != digest
    )


def _transitions(
    before: Mapping[str, WorkerState] | Mapping[str, TrainerPhase],
    after: Mapping[str, WorkerState] | Mapping[str, TrainerPhase],
    *,
    name: Callable[[str], str],
    age: Callable[[str], float],
) -> tuple[Transition, ...]:
    found = [
        Transition(
            pod=name(uid),
            uid=uid,
            from_state=before[uid].value if uid in before else None,
            to_state=state.value,
            age=age(uid),
            expected=_is_expected(before.get(uid), state),
        )
        for uid, state in after.items()
        if before.get(uid) is not state
    ]
    found += [
        Transition(pod=name(uid), uid=uid, from_state=state.value, to_state=GONE, age=0.0)
        for uid, state in before.items()
        if uid not in after
    ]
    return tuple(found)


def _is_expected(before: WorkerState | TrainerPhase | None, after: WorkerState | TrainerPhase) -> bool:
    return not (isinstance(before, WorkerState) and isinstance(after, WorkerState)) or is_legal(before, after)


def _age_of_rollout(snapshot: Snapshot, uid: str) -> float:
    view = snapshot.by_uid[uid]
    return snapshot.age(view) if view.state is not None and view.fault is None else 0.0


def _age_of_trainer(snapshot: Snapshot, uid: str) -> float:
    view = next(view for view in snapshot.trainers if view.pod.uid == uid)
    return view.age if view.state is not None and view.fault is None else 0.0
