"""Emulated accelerators."""

from __future__ import annotations

import pytest

from tlt_workloads.rollout.placement import PlacementError, emulated_cores


def test_a_named_device_is_a_core() -> None:
    environment = {"GPU_DEVICE_1": "gpu-1", "GPU_DEVICE_1_SHARING_STRATEGY": "TimeSlicing", "HOME": "/"}
    assert emulated_cores(environment, available=frozenset({0, 1})) == (1,)


def test_several_devices_are_several_cores() -> None:
    environment = {"GPU_DEVICE_0": "gpu-2", "GPU_DEVICE_1": "gpu-0", "GPU_DEVICE_2": "gpu-2"}
    assert emulated_cores(environment, available=frozenset({0, 1, 2})) == (2, 0)


def test_without_a_device_nothing_is_pinned() -> None:
    assert emulated_cores({"GPU_DEVICE_0": "0000:01:00.0"}, available=frozenset({0})) == ()


def test_a_core_that_is_not_there_is_an_error() -> None:
    with pytest.raises(PlacementError, match="GPU_DEVICE_0: gpu-7"):
        emulated_cores({"GPU_DEVICE_0": "gpu-7"}, available=frozenset({0, 1}))
