"""The command line and environment that the server gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tlt_workloads.rollout import serve
from tlt_workloads.rollout.serve import (
    StartError,
    check_shared_memory,
    element_type_for,
    environment_for,
    parse,
    vllm_arguments,
)


def arguments(*given: str, drafter: Path | None = Path("/drafter"), element_type: str | None = "float32") -> list[str]:
    return vllm_arguments(parse(["--model", "/model", *given]), drafter=drafter, element_type=element_type)


def value(line: list[str], flag: str) -> str:
    assert line.count(flag) == 1
    return line[line.index(flag) + 1]


def test_the_loop_gets_the_flags_that_it_needs() -> None:
    line = arguments("--speculative-tokens", "2")
    assert json.loads(value(line, "--weight-transfer-config")) == {"backend": "tlt"}
    speculative = json.loads(value(line, "--speculative-config"))
    assert (speculative["method"], speculative["model"], speculative["num_speculative_tokens"]) == (
        "eagle3",
        "/drafter",
        2,
    )
    assert value(line, "--logprobs-mode") == "processed_logprobs"
    assert value(line, "--api-server-count") == "1"
    assert value(line, "--dtype") == "float32"


def test_two_pods_never_sample_the_same_words() -> None:
    settings = parse(["--model", "/model"])
    lines = [
        vllm_arguments(settings, drafter=None, element_type=None, pod=pod)
        for pod in ("rollout-0", "rollout-1", "rollout-0")
    ]
    first, second, again = (value(line, "--seed") for line in lines)
    assert first != second
    assert first == again, "a pod that restarts keeps its seed"


@pytest.mark.parametrize(
    "given",
    [("--dtype", "bfloat16"), ("--dtype=bfloat16",), ("--max_logprobs", "5"), ("--weight-transfer-config", "{}")],
)
def test_what_the_caller_says_is_left_alone(given: tuple[str, ...]) -> None:
    line = arguments(*given)
    flag = given[0].partition("=")[0]
    assert sum(word.partition("=")[0].replace("_", "-") == flag.replace("_", "-") for word in line) == 1


def test_an_automatic_element_type_is_decided_here() -> None:
    assert arguments("--dtype", "auto")[-2:] != ["--dtype", "auto"]
    line = arguments("--dtype", "auto")
    assert line[len(line) - line[::-1].index("--dtype")] == "float32"


def test_a_plain_server_has_no_drafter() -> None:
    assert not parse(["--model", "/model", "--no-speculation"]).speculate
    assert "--speculative-config" not in arguments(drafter=None)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f"}, "float32"),
        ({"avx512f", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        (set(), "float32"),
    ],
)
def test_the_element_type_follows_the_processor(flags: set[str], expected: str) -> None:
    assert element_type_for(frozenset(flags)) == expected


def test_too_little_shared_memory_is_said_before_anything_starts() -> None:
    check_shared_memory(160 << 20)
    with pytest.raises(StartError, match=r"64 MiB free.*emptyDir with medium Memory"):
        check_shared_memory(64 << 20)


def test_the_plugin_is_named_beside_others(tmp_path: Path) -> None:
    environment = {"VLLM_PLUGINS": "lora_filesystem_resolver", "HOME": str(tmp_path)}
    wanted = environment_for(environment, scratch=tmp_path, on_cpu=False)
    assert wanted["VLLM_PLUGINS"] == "lora_filesystem_resolver,tlt"
    assert (
        environment_for(wanted | {"HOME": str(tmp_path)}, scratch=tmp_path, on_cpu=False)["VLLM_PLUGINS"].count("tlt")
        == 1
    )


def test_with_a_read_only_home_caches_go_to_the_scratch_folder(tmp_path: Path) -> None:
    wanted = environment_for({"HOME": "/nonexistent"}, scratch=tmp_path, on_cpu=True)
    assert wanted["HOME"] == str(tmp_path)
    assert all(wanted[name].startswith(str(tmp_path)) for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"))
    assert wanted["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_a_store_that_cannot_be_used_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the pod that would refuse every drafter later on."""
    monkeypatch.setattr(sys, "argv", ["tlt-rollout", "--model", "/model"])
    monkeypatch.setattr(serve, "check_shared_memory", lambda _: None)
    monkeypatch.setenv("TLT_STORE_URL", "s3://key:secret@bucket/tlt")
    with pytest.raises(SystemExit, match=r"tlt-rollout: store\.url: .* holds credentials") as refused:
        serve.main()
    assert "secret@" not in str(refused.value)
