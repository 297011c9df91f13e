"""One job with a lighthouse, and more than enough to train on."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    import speculators.models.eagle3  # noqa: F401

from tests.support.lighthouse import Lighthouse
from tests.support.lighthouse import lighthouse as running_lighthouse
from tests.support.tiny_target import write_tiny_target
from tests.support.toy_language import ToyLanguage
from tlt_workloads.contract import TrainerConfig
from tlt_workloads.store import Store, open_store
from tlt_workloads.trainer.settings import TrainerSettings
from tlt_workloads.trainer.workshop import Workshop

SHARDS = 1200


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_target(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="session")
def recorded(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    ToyLanguage(target).write_shards(open_store(f"file://{folder}"), count=SHARDS)
    return folder


@pytest.fixture
def lighthouse() -> Iterator[Lighthouse]:
    with running_lighthouse() as one:
        yield one


@pytest.fixture
def settings(target: Path, recorded: Path, lighthouse: Lighthouse, tmp_path: Path) -> TrainerSettings:
    (tmp_path / "token").write_text("secret")
    shutil.copytree(recorded, tmp_path / "store" / "namespace" / "job", copy_function=os.link)
    return TrainerSettings(
        job="namespace/job",
        store_url=f"file://{tmp_path}/store",
        rollout_url="http://127.0.0.1:9",
        holder="trainer/12345678",
        token_file=tmp_path / "token",
        config=TrainerConfig(
            target_model=str(target),
            draft_vocab_size=92,
            learning_rate=3e-3,
            micro_batch_tokens=128,
            checkpoint_interval=1.0,
        ),
        publish_tokens=10**9,
        most_solved_tokens=0,
        lighthouse_url=lighthouse.url,
        team_port=0,
    )


@pytest.fixture
def store(settings: TrainerSettings) -> Store:
    return open_store(settings.job_store_url)


@pytest.fixture
async def workshop() -> Workshop:
    shop = Workshop()
    await shop.warm_up()
    return shop
