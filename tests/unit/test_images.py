"""The image builder decides rightly about rebuilding, speaks each builder's dialect and bakes in no host file."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

from images import build
from tlt_workloads.store_urls import OBJECT_SCHEMES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "images").rglob("Containerfile*"))
IMAGE = build.Image(name="toy", tag="localhost/toy:dev", recipe="Containerfile", inputs=("source",), expected_minutes=1)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one image made of two files."""
    (tmp_path / "Containerfile").write_text("FROM scratch\n")
    (tmp_path / "source" / "__pycache__").mkdir(parents=True)
    (tmp_path / "source" / "main.py").write_text("print()\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


def test_an_image_is_built_again_when_anything_in_it_changed(checkout: Path) -> None:
    first = build.digest(IMAGE, {"A": "1"})
    assert build.digest(IMAGE, {"A": "2"}) != first
    (checkout / "source" / "main.py").write_text("print(1)\n")
    second = build.digest(IMAGE, {"A": "1"})
    assert second != first
    (checkout / "source" / "main.py").chmod(0o755)
    third = build.digest(IMAGE, {"A": "1"})
    assert third != second
    (checkout / "source" / "new.py").touch()
    fourth = build.digest(IMAGE, {"A": "1"})
    assert fourth != third
    (checkout / "Containerfile").write_text("FROM scratch AS other\n")
    assert build.digest(IMAGE, {"A": "1"}) != fourth


def test_compiled_files_and_times_decide_nothing(checkout: Path) -> None:
    first = build.digest(IMAGE, {})
    (checkout / "source" / "__pycache__" / "main.pyc").touch()
    (checkout / "source" / "main.py").touch()
    assert build.digest(IMAGE, {}) == first


def test_a_missing_input_is_named(checkout: Path) -> None:
    (checkout / "source" / "main.py").unlink()
    (checkout / "source" / "__pycache__").rmdir()
    (checkout / "source").rmdir()
    with pytest.raises(build.BuildError, match="source is missing"):
        build.digest(IMAGE, {})


@pytest.mark.parametrize("builder", build.BUILDERS)
def test_each_builder_gets_its_own_dialect(
    builder: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/host-ca.pem")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    command = build.Builder(name=builder).command(IMAGE, label="abc", arguments={"BASE_IMAGE": "base:1"})
    text = " ".join(command)
    assert command[:2] == (builder, "build")
    assert f"--label {build.LABEL}=abc" in text
    assert "--build-arg BASE_IMAGE=base:1" in text
    assert "--secret id=certificates,src=/etc/host-ca.pem" in text
    assert f"--build-arg SSL_CERT_FILE={build.CERTIFICATES}" in text
    assert ("--volume" in command) == (builder != "docker"), "docker build mounts nothing of the host"
    assert ("--isolation=chroot" in command) == (builder == "buildah")


def test_without_certificates_of_the_host_none_are_passed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    command = build.Builder(name="buildah").command(IMAGE, label="abc", arguments={})
    assert "--secret" not in command
    assert not [word for word in command if "SSL_CERT_FILE" in word]


def test_a_builder_that_is_not_there_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError, match="apt-get install buildah"):
        build.Builder.find(None)


def test_an_unknown_image_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.parse(["opperator"])
    assert "no image opperator" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.relative_to(ROOT).as_posix() for path in RECIPES])
def test_images_run_without_root_on_a_base_that_anybody_can_get(recipe: Path) -> None:
    text = recipe.read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "65532:65532"
    assert re.search(r"^ARG BASE_IMAGE=docker\.io/\S+:\S+$", text, re.MULTILINE)
    assert "ca-certificates.crt" not in text, "certificates of the host come as a secret and stay outside"


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.relative_to(ROOT).as_posix() for path in RECIPES])
def test_the_context_holds_what_is_copied_and_decides_about_rebuilds(recipe: Path) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    (image,) = (item for item in build.IMAGES.values() if item.recipe == recipe.relative_to(ROOT).as_posix())
    copied = [
        source
        for words in re.findall(r"^COPY (?!--from)(.+)$", recipe.read_text(), re.MULTILINE)
        for source in words.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), f".dockerignore keeps {source} out"
        assert source in image.inputs, f"{source} is no input of {image.name}"
        assert (ROOT / source).exists()


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if path.parent.name == "workloads"], ids=lambda it: it.name
)
def test_pods_and_trainers_can_open_every_scheme_of_the_custom_resource(recipe: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    chosen = set(re.findall(r"--extra (\w+)", recipe.read_text()))
    packages = {re.split("[<>=]", line)[0] for name in chosen for line in extras[name]}
    assert {scheme.package for scheme in OBJECT_SCHEMES.values()} <= packages
