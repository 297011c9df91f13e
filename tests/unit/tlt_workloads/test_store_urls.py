"""Which URLs of stores can be opened, what is said of the others, and that credentials are not repeated."""

from __future__ import annotations

import contextlib
import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlt_workloads.store import open_store
from tlt_workloads.store_urls import OBJECT_SCHEMES, StoreError, check_store_url, shown_url


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("/tlt", "file"),
        ("file:///tlt", "file"),
        ("s3://bucket/tlt", "s3"),
        ("gs://bucket/tlt", "gs"),
        ("abfs://box/tlt", "abfs"),
        ("abfs://box@account.dfs.core.windows.net/tlt", "abfs"),
    ],
)
def test_the_schemes_of_the_custom_resource_can_be_opened(url: str, scheme: str) -> None:
    assert check_store_url(url) == scheme
    assert shown_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/tlt", "put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the Secret of spec.store"),
        ("s3://secret@bucket/tlt", "holds credentials"),
        ("abfs://key:secret@account/tlt", "holds credentials"),
        ("s3://bucket/tlt?token=secret", "has options"),
        ("s3://bucket/tlt#secret", "has options"),
        ("s3:///tlt", "names no bucket"),
        ("s3://bucket/a/../b", "has a '.' or '..'"),
        ("s3://bucket/tlt::file:///etc", "chains URLs"),
        ("/tlt::s3://bucket", "chains URLs"),
        ("ftp://user:secret@host/x", "use one of s3, gs, abfs, file"),
        ("s3://[bucket", "not a URL"),
    ],
)
def test_other_urls_are_refused_by_name_of_field_and_way_out(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=r"^store\.url: ") as refused:
        open_store(url)
    assert words in str(refused.value)
    assert "secret@" not in str(refused.value)
    assert "=secret" not in str(refused.value)
    assert "#secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", OBJECT_SCHEMES)
def test_a_package_that_is_missing_is_named_with_its_extra(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    needed = OBJECT_SCHEMES[scheme]
    with pytest.raises(StoreError, match=rf"{scheme}:// needs the package {needed.package}.*\[{needed.extra}\]"):
        check_store_url(f"{scheme}://bucket/tlt")


def test_a_client_that_fails_at_once_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("AccountKey=secret")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(StoreError, match=r"cannot be opened.*AZURE_STORAGE_ACCOUNT_NAME") as refused:
        open_store("abfs://box/tlt")
    assert "secret" not in str(refused.value)


@given(st.text(max_size=30))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    """No other error gets out, whatever a URL parser thinks of it."""
    scheme = None
    with contextlib.suppress(StoreError):
        scheme = check_store_url(text)
    assert scheme in (None, "file", "memory", *OBJECT_SCHEMES)


@given(
    st.sampled_from(["s3", "gs", "abfs", "https"]),
    st.text(alphabet=st.characters(exclude_characters="/?#[]"), max_size=9),
)
def test_what_may_be_a_password_is_never_shown(scheme: str, user: str) -> None:
    assert "password-1" not in shown_url(f"{scheme}://{user}:password-1@bucket/tlt?key=password-1#password-1")
