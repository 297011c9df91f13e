"""torchft's coordination, without torchft's Python package.

Importing `torchft` imports torch and OpenTelemetry's exporters.  A lighthouse needs neither, and would be a process of
hundreds of megabytes; the compiled module holds all that is used here and stands by itself.
"""

from __future__ import annotations

import functools
import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from typing import Any

_NAME = "torchft._torchft"


@functools.cache
def coordination() -> Any:
    """The compiled module with `LighthouseServer` and `LighthouseClient`.

    Raises:
        ImportError: torchft is not installed, or has no such module.
    """
    package = importlib.util.find_spec("torchft")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        for suffix in EXTENSION_SUFFIXES:
            path = Path(folder) / f"_torchft{suffix}"
            if path.is_file():
                return _load(path)
    raise ImportError("torchft is not installed: add tlt-operator[trainer]")


def _load(path: Path) -> Any:
    loader = ExtensionFileLoader(_NAME, str(path))
    spec = importlib.util.spec_from_loader(_NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
