"""What the trainer costs and saves, on this machine's processor or, with `--device cuda`, on its GPU.

On the processor: captures answers of SmolLM2-135M with the plugin, solves for a drafter, and then

- trains the same batches packed and padded (`packing_ratio`, samples per second),
- takes one pass over the answers with this trainer and with speculators' own at the fastest of its settings, and the
  same number of tokens in an optimiser step (`speculators_ratio`, tokens per second; held-out losses beside it),
- measures how long training stands still for a checkpoint (`checkpoint_stall_ratio`),
- runs windows of a pod from nothing and from a lease, with a store ten times the memory for data.

On a GPU: a drafter of Qwen3-8B's size on random hidden states, beside speculators' trainer, compiled cold and warm.

python -m bench.trainer [--tokens 20000] [--data FOLDER]
python -m bench.trainer --device cuda [--shape qwen3-8b] [--rows 8192] [--steps 20]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from bench import tables
from bench.demo.console import Console
from bench.trainer import card, checkpoints, peer, speed
from bench.trainer import windows as window_bench
from bench.trainer.data import Material, prepare
from tests.support.rollout_server import JOB
from tlt_workloads.drafter import drafter_tensors
from tlt_workloads.shards import job_shards
from tlt_workloads.trainer.learner import OptimiserSettings

PEER_LENGTHS = (512, 1024, 2048)  # rows of its batches
PEER_WORKERS = (0, 1)
SEARCH_STEPS = 3
OUR_ROWS = (256, 512, 1024)
STORE_TIMES = 10  # the store in units of the memory for data
MIB = 1 << 20

Metrics = dict[str, float | int | None]


def measure(console: Console, folder: Path, *, tokens: int, rounds: int) -> Metrics:
    """Everything that needs no GPU."""
    material = prepare(console, folder, tokens=tokens)
    with console.stage("packed and padded batches", expected=60):
        packing = speed.packing(material, batches=2 * rounds)
    console.say(f"  {packing}")
    compared = compare(console, material, rounds=rounds)
    with console.stage("checkpoints", expected=60):
        stalls = checkpoints.stalls(material, rounds=3 * rounds)
    console.say(f"  {stalls}")
    return {
        "packing_ratio": packing.packed / packing.padded,
        **compared,
        "checkpoint_stall_ratio": stalls.full / stalls.ours,
        **windows_of(console, material, rounds=rounds),
        "packed_samples_per_s": packing.packed,
        "padded_samples_per_s": packing.padded,
        "padded_rows_filled": packing.filled,
        **lengths_of(material),
        "checkpoint_stall_s": stalls.ours,
        "checkpoint_durable_s": stalls.background,
        "checkpoint_slowed_s": stalls.slowed,
        "checkpoint_full_s": stalls.full,
        "checkpoint_mb": stalls.our_bytes / 1e6,
        "checkpoint_full_mb": stalls.full_bytes / 1e6,
    }


def compare(console: Console, material: Material, *, rounds: int) -> Metrics:
    """The fastest settings of each side over the same answers."""
    peer.write_data(material)
    found: dict[tuple[int, str, int], float] = {}
    for length, attention in itertools.product(PEER_LENGTHS, peer.ATTENTIONS):
        with console.stage(f"speculators' trainer, {length} rows, {attention}", expected=60):
            pace = peer.peer_pace(material, length=length, attention=attention, workers=0, steps=SEARCH_STEPS)
        found[length, attention, 0] = pace.rate
        console.say(f"  {pace.rate:.0f} tokens/s")
    length, attention, _ = max(found, key=found.__getitem__)
    for workers in PEER_WORKERS[1:]:
        with console.stage(f"speculators' trainer, {workers} loader process", expected=90):
            pace = peer.peer_pace(material, length=length, attention=attention, workers=workers, steps=SEARCH_STEPS)
        found[length, attention, workers] = pace.rate
        console.say(f"  {pace.rate:.0f} tokens/s")
    length, attention, workers = max(found, key=found.__getitem__)
    own: dict[int, float] = {}
    for rows in OUR_ROWS:
        own[rows] = speed.our_pace(material, step_tokens=length, micro_rows=rows, limit=SEARCH_STEPS).rate
        console.say(f"  ours, {rows} rows: {own[rows]:.0f} tokens/s")
    rows = max(own, key=own.__getitem__)
    theirs, ours = [], []
    for turn in range(rounds):
        with console.stage(f"a pass with each, {turn + 1} of {rounds}", expected=200):
            theirs.append(peer.peer_pace(material, length=length, attention=attention, workers=workers, steps=0))
            step_tokens = theirs[-1].tokens // theirs[-1].steps
            ours.append(speed.our_pace(material, step_tokens=step_tokens, micro_rows=rows))
        console.say(f"  ours {ours[-1]}, speculators' {theirs[-1]}")
    small = speed.our_pace(
        material, step_tokens=OptimiserSettings(learning_rate=0).step_tokens, micro_rows=rows, limit=20
    )
    return {
        "speculators_ratio": statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True)),
        "tokens_per_s": statistics.median(item.rate for item in ours),
        "speculators_tokens_per_s": statistics.median(item.rate for item in theirs),
        "held_out_loss": ours[-1].held_out_loss,
        "speculators_held_out_loss": theirs[-1].held_out_loss,
        "micro_step_rows": rows,
        "optimiser_steps": ours[-1].steps,
        "speculators_optimiser_steps": theirs[-1].steps,
        "speculators_rows": length,
        "speculators_sdpa": int(attention == "sdpa"),
        "speculators_loader_processes": workers,
        "default_step_tokens_per_s": small.rate,
    }


def windows_of(console: Console, material: Material, *, rounds: int) -> Metrics:
    """A pod whose memory for data is a tenth of the store."""
    stored = sum(entry.size for entry in job_shards(material.store))
    largest = max(entry.size for entry in job_shards(material.store))
    memory = stored // STORE_TIMES
    with console.stage("windows of a pod", expected=120):
        found = window_bench.windows(material.folder, material.model, job=JOB, count=3 * rounds, data_memory=memory)
    console.say(f"  {found}")
    return {
        "cold_start_s": found.cold,
        "warm_start_s": statistics.median(found.warm),
        "warm_start_worst_s": max(found.warm),
        "warm_ready_s": statistics.median(found.ready),
        "peak_memory_mb": found.peak / 1e6,
        "peak_memory_bound_mb": (found.base + memory_bound(material, data_memory=memory, largest=largest)) / 1e6,
        "warm_process_memory_mb": found.base / 1e6,
        "store_mb": stored / 1e6,
        "data_memory_mb": memory / 1e6,
        "largest_shard_mb": largest / 1e6,
    }


def memory_bound(material: Material, *, data_memory: int, largest: int) -> int:
    """Bytes that a worker may have beyond the process that it is forked from.

    What is borrowed from the policy; 13 times the trained weights in float32 (weights, gradient, two moments and the
    mean, and of a checkpoint the copy and the file); the memory for data; a shard three times while it is read; and
    something for a micro-step and the matrices of the first solution.
    """
    specs = drafter_tensors(material.shape)
    head = material.shape.draft_vocab_size * material.shape.hidden_size
    trained = sum(math.prod(spec.shape) for name, spec in specs.items() if name not in ("lm_head.weight", "d2t", "t2d"))
    borrowed = material.target.embedding().nbytes + 2 * 4 * head
    return borrowed + 13 * 4 * trained + data_memory + 3 * largest + 256 * MIB


def lengths_of(material: Material) -> Metrics:
    """How long the answers are."""
    lengths = sorted(material.lengths())
    return {
        "answers": len(lengths),
        "answer_tokens_median": statistics.median(lengths),
        "answer_tokens_mean": statistics.mean(lengths),
        "answer_tokens_p95": lengths[int(0.95 * (len(lengths) - 1))],
        "answer_tokens_longest": lengths[-1],
    }


def main() -> int:
    """Measures, writes bench/results/trainer.json (on a GPU: trainer_gpu.json) and the page that is made from it."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=card.SHAPES, help="of a drafter on random hidden states")
    parser.add_argument("--rows", type=int, default=8192, help="of a step on random hidden states (default 8192)")
    parser.add_argument("--steps", type=int, default=20, help="on random hidden states (default 20)")
    parser.add_argument("--tokens", type=int, default=20_000, help="to capture (default 20000)")
    parser.add_argument("--rounds", type=int, default=2, help="of what is compared (default 2)")
    parser.add_argument("--data", type=Path, help="folder to capture into, or where that was done before")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    for name in ("rows", "steps", "tokens", "rounds"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: {getattr(options, name)} is not above 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device; `--device cpu --shape tiny` runs the same code")
    if options.device == "cuda" or options.shape is not None:
        shape = options.shape or "qwen3-8b"
        found = card.compare(device=options.device, shape=shape, rows=options.rows, steps=options.steps)
        tables.publish("trainer", found, dry=options.dry or options.device == "cpu", file="trainer_gpu")
        return 0
    with contextlib.ExitStack() as stack:
        folder = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = measure(Console(), folder, tokens=options.tokens, rounds=options.rounds)
    tables.publish("trainer", found, dry=options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
