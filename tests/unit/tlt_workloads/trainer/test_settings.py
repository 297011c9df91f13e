"""What the environment must hold, and errors that name what is wrong with it."""

from __future__ import annotations

import json

import pytest

from tlt_workloads.trainer.settings import SettingsError, accelerator_cores, settings_from_environment
from tlt_workloads.trainer.target import TargetError, find_target

ENVIRONMENT = {
    "TLT_JOB": "team/job",
    "TLT_STORE_URL": "file:///tlt",
    "TLT_ROLLOUT_URL": "http://10.0.0.7:8000/",
    "TLT_HOLDER": "pod/uid",
    "TLT_TRAINER_CONFIG": json.dumps({"targetModel": "/models/policy", "draftLength": 5}),
    "GPU_DEVICE_0": "gpu-1",
}


def test_the_operators_variables_become_settings() -> None:
    settings = settings_from_environment(ENVIRONMENT)
    assert settings.job_store_url == "file:///tlt/team/job"
    assert settings.rollout_url == "http://10.0.0.7:8000"
    assert settings.config.draft_length == 5
    assert settings.config.target_model == "/models/policy"
    assert settings.cores == (1,)


def test_a_trainer_that_can_never_have_company_looks_for_none() -> None:
    assert settings_from_environment(ENVIRONMENT).lighthouse_url is None
    company = {"TLT_LIGHTHOUSE_URL": "http://demo-lighthouse:8003", "TLT_POD_ADDRESS": "10.0.0.9"}
    settings = settings_from_environment(ENVIRONMENT | company)
    assert (settings.lighthouse_url, settings.address) == ("http://demo-lighthouse:8003", "10.0.0.9")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TLT_STORE_URL", "", "TLT_STORE_URL: must be set"),
        ("TLT_JOB", "job", "TLT_JOB: 'job' is not <namespace>/<name>"),
        ("TLT_TRAINER_CONFIG", "{", "TLT_TRAINER_CONFIG: "),
        ("TLT_TRAINER_CONFIG", "{}", "TLT_TRAINER_CONFIG: targetModel: required field is missing"),
        ("TLT_TRAINER_CONFIG", '{"targetModel": "m", "method": "Medusa"}', r"spec\.drafter\.method: 'Medusa'"),
        (
            "TLT_TRAINER_CONFIG",
            '{"targetModel": "m", "method": "PEagle"}',
            r"'PEagle' .* one pass.*; use one of Eagle3",
        ),
        ("TLT_LIGHTHOUSE_URL", "lighthouse:1", "TLT_LIGHTHOUSE_URL: 'lighthouse:1' is not http"),
        ("TLT_LIGHTHOUSE_URL", "http://lighthouse:1", "TLT_POD_ADDRESS: must be set"),
        ("GPU_DEVICE_0", "nvidia0", "GPU_DEVICE_0: 'nvidia0' is not gpu-<number>"),
    ],
)
def test_wrong_variables_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from_environment({**ENVIRONMENT, name: value})


def test_several_emulated_accelerators_are_as_many_cores() -> None:
    assert accelerator_cores({"GPU_DEVICE_1": "gpu-3", "GPU_DEVICE_0": "gpu-1", "GPU_DEVICE_0_X": "?"}) == (1, 3)
    assert accelerator_cores({}) == ()


def test_a_target_is_found_by_path_and_by_cached_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "hub/models--org--name/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert find_target(str(folder)) == folder
    assert find_target("org/name", environment={"HF_HOME": str(tmp_path)}) == folder


def test_a_missing_target_names_the_field_and_every_place_tried(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TargetError, match=r"spec\.target\.model.*'org/name'; tried org/name and .*models--org--name"):
        find_target("org/name", environment={"HF_HOME": str(tmp_path)})
