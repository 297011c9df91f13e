#!/usr/bin/env python3
"""Builds the project's images with whichever of buildah, podman and docker is there.

Usage: images/build.py [base] [operator] [workloads] [workloads-gpu]      without names: operator and workloads

An image carries the digest of everything that went into it as a label, so an image that is up to date is found in a
second and not built again.  With buildah, which is what machines without an image registry use, the images stand on a
base that is made from Debian packages (images/base/build); otherwise on the public default of their Containerfiles.
Standard library only, because this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "images"
LABEL = "dev.tlt.inputs"
BUILDERS = ("buildah", "podman", "docker")
BASE_IMAGE = "localhost/tlt-base:bookworm"
CERTIFICATES = "/run/secrets/certificates"  # where a build finds the host's certificates while it downloads
HOST_UV_CACHE = "/var/cache/host-uv"  # where a build finds the host's uv cache
SECONDS_BETWEEN_LINES = 15.0
SOURCES = (".dockerignore", "LICENSE", "README.md", "operator", "pyproject.toml", "uv.lock", "workloads")


class BuildError(Exception):
    """A build cannot start or has failed; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image: where it is described and what goes into it."""

    name: str
    tag: str
    recipe: str  # Containerfile, or the program that makes the image
    inputs: tuple[str, ...]  # files and folders whose content decides about a rebuild
    expected_minutes: float  # cold, on two cores
    own_base: bool = True  # stands on BASE_IMAGE


IMAGES = {
    image.name: image
    for image in (
        Image(name="base", tag=BASE_IMAGE, recipe="images/base/build", inputs=(), expected_minutes=2.5, own_base=False),
        Image(
            name="operator",
            tag="localhost/tlt-operator:dev",
            recipe="images/operator/Containerfile",
            inputs=SOURCES,
            expected_minutes=1,
        ),
        Image(
            name="workloads",
            tag="localhost/tlt-workloads:dev",
            recipe="images/workloads/Containerfile",
            inputs=(*SOURCES, "images/workloads/trim.py", "images/workloads/demo_model.py"),
            expected_minutes=8,
        ),
        Image(
            name="workloads-gpu",
            tag="localhost/tlt-workloads-gpu:dev",
            recipe="images/workloads/Containerfile.gpu",
            inputs=SOURCES,
            expected_minutes=10,
            own_base=False,
        ),
    )
}


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def files(names: tuple[str, ...]) -> Iterator[Path]:
    """Every file below these names, in an order that does not depend on the machine.

    Raises:
        BuildError: a name does not exist.
    """
    for name in names:
        path = ROOT / name
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        elif path.is_file():
            yield path
        else:
            raise BuildError(f"{name} is missing in {ROOT}; every image needs it")


def digest(image: Image, arguments: dict[str, str]) -> str:
    """Digest of all that decides what an image holds."""
    total = hashlib.sha256()
    for file in files((image.recipe, *image.inputs)):
        total.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode & 0o111:o}\0".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    total.update(repr(sorted(arguments.items())).encode())
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Builder:
    """The command that builds images, in one of its three dialects."""

    name: str

    @classmethod
    def find(cls, wanted: str | None) -> Builder:
        """The builder asked for, else the first one that is installed.

        Raises:
            BuildError: it is not installed.
        """
        for name in (wanted,) if wanted else BUILDERS:
            if shutil.which(name) and (name != "docker" or cls._docker_answers()):
                return cls(name=name)
        raise BuildError(f"no {wanted or ' or '.join(BUILDERS)} found; on Debian: apt-get install buildah")

    @staticmethod
    def _docker_answers() -> bool:
        return subprocess.run(("docker", "info"), capture_output=True, check=False).returncode == 0

    @property
    def makes_base(self) -> bool:
        """Whether images stand on our own base here; podman and docker are used where registries can be reached."""
        return self.name == "buildah"

    def label(self, tag: str) -> str | None:
        """The inputs' digest of the image that has this tag; None without such an image."""
        inspect: tuple[str, ...] = (self.name, "image", "inspect")
        labels = ".Config.Labels"
        if self.name == "buildah":
            inspect, labels = ("buildah", "inspect", "--type", "image"), ".OCIv1.Config.Labels"
        command = (*inspect, "--format", f'{{{{index {labels} "{LABEL}"}}}}', tag)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    def size(self, tag: str) -> str:
        """Size of an image, for people."""
        command = (self.name, "images", "--format", "{{.Size}}", tag)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def command(self, image: Image, *, label: str, arguments: dict[str, str]) -> tuple[str, ...]:
        """The command line that builds an image from its Containerfile."""
        command = [self.name, "build", "--file", image.recipe, "--tag", image.tag, "--label", f"{LABEL}={label}"]
        if self.name == "buildah":
            command += ["--layers", "--isolation=chroot", "--force-rm"]
        if self.name != "docker":
            command += ["--network=host", "--ignorefile=.dockerignore"]
        arguments = dict(arguments)
        certificates = os.environ.get("SSL_CERT_FILE")
        if certificates:
            command += ["--secret", f"id=certificates,src={certificates}"]
            arguments["SSL_CERT_FILE"] = CERTIFICATES
        cache = uv_cache()
        if cache is not None and self.name != "docker":
            command += ["--volume", f"{cache}:{HOST_UV_CACHE}"]
            arguments["UV_CACHE_DIR"] = HOST_UV_CACHE
        for name, value in sorted(arguments.items()):
            command += ["--build-arg", f"{name}={value}"]
        return (*command, ".")


def uv_cache() -> Path | None:
    """The uv cache of this user, so that what the checkout's own environment downloaded is not downloaded again."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "uv"
    path = Path(os.environ.get("UV_CACHE_DIR", default))
    return path.resolve() if path.is_dir() else None


def run(name: str, command: tuple[str, ...], *, expected_minutes: float, environment: dict[str, str]) -> None:
    """Runs a build; its output goes into a log, its steps and the time onto the screen.

    Raises:
        BuildError: it failed; the message holds the end of the log.
    """
    log = LOGS / f"{name}.log"
    began = time.monotonic()
    step = "starting"
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(SECONDS_BETWEEN_LINES):
            say(f"  {name}: {clock(time.monotonic() - began)} of about {clock(60 * expected_minutes)}: {step}")

    reporter = threading.Thread(target=repeat, daemon=True)
    reporter.start()
    try:
        with (
            log.open("w", buffering=1) as output,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            for line in process.stdout or ():
                output.write(line)
                if "STEP " in line or line.startswith(("#", "I: ")):
                    step = " ".join(line.split())[:100]
    finally:
        done.set()
        reporter.join()
    if process.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise BuildError(f"{name}: the build failed after {clock(time.monotonic() - began)}; end of {log}:\n{end}")


def build(image: Image, *, builder: Builder, arguments: dict[str, str], force: bool) -> None:
    """Builds one image unless it is up to date.

    Raises:
        BuildError: it cannot be built.
    """
    base = builder.label(arguments["BASE_IMAGE"]) if "BASE_IMAGE" in arguments else None
    wanted = digest(image, arguments | ({"base": base} if base else {}))
    if not force and builder.label(image.tag) == wanted:
        say(f"  {image.name}: {image.tag} is up to date ({builder.size(image.tag)})")
        return
    began = time.monotonic()
    expected = clock(60 * image.expected_minutes)
    say(f"  {image.name}: building {image.tag} with {builder.name}, about {expected} from nothing")
    if image.recipe.endswith("/build"):
        command: tuple[str, ...] = (str(ROOT / image.recipe), image.tag)
    else:
        command = builder.command(image, label=wanted, arguments=arguments)
    run(image.name, command, expected_minutes=image.expected_minutes, environment={"INPUTS": wanted})
    if builder.name == "buildah" and image.recipe.endswith("Containerfile"):
        forget_unused_layers(image)
    say(f"  {image.name}: {image.tag} built in {clock(time.monotonic() - began)} ({builder.size(image.tag)})")


def forget_unused_layers(image: Image) -> None:
    """Removes what earlier builds of an image left and its last build did not use: 5 GB for each change of the lock.

    buildah keeps every step of every build as an image without a name and never removes one.  What a build used stands
    in its log, and what earlier builds left is written down beside it.
    """
    log = (LOGS / f"{image.name}.log").read_text(errors="replace")
    used = dict.fromkeys(re.findall(r"^--> (?:Using cache )?([0-9a-f]{11})", log, re.MULTILINE))
    ledger = LOGS / f"{image.name}.layers"
    known = ledger.read_text().split() if ledger.exists() else []
    others = {word for file in LOGS.glob("*.layers") if file != ledger for word in file.read_text().split()}
    left = []
    for layer in reversed([layer for layer in known if layer not in used]):
        if layer not in others:
            subprocess.run(("buildah", "rmi", layer), capture_output=True, check=False)
        found = subprocess.run(("buildah", "inspect", "--type", "image", layer), capture_output=True, check=False)
        if found.returncode == 0:
            left.append(layer)
    ledger.write_text("\n".join([*reversed(left), *used]) + "\n")


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Lets a second builder of the same checkout wait, so that both do not build the same image."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("  waiting for another build in this checkout")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="images/build.py", description="Builds the project's images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"any of {', '.join(IMAGES)}")
    parser.add_argument("--builder", choices=BUILDERS, help="default: the first one installed")
    parser.add_argument("--base-image", help="an image with Python 3.11 to build on")
    parser.add_argument("--demo-model", default="smollm2-135m", choices=("smollm2-135m", "none"))
    parser.add_argument("--force", action="store_true", help="builds what is up to date as well")
    options = parser.parse_args(words)
    if unknown := sorted(set(options.images) - set(IMAGES)):
        parser.error(f"no image {', '.join(unknown)}; there are {', '.join(IMAGES)}")
    return options


def main(words: list[str]) -> int:
    """Builds the images named on the command line.

    Returns:
        Exit status: 0, or 1 when a build failed or could not start.
    """
    options = parse(words)
    chosen = [IMAGES[name] for name in options.images or ("operator", "workloads")]
    os.nice(10)  # a build must not slow down what else runs on the machine
    try:
        builder = Builder.find(options.builder)
        with only_one():
            base: str | None = options.base_image
            if base is None and builder.makes_base and any(image.own_base or image.name == "base" for image in chosen):
                build(IMAGES["base"], builder=builder, arguments={}, force=options.force and IMAGES["base"] in chosen)
                base = BASE_IMAGE
            for image in chosen:
                if image.name == "base":
                    continue
                arguments = {"BASE_IMAGE": base} if base and image.own_base else {}
                if image.name == "workloads":
                    arguments["DEMO_MODEL"] = options.demo_model
                build(image, builder=builder, arguments=arguments, force=options.force)
    except BuildError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
