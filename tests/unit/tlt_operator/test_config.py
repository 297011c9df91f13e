"""The operator's options."""

from __future__ import annotations

import pytest

from tlt_operator.config import LogFormat, Settings
from tlt_operator.errors import InvalidSettingsError


def test_every_option_comes_from_its_variable() -> None:
    settings = Settings.from_environment(
        {
            "TLT_WORKLOADS_IMAGE": "w:1",
            "TLT_WATCH_NAMESPACES": "a, b",
            "TLT_PROBE_PORT": "81",
            "TLT_TICK": "0.5",
            "TLT_MAX_LEASES": "3",
            "TLT_VISIBLE_DEVICES": "True",
            "TLT_LOG_FORMAT": "text",
            "TLT_LOG_LEVEL": "",
        }
    )
    assert settings.workloads_image == "w:1"
    assert settings.watch_namespaces == ("a", "b")
    assert settings.probe_port == 81
    assert settings.tick == 0.5
    assert settings.max_leases == 3
    assert settings.visible_devices is True
    assert Settings.from_environment({"TLT_VISIBLE_DEVICES": "false"}).visible_devices is False
    assert settings.log_format is LogFormat.TEXT
    assert settings.log_level == "INFO"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TLT_PROBE_PORT", "http", "whole number"),
        ("TLT_TICK", "soon", "number"),
        ("TLT_LOG_FORMAT", "xml", "json"),
        ("TLT_VISIBLE_DEVICES", "yes", "true or false"),
    ],
)
def test_value_that_does_not_fit_names_its_variable(name: str, value: str, expected: str) -> None:
    with pytest.raises(InvalidSettingsError, match=name) as refused:
        Settings.from_environment({name: value})
    assert expected in str(refused.value)
