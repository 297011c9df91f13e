"""Where a cluster lives and what it is called."""

from pathlib import Path

import pytest

from devcluster.errors import RefusalError
from devcluster.settings import (
    LONGEST_SOCKET_PATH,
    Settings,
    cache_folder,
    control_plane_settings,
    node_settings,
)


def test_the_cache_is_where_the_user_says() -> None:
    environment = {"TLT_CACHE": "/big/disk", "XDG_CACHE_HOME": "/elsewhere", "HOME": "/home/u"}
    assert cache_folder(environment) == Path("/big/disk")


def test_else_the_cache_is_in_the_users_cache_folder() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/elsewhere", "HOME": "/home/u"}) == Path("/elsewhere/tlt-operator")
    assert cache_folder({"HOME": "/home/u"}) == Path("/home/u/.cache/tlt-operator")


def test_node_and_control_planes_share_nothing_but_the_binaries() -> None:
    environment = {"TLT_CACHE": "/c"}
    clusters = [
        node_settings(environment),
        control_plane_settings(name="one", environment=environment),
        control_plane_settings(name="two", environment=environment),
    ]
    assert len({settings.state for settings in clusters}) == 3
    assert len({settings.context for settings in clusters}) == 3
    assert len({settings.etcd_socket for settings in clusters}) == 3
    assert {settings.binaries for settings in clusters} == {Path("/c/bin")}


def test_down_keeps_image_layers_because_they_lie_outside_the_state() -> None:
    settings = node_settings({"TLT_CACHE": "/c"})
    assert not settings.containerd_root.is_relative_to(settings.state)
    assert settings.volumes_folder.is_relative_to(settings.state)


@pytest.mark.parametrize("name", ["", "Upper", "-x", "x-", "a/b", "..", "x" * 25])
def test_a_control_plane_needs_a_name_that_can_be_a_folder_and_a_context(name: str) -> None:
    with pytest.raises(RefusalError, match="--name"):
        control_plane_settings(name=name, environment={"TLT_CACHE": "/c"})


def test_a_cache_folder_too_deep_for_sockets_is_refused() -> None:
    short = Settings(cache=Path("/c"))
    room = LONGEST_SOCKET_PATH - len(str(short.containerd_socket))
    Settings(cache=Path("/c" + "c" * room))
    with pytest.raises(RefusalError, match=r"1 characters too long(.|\n)*TLT_CACHE"):
        Settings(cache=Path("/c" + "c" * (room + 1)))


def test_the_kernel_takes_the_bridges_name() -> None:
    assert len(node_settings({"TLT_CACHE": "/c"}).bridge) <= 15
