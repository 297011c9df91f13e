"""A policy as files: one in safetensors, or a folder of them as Hugging Face lays models out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch


class PolicyFileError(ValueError):
    """These files are no policy; the message names one."""


@contextlib.contextmanager
def open_policy(path: Path) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """Names and tensors of a policy, read one by one.

    Raises:
        PolicyFileError: there is nothing, or a file is not safetensors.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise PolicyFileError(f"update_info.path: no *.safetensors in {path}")
    with contextlib.ExitStack() as stack:
        opened = []
        for file in files:
            try:
                opened.append(stack.enter_context(safe_open(file, "pt")))
            except (OSError, SafetensorError) as error:
                raise PolicyFileError(
                    f"update_info.path: {file} is not a readable safetensors file: {error}"
                ) from error
        yield ((name, file.get_tensor(name)) for file in opened for name in file.keys())  # noqa: SIM118 - not a dict
