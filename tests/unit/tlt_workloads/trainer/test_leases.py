"""The trainer's side of the lease while its token is replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import unused_port

from tests.support.fake_rollout import FakeRollout
from tests.support.mounted_secret import MountedSecret
from tlt_workloads.tokens import TokenFile
from tlt_workloads.trainer.leases import LeaseClient, RolloutUnreachableError


@pytest.fixture
async def rollout() -> AsyncIterator[FakeRollout]:
    found = FakeRollout("127.0.0.1", unused_port(), token="old")
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def secret(tmp_path: Path) -> MountedSecret:
    return MountedSecret(tmp_path / "mount", {"token": "old"})


@pytest.fixture
async def client(rollout: FakeRollout, secret: MountedSecret) -> AsyncIterator[LeaseClient]:
    async with aiohttp.ClientSession() as session:
        url = f"http://{rollout.address}:{rollout.port}"
        yield LeaseClient(session, rollout_url=url, holder="trainer", tokens=TokenFile(secret.token))


async def test_each_call_sends_the_token_of_that_moment(
    client: LeaseClient, rollout: FakeRollout, secret: MountedSecret
) -> None:
    await client.poll(seq=0, wait=0.0, patience=5.0)
    rollout.token = "new"
    secret.update({"token": "new"})
    await client.poll(seq=0, wait=0.0, patience=5.0)
    await client.give_back(patience=5.0)
    assert rollout.refused == []


async def test_a_pod_that_is_behind_gets_the_other_token_once(
    client: LeaseClient, rollout: FakeRollout, secret: MountedSecret
) -> None:
    secret.update({"token": "new", "token-previous": "old"})
    await client.poll(seq=0, wait=0.0, patience=5.0)
    assert len(rollout.refused) == 1
    rollout.token = "another"
    with pytest.raises(RolloutUnreachableError, match="401"):
        await client.poll(seq=0, wait=0.0, patience=5.0)
    assert len(rollout.refused) == 3


async def test_a_token_that_is_gone_is_no_end_of_the_trainer(client: LeaseClient, secret: MountedSecret) -> None:
    secret.update({})
    with pytest.raises(RolloutUnreachableError, match="TLT_TOKEN_FILE"):
        await client.poll(seq=0, wait=0.0, patience=5.0)
