"""Programs that run an engine in a process of their own and print one answer as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_MARK = "ANSWER "  # an engine prints much beside it


def print_answer(answer: object) -> None:
    """What such a program ends with."""
    print(f"{_MARK}{json.dumps(answer)}", flush=True)


def answer_of(program: str, *arguments: str, **environment: str) -> Any:
    """What a program prints when it is called so.

    Args:
        program: path of its file.
        arguments: of its command line.
        environment: further variables.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "workloads"), os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(
        [sys.executable, program, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith(_MARK)]
    assert lines, answer.stdout[-2000:] + answer.stderr[-4000:]
    return json.loads(lines[-1].removeprefix(_MARK))
