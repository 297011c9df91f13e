"""Real engines on this machine, outside a cluster, for benchmarks of the rollout plugin alone."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench.results import ROOT
from devcluster.settings import cache_folder
from tests.support.rollout_server import JOB, RolloutServer

FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "32", "--seed", "1")
SUBJECTS = (
    *(
        "a baker who sells rolls",
        "a train that is late",
        "the water cycle",
        "a birthday party",
        "the colour of the sky",
    ),
    *(
        "a way to sort numbers",
        "the rules of chess",
        "a town by the sea",
        "the life of a bee",
        "prime numbers",
        "bread",
    ),
    *("a letter to a friend", "the moon", "saving money", "a summer rain", "photosynthesis"),
)
REQUESTS = (
    "Explain {subject} step by step.",
    "Say one sentence about {subject}.",
    "Write a story about {subject}.",
    "List five facts about {subject}.",
)


def small_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, made from the package that ships it if it is not there."""
    folder = cache_folder() / "models" / "smollm2-135m-instruct"
    subprocess.run([sys.executable, ROOT / "images" / "workloads" / "convert_model.py", folder], check=True)
    return folder


def question(number: int) -> str:
    """One of 64 prompts in the model's chat format; their answers differ much in length."""
    text = REQUESTS[number % len(REQUESTS)].format(subject=SUBJECTS[number // len(REQUESTS) % len(SUBJECTS)])
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def answer(server: RolloutServer, prompt: str, **fields: object) -> int:
    """Tokens of the answer to a prompt.

    Raises:
        RuntimeError: the server did not answer it.
    """
    status, body = server.call("POST", "/v1/completions", {"model": "policy", "prompt": prompt, **fields})
    if status != 200:
        raise RuntimeError(f"{prompt!r}: {status} {body}")
    return int(body["usage"]["completion_tokens"])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How one batch was answered."""

    rate: float  # tokens per second of all requests together
    steps: tuple[float, ...]  # seconds between two tokens of one of them


def timed_batch(server: RolloutServer, *, requests: int, tokens: int, first: int = 0) -> Batch:
    """A batch that runs together, greedy and of fixed length, so that all do the same work; one request is streamed."""
    greedy: dict[str, object] = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        jobs = [pool.submit(answer, server, question(first + number), **greedy) for number in range(1, requests)]
        moments = arrivals(server, question(first), **greedy)
        total = sum(job.result() for job in jobs) + tokens
    rate = total / (time.monotonic() - began)
    return Batch(rate=rate, steps=tuple(later - earlier for earlier, later in itertools.pairwise(moments)))


def arrivals(server: RolloutServer, prompt: str, **fields: object) -> list[float]:
    """The moments (s, monotonic) at which the tokens of a streamed answer came."""
    body = {"model": "policy", "prompt": prompt, "stream": True, **fields}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as lines:
        return [time.monotonic() for line in lines if line.startswith(b"data: {")]


def configure(
    server: RolloutServer, *, capture: dict[str, object], draft_length: int, is_adaptive: bool = False
) -> None:
    """Tells a server what to record and how much to draft: so many tokens, or up to so many if it is adaptive.

    Raises:
        RuntimeError: it refuses.
    """
    mode = "Adaptive" if is_adaptive else "Static" if draft_length else "Off"
    config = {
        "job": JOB,
        "storeUrl": f"file://{server.store}",
        "capture": {"maxTokensPerStep": 1 << 30, **capture},
        "speculation": {"mode": mode, "draftLength": draft_length},
    }
    status, body = server.call("POST", "/tlt/v1/config", config)
    if status != 200:
        raise RuntimeError(f"the configuration was refused: {status} {body}")
