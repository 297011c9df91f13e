"""Builds the pinned Go modules into the cache, several at a time, each one once."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devcluster import binaries
from devcluster.binaries import GoModule
from devcluster.errors import DevclusterError
from devcluster.progress import Progress, clock

CORES_PER_BUILD = 2
"""Go compiles packages in parallel but links each command on about one core: builds side by side fill the gaps."""
COMPILER_MEMORY = {"GOGC": "400", "GOMEMLIMIT": "3GiB"}
"""A compiler lives for seconds: collecting its garbage less often saves a fifth of all builds' time, within a bound."""
SLOWEST_FIRST = "the longest build decides when all are done, so it starts first"


def missing(folder: Path, modules: Sequence[GoModule]) -> list[GoModule]:
    """Modules without a build for their current pins and flags; slowest first."""
    absent = [module for module in modules if not binaries.is_built(folder, module)]
    return sorted(absent, key=lambda module: -module.expected_seconds)


def build(cache: Path, modules: Sequence[GoModule], *, go: Path, say: Callable[[str], None]) -> None:
    """Build `modules` into ``cache/bin/<module>-<digest>/`` and refresh ``cache/commands``.

    Raises:
        DevclusterError: a build failed; the message ends with the compiler's last lines and names its log.
    """
    workers = max(2, (os.cpu_count() or 1) // CORES_PER_BUILD)
    began = time.monotonic()
    names = ", ".join(f"{module.name} {module.version}" for module in modules)
    say(f"building {names} ({min(workers, len(modules))} at a time)")
    with Progress() as progress, ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_build_one, cache, module, go=go, progress=progress) for module in modules]
        failures = [str(error) for error in (task.exception() for task in running) if error is not None]
    if failures:
        raise DevclusterError("\n".join(failures))
    say(f"built in {clock(time.monotonic() - began)}")


def arguments(module: GoModule, *, go: Path, output: Path) -> list[str]:
    """The command line that builds a module's commands into the folder `output`."""
    tags = ["-tags", module.tags] if module.tags else []
    # The linker leaves debug information out (-s -w), so the compiler need not write any.
    flags = ["-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", "-ldflags", module.linker_flags, *tags]
    return [str(go), "build", *flags, "-o", f"{output}/", *module.packages]


def link_commands(cache: Path) -> Path:
    """Point ``cache/commands`` at the newest build of every command.

    Returns:
        the folder, to be put on PATH.
    """
    folder = cache / "commands"
    folder.mkdir(parents=True, exist_ok=True)
    for module in binaries.MODULES:
        for command in module.commands:
            source = binaries.location(cache / "bin", module) / command
            link = folder / command
            if source.exists() and not (link.is_symlink() and link.readlink() == source):
                fresh = folder / f".{command}"
                fresh.unlink(missing_ok=True)
                fresh.symlink_to(source)
                fresh.rename(link)
    return folder


def _build_one(cache: Path, module: GoModule, *, go: Path, progress: Progress) -> None:
    final = binaries.location(cache / "bin", module)
    # Built beside its place and renamed when complete: an interrupted build is never taken for a finished one.
    partial = final.with_name(f".{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log = cache / "build-logs" / f"{module.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **COMPILER_MEMORY,
        "CGO_ENABLED": "1" if module.needs_c else "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    with progress.job(f"{module.name} {module.version}", expected_seconds=module.expected_seconds):
        with log.open("wb") as output:
            done = subprocess.run(
                arguments(module, go=go, output=partial),
                cwd=module.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise DevclusterError(f"{module.name} did not build (log: {log}):\n{tail}")
    for given, ours in module.renamed:
        (partial / given).rename(partial / ours)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
