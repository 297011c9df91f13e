"""The gateway's options, read once from the environment."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tlt_workloads import contract


class SettingsError(ValueError):
    """An environment variable is missing or does not parse; the message names it."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Each field is one environment variable, named in its metadata."""

    backend: str = field(metadata={"variable": contract.GATEWAY_BACKEND_VARIABLE})  # host:port, or a comma list of them
    concurrency: int = field(
        default=0, metadata={"variable": contract.GATEWAY_CONCURRENCY_VARIABLE}
    )  # per pod, 0 = any
    token_file: Path = field(
        default=Path(contract.TOKEN_FILE_DEFAULT), metadata={"variable": contract.TOKEN_FILE_VARIABLE}
    )
    port: int = field(default=contract.GATEWAY_PORT, metadata={"variable": "TLT_GATEWAY_PORT"})
    attempts: int = field(default=5, metadata={"variable": "TLT_GATEWAY_ATTEMPTS"})  # pods that one completion may cost
    patience: float = field(default=600.0, metadata={"variable": "TLT_GATEWAY_PATIENCE"})  # s without any pod
    refresh: float = field(
        default=1.0, metadata={"variable": "TLT_GATEWAY_REFRESH"}
    )  # s between DNS look-ups and probes
    probe_timeout: float = field(default=5.0, metadata={"variable": "TLT_GATEWAY_PROBE_TIMEOUT"})  # s
    lost_after: float = field(default=30.0, metadata={"variable": "TLT_GATEWAY_LOST_AFTER"})  # s of silence from a pod

    def __post_init__(self) -> None:
        if not self.backend:
            raise SettingsError(f"{contract.GATEWAY_BACKEND_VARIABLE} is not set; give it as host:port")
        for entry in self.backend.split(","):
            host, _, port = entry.strip().rpartition(":")
            if not host or not port.isdigit():
                raise SettingsError(f"{contract.GATEWAY_BACKEND_VARIABLE}: {entry.strip()!r} is not host:port")
        for name, least in (("concurrency", 0), ("attempts", 1), ("patience", 0), ("refresh", 0.01)):
            if getattr(self, name) < least:
                raise SettingsError(f"{variable_of(name)}: {getattr(self, name)} is below {least}")


def variable_of(name: str) -> str:
    """The environment variable that sets the field `name`."""
    fields = {item.name: item for item in dataclasses.fields(GatewaySettings)}
    return str(fields[name].metadata["variable"])


def read_settings(environment: Mapping[str, str]) -> GatewaySettings:
    """Builds the settings.

    Raises:
        SettingsError: a variable is missing or does not parse.
    """
    hints = typing.get_type_hints(GatewaySettings)
    values: dict[str, typing.Any] = {}
    for item in dataclasses.fields(GatewaySettings):
        text = environment.get(str(item.metadata["variable"]))
        if text is None:
            continue
        try:
            values[item.name] = hints[item.name](text)
        except ValueError:
            kind = hints[item.name].__name__
            raise SettingsError(f"{item.metadata['variable']}: {text!r} is not of type {kind}") from None
    return GatewaySettings(**{"backend": "", **values})
