"""GRPO on step-by-step arithmetic: a verifiable task whose answers differ widely in length.

TRL's own GRPOTrainer, unchanged; only the policy goes to the rollout pods by file (tlt_workloads.learner.trl_client).
Writes one line of JSON for each RL step to standard output and to `learner.jsonl` in the job's folder of the store.
Options come from the environment; `Options` lists them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tlt_workloads.learner import trl_client
from tlt_workloads.learner.trl_client import Activity, Span

INSTRUCTION = "Explain each step in full sentences, check the result, and then give the answer."
NAMES = ("Ada", "Ben", "Chloe", "Dev", "Ema", "Farid", "Grace", "Hugo")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps")
NUMBER = re.compile(r"-?\d[\d,]*")
BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # without them a CPU emulates bfloat16, far slower than float32


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen; the variable is the field's name in capitals, with GRPO_ before it."""

    model: str = "/opt/models/smollm2-135m-instruct"
    gateway: str = "http://grpo-gateway:8000"
    pods: int = 2  # waits until this many rollout pods serve
    patience: float = 900.0  # seconds to wait for them
    steps: int = 6
    prompts: int = 3  # per step
    generations: int = 4  # per prompt
    micro_batch: int = 2  # completions; TRL pads all to the longest
    max_tokens: int = 512
    temperature: float = 0.7
    learning_rate: float = 2e-6
    threads: int = 2
    seed: int = 7


def read_options(environment: Mapping[str, str]) -> Options:
    """Builds the options; a value that does not parse is named."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Options):
        text = environment.get(f"GRPO_{item.name.upper()}")
        if text is not None:
            kind = type(item.default)
            try:
                values[item.name] = kind(text)
            except ValueError:
                sys.exit(f"GRPO_{item.name.upper()}: {text!r} is not of type {kind.__name__}")
    return Options(**values)


@dataclass(frozen=True)
class Problem:
    """A question and its one right answer."""

    question: str
    answer: int


def make_problems(count: int, *, seed: int) -> list[Problem]:
    """A sum, a story and a journey by turns, so that each step has short answers and long ones."""
    dice = random.Random(seed)
    turns = ((_sum,), (_story, _boxes), (_journey,))
    return [dice.choice(turns[number % len(turns)])(dice) for number in range(count)]


def _sum(dice: random.Random) -> Problem:
    a, b = dice.randint(2, 20), dice.randint(2, 20)
    return Problem(f"What is {a} + {b}?", a + b)


def _story(dice: random.Random) -> Problem:
    (who, other), thing = dice.sample(NAMES, 2), dice.choice(THINGS)
    start, gift, lost = dice.randint(20, 60), dice.randint(2, 40), dice.randint(2, 19)
    text = (
        f"{who} has {start} {thing}. {other} gives {who} {gift} more, then {who} loses {lost}. "
        f"How many {thing} does {who} have?"
    )
    return Problem(text, start + gift - lost)


def _boxes(dice: random.Random) -> Problem:
    who, thing = dice.choice(NAMES), dice.choice(THINGS)
    boxes, each, sold = dice.randint(3, 12), dice.randint(3, 12), dice.randint(2, 8)
    rest = boxes * each - sold
    text = (
        f"{who} buys {boxes} boxes with {each} {thing} each, sells {sold} {thing} and shares the rest with a friend in "
        f"two equal parts, keeping any odd one. How many {thing} does {who} keep?"
    )
    return Problem(text, rest - rest // 2)


def _journey(dice: random.Random) -> Problem:
    speed, hours, more = dice.randint(20, 90), dice.randint(2, 9), dice.randint(5, 60)
    text = (
        f"A train travels {speed} miles per hour for {hours} hours, rests, and then travels {more} miles more, four "
        "times. How far does it travel in all? Show each leg of the journey."
    )
    return Problem(text, speed * hours + 4 * more)


def right_number(completions: Sequence[Any], answer: Sequence[int], **_: Any) -> list[float]:
    """1 when the last number of the text is the answer, a half when the answer is among the others."""
    return [_reward(item[0]["content"], wanted) for item, wanted in zip(completions, answer, strict=True)]


def _reward(text: str, wanted: int) -> float:
    numbers = [int(number.replace(",", "")) for number in NUMBER.findall(text)]
    if wanted not in numbers:
        return 0.0
    return 1.0 if numbers[-1] == wanted else 0.5


class StepLog(TrainerCallback):
    """One line of JSON for each RL step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spans: list[Span] = []
        self.lengths: list[int] = []
        self.step_began = time.time()

    def lengths_of(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """A reward of zero that only looks: TRL shows rewards the completions as they came."""
        self.lengths = [len(ids) for ids in completion_ids]
        return [0.0] * len(completion_ids)

    def on_log(
        self, _arguments: Any, state: Any, _control: Any, logs: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        """After each optimizer step."""
        if not logs or "reward" not in logs:
            return
        now = time.time()
        generation = self._seconds(Activity.GENERATE)
        sync = self._seconds(Activity.WRITE_POLICY, Activity.LOAD_POLICY)
        wall = now - self.step_began
        line = {
            "step": state.global_step,
            "began": round(self.step_began, 3),
            "ended": round(now, 3),
            "wallSeconds": round(wall, 3),
            "generationSeconds": round(generation, 3),
            "syncSeconds": round(sync, 3),
            "learnerSeconds": round(wall - generation - sync, 3),
            "tokens": sum(self.lengths),
            "lengths": self.lengths,
            "reward": round(logs["reward"], 4),
            "samplingLogpDifference": logs.get("sampling/sampling_logp_difference/mean"),
            "spans": [
                {"activity": span.activity.value, "begin": round(span.begin, 3), "end": round(span.end, 3)}
                for span in self.spans
            ],
        }
        text = json.dumps(line)
        print(text, flush=True)
        with self.path.open("a") as stream:
            stream.write(text + "\n")
        self.spans, self.step_began = [], now

    def _seconds(self, *activities: Activity) -> float:
        return sum(span.end - span.begin for span in self.spans if span.activity in activities)


def wait_for_pods(options: Options) -> None:
    """Returns when the gateway counts as many rollout pods as asked for."""
    deadline = time.monotonic() + options.patience
    trouble = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{options.gateway}/get_world_size", timeout=10) as answer:
                count = json.load(answer)["world_size"]
            if count >= options.pods:
                return
            trouble = f"{count} of {options.pods} rollout pods serve"
        except (OSError, urllib.error.URLError) as failure:
            trouble = f"{options.gateway}: {failure}"
        print(json.dumps({"waiting": trouble}), flush=True)
        time.sleep(5)
    sys.exit(f"gave up after {options.patience:.0f} s: {trouble}")


def has_fast_bfloat16() -> bool:
    """Whether bfloat16 pays: always on an accelerator, on a CPU by its abilities."""
    if torch.cuda.is_available():
        return True
    flags = Path("/proc/cpuinfo").read_text()
    return any(flag in flags for flag in BF16_FLAGS)


def main() -> None:
    """Trains."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = read_options(os.environ)
    torch.set_num_threads(options.threads)
    folder = trl_client.policy_folder()
    folder.mkdir(parents=True, exist_ok=True)
    log = StepLog(folder.parent / "learner.jsonl")
    trl_client.install(folder, observe=lambda span: log.spans.append(span))
    wait_for_pods(options)

    problems = make_problems(options.steps * options.prompts, seed=options.seed)
    rows = [
        {"prompt": [{"role": "user", "content": f"{item.question} {INSTRUCTION}"}], "answer": item.answer}
        for item in problems
    ]
    completions = options.prompts * options.generations
    config = GRPOConfig(
        output_dir="/tmp/grpo",
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=options.gateway,
        vllm_server_timeout=options.patience,
        use_cpu=not torch.cuda.is_available(),
        bf16=has_fast_bfloat16(),
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=completions // options.micro_batch,
        num_generations=options.generations,
        max_completion_length=options.max_tokens,
        temperature=options.temperature,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_steps=options.steps,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=options.seed,
    )
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=[right_number, log.lengths_of],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=[log],
    )
    log.step_began = time.time()
    trainer.train()
    print(json.dumps({"done": options.steps}), flush=True)


if __name__ == "__main__":
    main()
