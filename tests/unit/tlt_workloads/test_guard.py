"""Who may call a control route, and how often one may guess."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mounted_secret import MountedSecret
from tlt_workloads.guard import BURST, PER_SECOND, REMEMBERED, Guard, TooManyAttemptsError
from tlt_workloads.tokens import TokenFile, UnauthorizedError


class Door:
    """A guard, the time that it goes by, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        secret = MountedSecret(folder, {"token": "right"})
        self.guard = Guard(TokenFile(secret.token), clock=lambda: self.now)

    def knock(self, token: str = "wrong", *, address: str = "10.0.0.9") -> int:
        """The status that a call would get."""
        try:
            self.guard.check(f"Bearer {token}", address=address)
        except TooManyAttemptsError as error:
            return 429 if error.retry_after >= 1 else 500
        except UnauthorizedError:
            return 401
        return 200


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "secret")


def test_a_caller_with_the_token_is_never_limited(door: Door) -> None:
    assert {door.knock("right") for _ in range(10 * BURST)} == {200}


def test_after_a_burst_of_wrong_tokens_an_address_must_wait_and_the_answer_says_how_long(door: Door) -> None:
    assert [door.knock() for _ in range(BURST)] == [401] * BURST
    assert door.knock() == 429
    assert door.knock("right") == 429, "nothing is compared, so nothing can be found out"
    assert door.knock(address="10.0.0.10") == 401, "others are not to blame"
    assert door.knock("right", address="10.0.0.10") == 200
    door.now += 1 / PER_SECOND
    assert [door.knock(), door.knock()] == [401, 429]
    door.now += BURST / PER_SECOND
    assert [door.knock() for _ in range(BURST + 1)] == [401] * BURST + [429]


def test_only_so_many_addresses_are_remembered(door: Door) -> None:
    for number in range(REMEMBERED):
        door.knock(address=f"10.1.{number // 256}.{number % 256}")
    assert [door.knock() for _ in range(BURST + 1)][-1] == 429
    for number in range(REMEMBERED):
        door.knock(address=f"10.2.{number // 256}.{number % 256}")
    assert len(door.guard._refused) == REMEMBERED
    assert door.knock() == 401, "forgotten, and so it begins anew"


@given(calls=st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=200))
def test_wrong_tokens_are_judged_at_the_rate_at_most(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[float, bool]]
) -> None:
    door, judged = Door(tmp_path_factory.mktemp("door") / "secret"), 0
    for pause, right in calls:
        door.now += pause
        judged += door.knock("right" if right else "wrong") == 401
    assert judged <= BURST + door.now * PER_SECOND + 1e-6
