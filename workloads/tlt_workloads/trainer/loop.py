"""The window loop: join others, solve anew, publish, each when it is due; next batch, step, checkpoint, stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from tlt_workloads.trainer.session import Session
from tlt_workloads.trainer.stopping import StepAbandonedError, StopFlag
from tlt_workloads.trainer.team.trainee import TeamLostError
from tlt_workloads.trainer.window import WindowEnd, WorkerMessage, WorkerPublished, WorkerSkipped, WorkerStepped


def train_window(session: Session, stop: StopFlag, report: Callable[[WorkerMessage], None]) -> WindowEnd:
    """Trains until asked to stop or until nothing is left to train on.

    Whatever was learnt since the last checkpoint is in the session, not yet in the store.
    """
    micro_steps, before, saved = 0, session.trained_tokens, time.monotonic()
    told: frozenset[str] = frozenset()
    try:
        while not stop.is_set:
            session.meet_others()
            if session.solve_due:
                session.keep(stop.abandon_step)
                with stop.nothing_to_lose():
                    is_taken = session.try_solution(stop.abandon_step)
                if is_taken:  # and so there is something to lose again
                    session.hand_on()
            if session.release_due:
                session.keep(stop.abandon_step)
                with stop.nothing_to_lose():
                    manifest = session.try_release(stop.abandon_step)
                if manifest is not None:
                    report(WorkerPublished(manifest=manifest))
            batch = session.next_batch()
            if session.skipped_shards != told:
                told = session.skipped_shards
                report(WorkerSkipped(shards=told))
            if batch is None:
                return WindowEnd.DONE if micro_steps else WindowEnd.NO_DATA
            stop.listen()
            loss = session.train(batch)
            micro_steps += 1
            report(
                WorkerStepped(
                    steps=micro_steps, tokens=session.trained_tokens - before, loss=loss, replicas=session.replicas
                )
            )
            if time.monotonic() - saved >= session.checkpoint_interval:
                session.checkpoint()
                saved = time.monotonic()
    except StepAbandonedError:
        pass
    except TeamLostError:
        return WindowEnd.TEAM_LOST
    return WindowEnd.STOPPED
