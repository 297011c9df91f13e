"""The layout keeps its promises: no package shadows the standard library, and the contract stays importable alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "workloads" / "__init__.py").exists()


def test_the_contract_needs_the_standard_library_only() -> None:
    heavy = "('torch', 'vllm', 'aiohttp')"
    program = f"import tlt_workloads.contract, sys; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "workloads")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"
