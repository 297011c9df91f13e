"""The process that has the device for one window.

It is forked from a process that has imported everything and touched no device, and pins itself to its emulated
accelerators if it has any.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from tlt_workloads.drafter import DrafterError
from tlt_workloads.store import StoreError
from tlt_workloads.trainer.loop import train_window
from tlt_workloads.trainer.opening import open_session
from tlt_workloads.trainer.settings import TrainerSettings, WindowOrder
from tlt_workloads.trainer.stopping import StopFlag
from tlt_workloads.trainer.target import TargetError
from tlt_workloads.trainer.team.team import open_team
from tlt_workloads.trainer.window import (
    WorkerEnded,
    WorkerFailed,
    WorkerMessage,
    WorkerReady,
    WorkerReleased,
)

_PR_SET_PDEATHSIG = 1
_log = logging.getLogger(__name__)


def run_window(order: WindowOrder, messages: Connection) -> None:
    """Trains until SIGTERM or until the data is used up; the last message says how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _die_with_parent()
    try:
        device = take_device(order.settings)
        messages.send(_run(order.settings, device, messages.send))
    except (TargetError, DrafterError, StoreError) as error:
        messages.send(WorkerFailed(message=str(error), permanent=True))
    except Exception as error:  # noqa: BLE001 - the edge of the process
        _log.exception("window %s failed", order.lease_id)
        messages.send(WorkerFailed(message=f"{type(error).__name__}: {error}", permanent=False))
    finally:
        messages.close()


def take_device(settings: TrainerSettings) -> torch.device:
    """Opens the accelerator; an emulated one is a core.

    The engine on the same core is preferred by its pod's larger CPU request.  A low priority of this process would do
    no more for it, but would give the whole pod next to nothing of the core while the supervisor is busy on another
    one, so that a worker that was told to end, or killed, could not do even that for seconds.
    """
    if settings.cores:
        os.sched_setaffinity(0, settings.cores)
        torch.set_num_threads(len(settings.cores))
        return torch.device("cpu")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _run(settings: TrainerSettings, device: torch.device, send: Callable[[WorkerMessage], None]) -> WorkerEnded:
    stop = StopFlag()
    # Whoever is there is known by the time that everything is read.
    team = open_team(settings, check=stop.abandon_step)
    session = open_session(settings, device=device, check=stop.abandon_step, team=team)
    if not session.is_kept:
        stop.listen()
    send(WorkerReady())
    try:
        end = train_window(session, stop, send)
        peak_memory = _peak_memory(device)
        session.release_device()
        send(WorkerReleased(end=end))
    finally:
        session.close()
    return WorkerEnded(end=end, peak_memory=peak_memory)


def _die_with_parent() -> None:
    """A worker must not outlive the pod's other processes: the device would stay taken."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
