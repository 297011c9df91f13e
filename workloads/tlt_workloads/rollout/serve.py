"""`tlt-rollout`: vLLM's own server with the plugin, a first drafter and the flags that the loop needs.

Every flag of `vllm serve` may follow and wins over what is chosen here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tlt_workloads.contract import POD_NAME_VARIABLE, STORE_URL_VARIABLE
from tlt_workloads.drafter import DrafterError, write_initial_drafter
from tlt_workloads.rollout.compat import UnsupportedEngineError, check_engine_version, engine_version
from tlt_workloads.rollout.counters import create_page
from tlt_workloads.rollout.lossless import LossyOptionError, check_command_line
from tlt_workloads.rollout.placement import PlacementError, emulated_cores, pin
from tlt_workloads.store_urls import StoreError, check_store_url

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # without them a CPU emulates bfloat16, at a tenth of the speed
UNTRAINED_VARIABLE = "TLT_UNTRAINED_DRAFTER"  # "1": the drafter that the server starts with guesses at random
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - vLLM's processes talk through it
SHARED_MEMORY_NEEDED = 160 << 20  # bytes of vLLM's message queue; a container has 64 MiB unless told otherwise
DRAFT_SAMPLINGS = ("probabilistic", "greedy")
CACHE_VARIABLES = ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "MPLCONFIGDIR")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What this command itself decides."""

    model: str
    speculate: bool
    speculative_tokens: int
    draft_sampling: str
    draft_vocab_size: int
    drafter_folder: Path | None  # None: an untrained one is written
    rest: tuple[str, ...]  # vLLM's flags


def parse(arguments: Sequence[str]) -> Settings:
    """Reads the command line; unknown flags are vLLM's."""
    parser = argparse.ArgumentParser(prog="tlt-rollout", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or name of the policy's model")
    parser.add_argument("--no-speculation", action="store_true", help="a plain server, for comparison")
    parser.add_argument("--speculative-tokens", type=int, default=3, help="longest draft (default 3)")
    parser.add_argument(
        "--draft-sampling",
        choices=DRAFT_SAMPLINGS,
        default=DRAFT_SAMPLINGS[0],
        help="how tokens are drafted when answers are sampled: from the drafter's probabilities, of which more are "
        "accepted (default), or always the likeliest, so that a request's seed alone decides its answer",
    )
    parser.add_argument("--draft-vocab-size", type=int, default=8192, help="tokens that can be drafted (default 8192)")
    parser.add_argument("--drafter-folder", type=Path, help="an EAGLE-3 drafter to start with")
    known, rest = parser.parse_known_args(arguments)
    return Settings(
        model=known.model,
        speculate=not known.no_speculation,
        speculative_tokens=known.speculative_tokens,
        draft_sampling=known.draft_sampling,
        draft_vocab_size=known.draft_vocab_size,
        drafter_folder=known.drafter_folder,
        rest=tuple(rest),
    )


def vllm_arguments(
    settings: Settings, *, drafter: Path | None, element_type: str | None, pod: str | None = None
) -> list[str]:
    """vLLM's command line; a flag that the caller gave is left alone."""
    flags: dict[str, str] = {
        "--model": settings.model,
        "--api-server-count": "1",
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "-1",
        "--weight-transfer-config": json.dumps({"backend": "tlt"}),
    }
    if pod is not None:
        # vLLM seeds every server alike: two pods given the same prompt would then answer with the same words, and a
        # group of samples would be half as large as the learner believes.
        flags["--seed"] = str(zlib.crc32(pod.encode()) % (1 << 31))
    if element_type is not None:
        flags["--dtype"] = element_type
    if drafter is not None:
        flags["--speculative-config"] = json.dumps(
            speculative_config(drafter, settings.speculative_tokens, sampling=settings.draft_sampling)
        )
    given = {argument.partition("=")[0].replace("_", "-") for argument in settings.rest if argument.startswith("--")}
    if _asks_for_automatic_type(settings.rest):
        given.discard("--dtype")
    chosen = [word for flag, value in flags.items() if flag not in given for word in (flag, value)]
    return [*settings.rest, *chosen]


def speculative_config(drafter: Path, tokens: int, *, sampling: str = DRAFT_SAMPLINGS[0]) -> dict[str, object]:
    """EAGLE-3 by name, because vLLM takes a local folder for a draft model otherwise; with a schedule, so that it can
    be replaced later without another kind of CUDA graph.

    Drafts are sampled, as in the first papers (arXiv 2211.17192): then a token is accepted by as much as drafter and
    policy overlap, while of a greedy draft only the policy's probability of that one token counts.
    """
    return {
        "method": "eagle3",
        "model": str(drafter),
        "num_speculative_tokens": tokens,
        "draft_sample_method": sampling,
        "num_speculative_tokens_per_batch_size": [[1, 1 << 20, tokens]],
    }


def element_type_for(processor_flags: frozenset[str]) -> str:
    """The element type that a CPU of these abilities computes fastest in."""
    return "bfloat16" if processor_flags & BF16_FLAGS else "float32"


def environment_for(environment: Mapping[str, str], *, scratch: Path, on_cpu: bool) -> dict[str, str]:
    """What vLLM must find in its environment and does not: the plugin, writable caches, this model runner."""
    plugins = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    wanted = {
        "VLLM_PLUGINS": ",".join([*plugins, *(["tlt"] if "tlt" not in plugins else [])]),
        # The capture tap sits in the first model runner; the second one has no such seam yet.
        "VLLM_USE_V2_MODEL_RUNNER": environment.get("VLLM_USE_V2_MODEL_RUNNER", "0"),
        "VLLM_NO_USAGE_STATS": environment.get("VLLM_NO_USAGE_STATS", "1"),
    }
    if on_cpu:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = environment.get("VLLM_CPU_KVCACHE_SPACE", "1")
    if not os.access(environment.get("HOME", "/"), os.W_OK):
        wanted["HOME"] = str(scratch)
        wanted |= {name: environment.get(name, str(scratch / "cache")) for name in CACHE_VARIABLES}
    return wanted


class StartError(RuntimeError):
    """The server cannot run here; the message says what to change."""


def check_shared_memory(free: int) -> None:
    """Refuses a container whose shared memory is too small for vLLM.

    Raises:
        StartError: names the size and the way out.
    """
    if free < SHARED_MEMORY_NEEDED:
        raise StartError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, vLLM needs {SHARED_MEMORY_NEEDED >> 20}; "
            "mount an emptyDir with medium Memory there"
        )


def main() -> None:
    """Prepares and becomes the server; what is wrong with the command line or the place is said in one sentence."""
    settings = parse(sys.argv[1:])
    try:
        _prepare(settings)
    except (DrafterError, LossyOptionError, PlacementError, StartError, StoreError, UnsupportedEngineError) as error:
        raise SystemExit(f"tlt-rollout: {error}") from error

    # Not the `vllm` command: it looks for the metadata of a distribution that the CPU build does not bear the name of.
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    serve()


def _prepare(settings: Settings) -> None:
    check_shared_memory(shutil.disk_usage(SHARED_MEMORY).free)
    if store := os.environ.get(STORE_URL_VARIABLE):
        check_store_url(store)
    scratch = Path(os.environ.get("TLT_SCRATCH") or Path(tempfile.gettempdir()) / "tlt")
    scratch.mkdir(parents=True, exist_ok=True)
    cores = emulated_cores(os.environ, available=frozenset(os.sched_getaffinity(0)))
    if cores:
        os.environ.update(pin(cores))

    check_engine_version(engine_version())
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    os.environ.update(environment_for(os.environ, scratch=scratch, on_cpu=on_cpu))

    check_command_line(settings.rest)  # before anything is written for a server that will not start
    create_page()
    element_type = element_type_for(_processor_flags()) if on_cpu else None
    drafter = _first_drafter(settings, scratch) if settings.speculate else None
    os.environ[UNTRAINED_VARIABLE] = str(int(settings.drafter_folder is None))
    pod = os.environ.get(POD_NAME_VARIABLE) or socket.gethostname()
    sys.argv = [sys.argv[0], *vllm_arguments(settings, drafter=drafter, element_type=element_type, pod=pod)]


def _first_drafter(settings: Settings, scratch: Path) -> Path:
    if settings.drafter_folder is not None:
        return settings.drafter_folder
    folder = scratch / "drafter"
    write_initial_drafter(_model_folder(settings.model), folder, draft_vocab_size=settings.draft_vocab_size)
    return folder


def _model_folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model))


def _asks_for_automatic_type(arguments: Sequence[str]) -> bool:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return any(flag == "--dtype" and value == "auto" for flag, value in pairwise(words))


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line.partition(":")[2] for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").split())


if __name__ == "__main__":
    main()
