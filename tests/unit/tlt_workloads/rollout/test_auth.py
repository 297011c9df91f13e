"""Control routes: nobody gets in without this job's token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tlt_workloads.rollout.auth import TokenFile, UnauthorizedError


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


def test_a_replaced_secret_counts_at_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    (tmp_path / "two").write_text("new")
    link = tmp_path / "token"
    link.symlink_to("one")
    token = TokenFile(link)
    token.check("Bearer old")
    replacement = tmp_path / "swap"
    replacement.symlink_to("two")
    os.replace(replacement, link)  # how the kubelet replaces a mounted Secret
    token.check("Bearer new")
    with pytest.raises(UnauthorizedError):
        token.check("Bearer old")


def test_the_message_never_holds_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    with pytest.raises(UnauthorizedError) as caught:
        TokenFile(tmp_path / "token").check("Bearer guess")
    assert "s3cret" not in str(caught.value)
    assert "guess" not in str(caught.value)
