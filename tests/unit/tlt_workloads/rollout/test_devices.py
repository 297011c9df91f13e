"""What a container says of devices that it has without a claim."""

from __future__ import annotations

import pytest

from tlt_workloads.rollout.devices import visible_devices


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        ("GPU-1b2c3d4e,GPU-5f6a7b8c", ("GPU-1b2c3d4e", "GPU-5f6a7b8c")),
        ("0, 1 ,0", ("0", "1")),
        ("all", ("all",)),
        ("void", ()),
        ("none", ()),
        ("", ()),
        (",", ()),
    ],
)
def test_ids_are_told_as_the_runtime_was_told_them(value: str, devices: tuple[str, ...]) -> None:
    assert visible_devices({"NVIDIA_VISIBLE_DEVICES": value}) == devices


def test_a_container_that_was_told_nothing_has_none() -> None:
    assert visible_devices({}) == ()
