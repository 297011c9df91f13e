"""speculators' own trainer on the same answers, from the same drafter, in a process of its own.

Without a GPU its `Trainer` needs what the first lines of `allow_cpu` do; nothing of them is on the path of a step.
Everything else is its own: dataset, multipack loader, collation, mixed precision, optimiser, loop.

python -m bench.trainer.peer --folder FOLDER --length 1024 --attention sdpa --workers 0 --steps 0
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench import engines
from bench.results import ROOT
from bench.trainer.data import HELD_OUT_TOKENS, Material, held_out_loss
from bench.trainer.job import DRAFT_LENGTH, LOSS
from bench.trainer.speed import LEARNING_RATE, WARM_STEPS, Pace

ATTENTIONS = ("eager", "sdpa")
_DATA = "peer"


def peer_pace(material: Material, *, length: int, attention: str, workers: int, steps: int) -> Pace:
    """Runs it; `steps` = 0 takes the whole pass, and tells the loss."""
    command = [sys.executable, "-m", "bench.trainer.peer", "--folder", str(material.folder), "--length", str(length)]
    command += ["--attention", attention, "--workers", str(workers), "--steps", str(steps)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"speculators' trainer: {answer.stderr[-2000:]}")
    return Pace(**json.loads(answer.stdout.splitlines()[-1]))


def write_data(material: Material) -> int:
    """The answers in the layout of its dataset; how many are to train on, the held-out ones follow them."""
    from datasets import Dataset

    folder, feed = material.folder / _DATA, material.feed()
    training = list(feed.freshest(tokens=10**9))
    sequences = [*training, *feed.held_out(tokens=10**9)]
    (folder / "hidden_states").mkdir(parents=True, exist_ok=True)
    ids, masks = [], []
    for index, item in enumerate(sequences):
        tokens = item.token_ids[item.first_row : item.first_row + len(item.hidden_states)].long()
        mask = torch.arange(item.first_row, item.first_row + len(tokens)) >= item.prompt_length
        tensors = {"hidden_states": item.hidden_states.contiguous(), "token_ids": tokens.contiguous()}
        save_file(tensors, folder / "hidden_states" / f"hs_{index}.safetensors")
        ids.append(tokens.tolist())
        masks.append(mask.long().tolist())
    data = Dataset.from_dict({"input_ids": ids, "loss_mask": masks, "seq_len": [len(item) for item in ids]})
    data.set_format("torch")
    data.save_to_disk(str(folder))
    (folder / "share.json").write_text(json.dumps((len(training) + 0.5) / len(sequences)))
    return len(training)


def allow_cpu() -> type[Any]:
    """Its trainer, once it has been told that there is no GPU."""
    import speculators.train.checkpointer as checkpointer
    import speculators.train.distributed as distributed
    from speculators.train.trainer import Trainer

    torch.accelerator.synchronize = lambda *_, **__: None
    distributed._local_rank = torch.device("cpu")
    checkpointer.get_current_device = lambda: "cpu"

    class CpuTrainer(Trainer):  # type: ignore[misc]
        def setup_optimizer(self) -> None:
            self.device_type = "cpu"
            super().setup_optimizer()

    return CpuTrainer


def _run(material: Material, *, length: int, attention: str, workers: int, steps: int) -> Pace:
    from hs_connectors import FileTransfer
    from speculators.models.eagle3.data import shift_batch
    from speculators.train.dataloader import create_train_val_loaders
    from speculators.train.trainer import TrainerConfig

    trainer_class, folder, model = allow_cpu(), material.folder / _DATA, material.start()
    model.config.transformer_layer_config._attn_implementation = attention
    for parameter in [*model.layers.parameters(), *model.fc.parameters(), *model.norm.parameters()]:
        parameter.requires_grad_(True)
    loaders = create_train_val_loaders(
        data_path=str(folder),
        total_seq_len=length,
        hidden_states_dtype=torch.bfloat16,
        transfer=FileTransfer(folder / "hidden_states"),
        vllm_endpoint="http://127.0.0.1:9/v1",
        on_missing="raise",
        verifier_name_or_path=str(material.model),
        request_timeout=5,
        max_retries=0,
        generation_validation_retries=0,
        max_consecutive_generation_failures=1,
        hidden_size=material.shape.hidden_size,
        num_target_layers=len(material.shape.layer_ids),
        num_workers=workers,
        prefetch_factor=2,
        preprocess=shift_batch,
        train_data_ratio=json.loads((folder / "share.json").read_text()),
    )
    call, _ = type(model).get_trainer_kwargs(
        loss_fn=LOSS, loss_implementation="eager", ttt_steps=DRAFT_LENGTH, ttt_step_loss_decay=0.8
    )
    with tempfile.TemporaryDirectory() as checkpoints:
        config = TrainerConfig(
            lr=LEARNING_RATE,
            num_epochs=1,
            save_path=checkpoints,
            train_call_kwargs=call,
            val_call_kwargs=call,
            optimizer="adamw",
            scheduler_type="none",
            log_freq=10**9,  # its timers and figures cost time
            max_steps=steps + WARM_STEPS if steps else None,
        )
        trainer = trainer_class(model, config, *loaders)
        counts: list[tuple[float, int]] = []
        seen: list[int] = []
        model.register_forward_pre_hook(
            lambda _module, _arguments, named: seen.append(int(named["loss_mask"].sum())), with_kwargs=True
        )
        trainer.train_epoch(0, step_callback=lambda: counts.append((time.perf_counter(), sum(seen))))
    (began, before), (ended, after) = counts[WARM_STEPS - 1], counts[-1]
    loss = None
    if not steps:
        model.config.transformer_layer_config._attn_implementation = "eager"
        loss = held_out_loss(model, material.feed().held_out(tokens=HELD_OUT_TOKENS))
    return Pace(tokens=after - before, seconds=ended - began, steps=len(counts) - WARM_STEPS, held_out_loss=loss)


def main() -> int:
    """Prints its pace as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer.peer", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--attention", choices=ATTENTIONS, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    material = Material(options.folder, engines.small_model())
    pace = _run(
        material, length=options.length, attention=options.attention, workers=options.workers, steps=options.steps
    )
    print(json.dumps(asdict(pace)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
