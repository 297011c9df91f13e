"""A server that is told to stop stops, whoever is waiting for its answers."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil

from tests.support.eventually import eventually
from tests.support.rollout_server import RolloutServer, rollout_server


def test_open_polls_do_not_hold_the_server(tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4"]
    with rollout_server(tiny_model, *flags, "--draft-vocab-size", "32", folder=tmp_path) as server:
        server.wait_until_idle()
        status, _ = server.call("POST", "/tlt/v1/lease", {"holder": "trainer/1", "ttl": 60})
        assert status == 201
        seq = server.state()["seq"]
        answers: list[object] = []
        polls = [
            threading.Thread(target=lambda path=path: answers.append(server.call("GET", path)))
            for path in (f"/tlt/v1/state?seq={seq}&wait=55", f"/tlt/v1/lease?seq={seq}&wait=55&holder=trainer/1")
        ]
        for poll in polls:
            poll.start()
        eventually(lambda: open_connections(server) >= len(polls), deadline=30, reason="both polls are open")
        began = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(40)
        for poll in polls:
            poll.join()
    assert time.monotonic() - began < 40
    reasons = [answer["lease"]["reason"] for status, answer in answers if status == 200]  # type: ignore[misc,index]
    assert reasons == ["Shutdown", "Shutdown"]


def open_connections(server: RolloutServer) -> int:
    port = int(server.url.rsplit(":", 1)[1])
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(item.status == psutil.CONN_ESTABLISHED and item.laddr.port == port for item in connections)
