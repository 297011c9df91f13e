"""Control routes: nobody gets in without this job's token."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mounted_secret import MountedSecret
from tlt_workloads.tokens import TokenFile, TokenUnreadableError, UnauthorizedError


def test_the_token_opens(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    TokenFile(tmp_path / "token").check("Bearer s3cret")
    TokenFile(tmp_path / "token").check("bearer s3cret")


@pytest.mark.parametrize("header", [None, "", "s3cret", "Basic s3cret", "Bearer ", "Bearer wrong", "Bearer s3cret2"])
def test_anything_else_does_not(tmp_path: Path, header: str | None) -> None:
    (tmp_path / "token").write_text("s3cret")
    with pytest.raises(UnauthorizedError):
        TokenFile(tmp_path / "token").check(header)


def test_a_missing_file_says_so_and_stays_shut(tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError, match=r"TLT_TOKEN_FILE.*cannot be read"):
        TokenFile(tmp_path / "token").check("Bearer anything")


def test_an_empty_file_stays_shut(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    for header in ("Bearer ", "Bearer x"):
        with pytest.raises(UnauthorizedError):
            TokenFile(tmp_path / "token").check(header)


def is_accepted(token: TokenFile, given: str) -> bool:
    try:
        token.check(f"Bearer {given}")
    except UnauthorizedError:
        return False
    return True


def test_a_replaced_secret_counts_at_once(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path / "mount", {"token": "old"})
    token = TokenFile(secret.token)
    assert is_accepted(token, "old")
    secret.update({"token": "new"})
    assert is_accepted(token, "new")
    assert not is_accepted(token, "old")


# What a rotation makes of the Secret, step by step.
STATES = (
    {"token": "old"},
    {"token": "old", "token-next": "new"},
    {"token": "new", "token-previous": "old"},
    {"token": "new"},
)


@pytest.mark.parametrize(("server", "client"), [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (1, 1), (2, 2)])
def test_pods_that_are_a_step_apart_understand_each_other(tmp_path: Path, server: int, client: int) -> None:
    accepting = TokenFile(MountedSecret(tmp_path / "server", STATES[server]).token)
    sending = TokenFile(MountedSecret(tmp_path / "client", STATES[client]).token)
    sent = sending.tokens()[0]
    assert is_accepted(accepting, sent), "no second try was needed"


@pytest.mark.parametrize(("server", "client"), [(0, 2), (1, 3), (2, 0), (3, 1)])
def test_pods_that_are_two_steps_apart_understand_each_other_at_the_second_try(
    tmp_path: Path, server: int, client: int
) -> None:
    accepting = TokenFile(MountedSecret(tmp_path / "server", STATES[server]).token)
    sending = TokenFile(MountedSecret(tmp_path / "client", STATES[client]).token)
    sent = sending.tokens()[0]
    other = sending.another(sent)
    assert is_accepted(accepting, sent) or (other is not None and is_accepted(accepting, other))


def test_a_whole_rotation_by_a_server_that_never_restarts(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path / "mount", STATES[0])
    token = TokenFile(secret.token)
    accepted = []
    for state in STATES:
        secret.update(state)
        accepted.append((is_accepted(token, "old"), is_accepted(token, "new")))
    assert accepted == [(True, False), (True, True), (True, True), (False, True)]


def test_nothing_else_to_try_outside_a_rotation(tmp_path: Path) -> None:
    token = TokenFile(MountedSecret(tmp_path / "mount", {"token": "only"}).token)
    assert token.another("only") is None
    assert token.another("stale") == "only", "replaced between the two tries"


def test_without_a_token_there_is_nothing_to_send(tmp_path: Path) -> None:
    with pytest.raises(TokenUnreadableError, match=r"TLT_TOKEN_FILE.*token cannot be read"):
        TokenFile(tmp_path / "token").tokens()


def test_an_empty_next_token_opens_nothing(tmp_path: Path) -> None:
    token = TokenFile(MountedSecret(tmp_path / "mount", {"token": "old", "token-next": "\n"}).token)
    assert token.tokens() == ("old",)
    assert not is_accepted(token, "")


def test_the_message_never_holds_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    with pytest.raises(UnauthorizedError) as caught:
        TokenFile(tmp_path / "token").check("Bearer guess")
    assert "s3cret" not in str(caught.value)
    assert "guess" not in str(caught.value)
