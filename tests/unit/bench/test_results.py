"""The format of result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import results


def test_a_result_names_what_ran_where_and_what_came_out(tmp_path: Path) -> None:
    path = results.write("demo", command="make demo", metrics={"idle_s": 12.34567, "rl_steps": 6}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert content.keys() == {"benchmark", "command", "commit", "date", "machine", "versions", "metrics"}
    assert content["machine"].keys() == {"cpu", "isa", "cores", "memory_gib"}
    assert content["metrics"] == {"idle_s": 12.35, "rl_steps": 6}


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    results.write("demo", command="make demo", metrics={"idle_s": None}, folder=tmp_path)
    assert results.read("demo", folder=tmp_path)["metrics"] == {}


def test_a_missing_result_is_empty(tmp_path: Path) -> None:
    assert results.read("never", folder=tmp_path) == {}


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.95, 4.0), (0.0, 1.0), (1.0, 4.0)])
def test_percentiles_are_values_that_occurred(share: float, value: float) -> None:
    assert results.percentile([4.0, 1.0, 3.0, 2.0], share) == value


def test_nothing_has_no_percentile() -> None:
    assert results.percentile([], 0.5) is None


@pytest.mark.parametrize(("count", "interval"), [(1, (1, 1)), (5, (1, 5)), (40, (14, 27))])
def test_the_interval_of_a_median_narrows_with_the_number_of_values(count: int, interval: tuple[int, int]) -> None:
    assert results.median_interval(range(count, 0, -1)) == interval
