"""What learners send is understood; what makes no sense is refused by the field's name, before any engine sees it."""

from __future__ import annotations

from typing import Any

import pytest

from tlt_workloads.rollout.transport import Transport, TransportError, read_introduction, read_part

NCCL = {"master_address": "10.0.0.1", "master_port": 51216, "rank_offset": 1, "world_size": 3, "packed": True}
TENSORS = {"names": ["a", "b"], "dtype_names": ["bfloat16", "float32"], "shapes": [[2, 2], [3]]}


def test_an_address_means_nccl_and_nothing_means_a_file() -> None:
    assert read_introduction({}).transport is Transport.FILE
    assert read_introduction({"transport": "file"}).transport is Transport.FILE
    assert read_introduction(NCCL).nccl == NCCL
    assert read_introduction({"transport": "nccl", **NCCL}).nccl == NCCL


def test_a_path_means_a_file_and_names_mean_nccl() -> None:
    assert read_part({"path": "/tlt/p.safetensors"}).path == "/tlt/p.safetensors"
    part = read_part({**TENSORS, "packed": True, "is_checkpoint_format": True})
    assert (part.transport, part.nccl) == (Transport.NCCL, TENSORS)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"transport": "pigeon"}, "transport: 'pigeon' is not one of file, nccl"),
        ({"transport": ["file"]}, "transport:"),
        ({"path": "/x"}, r"init_info: \['path'\] mean nothing"),
        ({**NCCL, "master_address": ""}, "init_info.master_address"),
        ({**NCCL, "master_address": 5}, "init_info.master_address"),
        ({**NCCL, "master_port": 0}, "init_info.master_port: 0 is not a whole number from 1 to 65535"),
        ({**NCCL, "master_port": "51216"}, "init_info.master_port"),
        ({**NCCL, "world_size": True}, "init_info.world_size"),
        ({**NCCL, "world_size": 1}, "init_info.world_size"),
        ({**NCCL, "rank_offset": 1.5}, "init_info.rank_offset"),
    ],
)
def test_an_introduction_that_makes_no_sense(message: dict[str, Any], words: str) -> None:
    with pytest.raises(TransportError, match=words):
        read_introduction(message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "update_info.names: expected a list"),
        ({"transport": "file"}, "update_info.path"),
        ({"path": 7}, "update_info.path"),
        ({"path": ""}, "update_info.path"),
        ({"tensors": {"a": [1.0]}}, "update_info.names"),  # only within the worker's own process
        ({**TENSORS, "names": []}, "update_info.names"),
        ({**TENSORS, "names": ["a"]}, "differ in length"),
        ({**TENSORS, "names": ["a", 7]}, "update_info.names: expected strings"),
        ({**TENSORS, "dtype_names": ["bfloat16", "os.system"]}, "update_info.dtype_names: 'os.system'"),
        ({**TENSORS, "dtype_names": ["bfloat16", ["float32"]]}, "update_info.dtype_names"),
        ({**TENSORS, "shapes": [[2, -2], [3]]}, "update_info.shapes"),
        ({**TENSORS, "shapes": [[2, 2], 3]}, "update_info.shapes: 3"),
        ({**TENSORS, "shapes": [[2, 1 << 60], [3]]}, "update_info.shapes"),
    ],
)
def test_a_part_that_makes_no_sense(message: dict[str, Any], words: str) -> None:
    with pytest.raises(TransportError, match=words):
        read_part(message)
