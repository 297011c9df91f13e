"""Reading the environment."""

from __future__ import annotations

import pytest

from tlt_workloads.gateway.settings import SettingsError, read_settings


def test_variables_become_typed_fields() -> None:
    settings = read_settings({"TLT_GATEWAY_BACKEND": "rollout:8000", "TLT_GATEWAY_CONCURRENCY": "4"})
    assert (settings.backend, settings.concurrency, settings.port) == ("rollout:8000", 4, 8000)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "TLT_GATEWAY_BACKEND"),
        ({"TLT_GATEWAY_BACKEND": "r:1", "TLT_GATEWAY_CONCURRENCY": "many"}, "TLT_GATEWAY_CONCURRENCY"),
        ({"TLT_GATEWAY_BACKEND": "r:1", "TLT_GATEWAY_CONCURRENCY": "-1"}, "TLT_GATEWAY_CONCURRENCY"),
        ({"TLT_GATEWAY_BACKEND": "rollout"}, "TLT_GATEWAY_BACKEND"),
    ],
)
def test_a_bad_variable_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        read_settings(environment)
