"""A tiny target, a drafter of it, and a language that the drafter can learn."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    import speculators.models.eagle3  # noqa: F401

from tests.support.tiny_target import write_tiny_target
from tests.support.toy_language import ToyLanguage
from tlt_workloads.contract import TrainerConfig
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.settings import TrainerSettings


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_target(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture
def language(target: Path) -> ToyLanguage:
    return ToyLanguage(target)


@pytest.fixture
def settings(target: Path, tmp_path: Path) -> TrainerSettings:
    (tmp_path / "token").write_text("secret")
    return TrainerSettings(
        job="namespace/job",
        store_url=f"file://{tmp_path}/store",
        rollout_url="http://127.0.0.1:9",
        holder="pod/12345678-uid",
        token_file=tmp_path / "token",
        config=TrainerConfig(
            target_model=str(target),
            draft_vocab_size=92,
            learning_rate=3e-3,
            min_new_tokens=100,
            micro_batch_tokens=128,
        ),
        rollout_timeout=0.5,
        scan_interval=0.1,
        publish_tokens=1000,
    )


@pytest.fixture
def store(settings: TrainerSettings) -> Store:
    return open_store(settings.job_store_url)
