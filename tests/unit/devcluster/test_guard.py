"""Which cluster tests and demo may touch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from devcluster import guard
from devcluster.configuration import kubeconfig
from devcluster.errors import RefusalError

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a kubeconfig whose current context is the given one, and returns its path."""

    def write_file(context: str, *, file: str = "config") -> str:
        text = kubeconfig(context=context, user="u", server="https://h:1", authority="a", certificate="c", key="k")
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


def test_the_embedded_cluster_is_used_when_nothing_is_said(tmp_path: Path, write: Write) -> None:
    path = write("tlt-devcluster", file="cluster/admin.kubeconfig")
    target = guard.choose({"TLT_CACHE": str(tmp_path)})
    assert target == guard.Target(path, "tlt-devcluster")
    assert target.is_ours


def test_before_up_the_message_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="devcluster up"):
        guard.choose({"TLT_CACHE": str(tmp_path)})


def test_a_kubeconfig_that_happens_to_be_set_is_not_enough_to_touch_a_cluster(write: Write) -> None:
    with pytest.raises(RefusalError, match="CLUSTER=production"):
        guard.choose({"KUBECONFIG": write("production")})


@pytest.mark.parametrize("named", ["production", "current"])
def test_a_cluster_that_is_named_is_used(write: Write, named: str) -> None:
    path = write("production")
    target = guard.choose({"KUBECONFIG": path, "CLUSTER": named})
    assert target == guard.Target(path, "production")
    assert not target.is_ours


def test_naming_another_cluster_than_the_kubeconfig_knows_is_refused(write: Write) -> None:
    with pytest.raises(RefusalError, match="no context of that name"):
        guard.choose({"KUBECONFIG": write("production"), "CLUSTER": "staging"})


def test_the_users_own_file_must_be_named(tmp_path: Path, write: Write) -> None:
    path = write("production", file=".kube/config")
    assert guard.choose({"HOME": str(tmp_path), "CLUSTER": "current"}) == guard.Target(path, "production")
    with pytest.raises(RefusalError, match="devcluster up"):
        guard.choose({"HOME": str(tmp_path), "TLT_CACHE": str(tmp_path / "c")})


def test_a_named_control_plane_is_ours_but_a_similar_name_is_not() -> None:
    assert guard.is_devcluster("tlt-devcluster-api")
    assert not guard.is_devcluster("tlt-devclusters")
    assert not guard.is_devcluster("my-tlt-devcluster")


def test_a_kubeconfig_without_current_context_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("apiVersion: v1\nkind: Config\n")
    with pytest.raises(RefusalError, match="current-context"):
        guard.choose({"KUBECONFIG": str(file), "CLUSTER": "current"})


@pytest.mark.parametrize(
    "text",
    [
        "current-context: prod\n",
        'kind: Config\ncurrent-context: "prod"\nusers: []\n',
        "current-context: 'prod' # chosen by hand\n",
        json.dumps({"kind": "Config", "current-context": "prod"}),
        json.dumps({"kind": "Config", "current-context": "prod"}, indent=2),
    ],
)
def test_the_current_context_is_read_however_the_file_is_written(text: str) -> None:
    assert guard.current_context(text) == "prod"


def test_a_comment_cannot_name_the_context() -> None:
    assert guard.current_context("# current-context: tlt-devcluster\ncurrent-context: prod\n") == "prod"


def test_of_several_kubeconfigs_the_first_that_names_a_context_decides(write: Write) -> None:
    joined = f"{write('production', file='one')}:{write('tlt-devcluster', file='two')}"
    with pytest.raises(RefusalError, match="production"):
        guard.choose({"KUBECONFIG": joined})
