"""The performance page shows what the result files say."""

from __future__ import annotations

import pytest

from bench import tables


def test_the_page_is_made_from_the_current_results() -> None:
    assert tables.PAGE.read_text() == tables.page()


def test_every_figure_has_a_row() -> None:
    result = {
        "benchmark": "swap",
        "command": "python -m bench.swap",
        "commit": "abc",
        "date": "2026-01-02T03:04:05Z",
        "machine": {"cpu": "a CPU", "isa": ["avx2"], "cores": 2, "memory_gib": 24.0},
        "metrics": {"stall_p95_s": 0.04, "aborted_requests": 0},
    }
    text = tables.section(result)
    assert "| `stall_p95_s` | 0.04 |" in text
    assert "| `aborted_requests` | 0 |" in text
    assert "python -m bench.swap" in text


@pytest.mark.parametrize("given", [["--data", "/mnt/rows"], ["--data=/mnt/rows"]])
def test_a_command_names_no_folder_of_this_machine(given: list[str]) -> None:
    assert tables.command("objectives", ["--tokens", "9", *given, "--dry"]) == (
        "python -m bench.objectives --tokens 9 --dry"
    )
