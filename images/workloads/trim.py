"""Removes from this environment the CUDA files that a process on a CPU never opens.

The torch wheel of the ordinary package index is linked against CUDA: the loader opens a dozen of its libraries even
where no GPU is, so these must stay.  The others (kernels that are opened on first use, static libraries, headers) are a
gigabyte that no CPU pod can reach.  What must stay is not listed here but observed: a fresh interpreter imports what
the pods import and shows which files it has mapped.  A second one proves that the imports still work afterwards.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

IMPORTS = ("torch", "torch.distributed", "vllm", "vllm.v1.engine.async_llm", "speculators", "trl")
SHOW_MAPPED = "; ".join((*(f"import {name}" for name in IMPORTS), "print(open('/proc/self/maps').read())"))
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
CUDA_FOLDERS = (SITE_PACKAGES / "nvidia", SITE_PACKAGES / "torch" / "lib")


def mapped_files() -> frozenset[Path]:
    """Every file of this environment that a process has open after the imports."""
    command = (sys.executable, "-W", "ignore", "-c", SHOW_MAPPED)
    maps = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/") > 1)
    return frozenset(Path(path).resolve() for path in paths if path.startswith(str(SITE_PACKAGES)))


def is_python_package(path: Path) -> bool:
    """Whether the file is code or licence text, which costs nothing and may be imported or must be kept."""
    return path.suffix in {".py", ".pyc", ".pyi"} or path.name.upper().startswith("LICENSE")


def is_cuda_library(path: Path) -> bool:
    """Whether a file in torch's own library folder serves CUDA only."""
    return path.parent.name == "nvidia" or any(word in path.name for word in ("cuda", "nvrtc", "nvshmem"))


def unneeded(kept: frozenset[Path]) -> Iterable[Path]:
    """The CUDA files that nothing has mapped."""
    nvidia, torch_libraries = CUDA_FOLDERS
    candidates = [path for path in nvidia.rglob("*") if not is_python_package(path)]
    candidates += [path for path in torch_libraries.glob("*.so*") if is_cuda_library(path)]
    return (path for path in candidates if path.is_file() and path.resolve() not in kept)


def main() -> None:
    """Trims, says how much went, and fails when an import no longer works."""
    removed = 0
    for path in list(unneeded(mapped_files())):
        removed += path.lstat().st_size
        path.unlink()
    mapped_files()
    print(f"removed {removed / 1e6:,.0f} MB of CUDA files that no CPU process opens", flush=True)


if __name__ == "__main__":
    main()
