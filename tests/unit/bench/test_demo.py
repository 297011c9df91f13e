"""The demo's pure parts: what is told, what is applied, what is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.demo import deploy, picture
from bench.demo.console import StageError, clock, last_line, run_logged, tail
from bench.demo.deploy import Choices, split_image
from bench.demo.follow import Run, told
from bench.demo.recording import Recording
from bench.demo.report import command
from bench.demo.summary import Interval
from tests.unit.bench.test_summary import POD_A, POD_B, sample, step, worker

RUN = Run(name="demo", namespace="grpo-demo", steps=6)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (worker(1, POD_A, "Lent", edgeToLease=0.21), "lent 0.21 s after it fell idle"),
        (worker(1, POD_A, "Busy", handBack=0.08, reason="Request"), "back in 0.08 s (Request)"),
        ({"kind": "trainer", "pod": "t", "to": "Training", "rollout": POD_A}, f"{POD_A}: window begins"),
        ({"kind": "swap", "pod": POD_A, "revision": "r1", "seconds": 0.3, "stall": 0.012}, "stall 12 ms"),
        ({"kind": "revision", "pod": "r1", "to": "Active"}, "revision r1: Active"),
    ],
)
def test_a_spectator_hears_of_leases_windows_swaps_and_revisions(event: dict[str, Any], words: str) -> None:
    text = told(event)
    assert text is not None
    assert words in text


def test_a_spectator_is_spared_the_rest() -> None:
    assert told(worker(1, POD_A, "Busy")) is None
    assert told({"kind": "trainer", "pod": "t", "to": "Waiting"}) is None


def test_an_overlay_carries_the_clusters_names_and_the_steps() -> None:
    choices = Choices(
        workloads_image="registry:5000/tlt/workloads:1.2", storage_class="nfs", device_class="gpu.nvidia.com"
    )
    made = deploy.overlay(RUN, choices, steps=9)
    assert made["images"] == [
        {"name": "localhost/tlt-workloads", "newName": "registry:5000/tlt/workloads", "newTag": "1.2"}
    ]
    patches = {item["target"]["kind"]: json.loads(item["patch"])[0] for item in made["patches"]}
    assert patches["Job"]["value"] == {"name": "GRPO_STEPS", "value": "9"}
    assert patches["TLTJob"]["value"] == "registry:5000/tlt/workloads:1.2"
    assert patches["PersistentVolumeClaim"]["value"] == "nfs"
    assert patches["ResourceClaimTemplate"]["value"] == "gpu.nvidia.com"


def test_every_patched_field_exists_in_the_example() -> None:
    """A patch of kind `replace` on a field that was renamed would only fail in the cluster."""
    objects: dict[tuple[str, str], Any] = {}
    for file in ("store.yaml", "rollout.yaml", "learner.yaml", "tltjob.yaml"):
        for item in yaml.safe_load_all((deploy.EXAMPLE.parent / "base" / file).read_text()):
            objects[item["kind"], item["metadata"]["name"]] = item
    for patch in deploy.overlay(RUN, Choices(), steps=1)["patches"]:
        node = objects[patch["target"]["kind"], patch["target"]["name"]]
        for part in json.loads(patch["patch"])[0]["path"].strip("/").split("/"):
            if part == "-":
                assert isinstance(node, list)
            else:
                node = node[int(part)] if isinstance(node, list) else node[part]


def test_both_overlays_differ_only_in_speculation_lending_and_capture() -> None:
    folder = deploy.EXAMPLE
    demo = yaml.safe_load((folder / "demo" / "kustomization.yaml").read_text())
    baseline = yaml.safe_load((folder / "baseline" / "kustomization.yaml").read_text())
    assert demo["resources"] == baseline["resources"]
    assert "patches" not in demo
    paths = {item["path"] for patch in baseline["patches"] for item in yaml.safe_load(patch["patch"])}
    assert paths == {
        "/spec/template/spec/containers/0/args/-",
        "/spec/suspend",
        "/spec/speculation",
        "/spec/capture",
    }


def test_choices_come_from_the_environment() -> None:
    assert Choices.read({"TLT_STORAGE_CLASS": "nfs", "TLT_DEVICE_CLASS": ""}) == Choices(storage_class="nfs")


@pytest.mark.parametrize(
    ("image", "parts"),
    [("localhost/a:dev", ("localhost/a", "dev")), ("registry:5000/a", ("registry:5000/a", "latest"))],
)
def test_an_images_name_comes_apart(image: str, parts: tuple[str, str]) -> None:
    assert split_image(image) == parts


def test_the_learners_phases_fill_its_steps() -> None:
    line = step(1, began=10, generation=20, learner=10)
    line["spans"] = [
        {"activity": "write-policy", "begin": 11.0, "end": 12.0},
        {"activity": "generate", "begin": 12.0, "end": 32.0},
    ]
    run = Recording(name="demo", namespace="ns", job="grpo", pods=[POD_A], began=0, steps=[line])
    assert picture.learner_intervals(run) == [
        Interval("learner: trains the policy", 10, 11),
        Interval("learner: syncs the policy", 11, 12),
        Interval("learner: waits for answers", 12, 32),
        Interval("learner: trains the policy", 32, 40),
    ]


def test_a_picture_is_drawn_of_both_runs(tmp_path: Path) -> None:
    run = Recording(
        name="demo",
        namespace="ns",
        job="grpo",
        pods=[POD_A, POD_B],
        began=0,
        ended=70,
        steps=[step(1, began=0, generation=20, learner=10), step(2, began=30, generation=20, learner=10)],
        events=[
            worker(0, POD_A, "Busy"),
            worker(15, POD_A, "Lent"),
            worker(31, POD_A, "Revoking"),
            {"at": 33.0, "kind": "swap", "pod": POD_B, "revision": "r", "seconds": 0.3, "stall": 0.02},
        ],
        samples=[sample(1, POD_A, drafts=0, accepted=0), sample(9, POD_A, drafts=10, accepted=3)],
    )
    path = picture.draw(run, run, tmp_path / "timeline.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="ended with 3") as failure:
        run_logged(["sh", "-c", "echo why; exit 3"], log=tmp_path / "log", folder=tmp_path, advice="try again")
    assert failure.value.evidence == "why"
    assert failure.value.advice == "try again"


def test_clocks_and_tails() -> None:
    assert clock(3661) == "61:01"
    assert tail("a\nb\nc", lines=2) == "b\nc"


def test_the_end_of_a_log_says_how_far_a_stage_is(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    assert last_line(log) == ""
    log.write_text("building\n  ... kubernetes 0:15 of about 6:00\n\n")
    assert last_line(log) == ": kubernetes 0:15 of about 6:00"
    assert last_line(None) == ""


def test_a_result_names_the_command_that_repeats_it() -> None:
    assert command([]) == "make demo"
    assert command(["--steps", "5", "--report", "--publish"]) == "python -m bench.demo --steps 5 --publish"
