"""What a trainer pod is told: one frozen dataclass, read once from the environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tlt_workloads.contract import (
    HOLDER_VARIABLE,
    JOB_VARIABLE,
    LIGHTHOUSE_URL_VARIABLE,
    POD_ADDRESS_VARIABLE,
    ROLLOUT_URL_VARIABLE,
    STORE_URL_VARIABLE,
    TEAM_PORT,
    TOKEN_FILE_DEFAULT,
    TOKEN_FILE_VARIABLE,
    TRAINER_CONFIG_VARIABLE,
    TRAINER_PORT,
    ContractError,
    TrainerConfig,
    decode,
)

METHODS = ("Eagle3",)
_NOT_YET = {
    "PEagle": "it guesses all tokens in one pass, and running servers vary how many they ask for",
    "DFlash": "it reads other layers of the policy than are captured",
    "Mtp": "it needs a policy that was built with prediction heads",
}
_ACCELERATOR = re.compile(r"^GPU_DEVICE_\d+$")
_CORE = re.compile(r"^gpu-(\d+)$")


class SettingsError(ValueError):
    """An environment variable is missing or wrong; the message names it."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Everything that does not change while the pod lives."""

    job: str  # "<namespace>/<name>"
    store_url: str  # the job's folder lies below
    rollout_url: str
    holder: str  # this pod in the lease
    token_file: Path
    config: TrainerConfig
    cores: tuple[int, ...] = ()  # emulated accelerators: the CPU cores that stand for them
    port: int = TRAINER_PORT
    lighthouse_url: str | None = None  # None = no other trainer can ever be there
    address: str = "127.0.0.1"  # of this pod, as others reach it
    team_port: int = TEAM_PORT  # 0 takes a free one
    rollout_timeout: float = 5.0  # s without an answer after which the rollout pod counts as gone
    scan_interval: float = 2.0  # s between looks into the store
    publish_tokens: int = 2000  # trained positions after which a revision is tried
    held_out_tokens: int = 1000  # that a revision is judged by
    solved_tokens: int = 4000  # that a first drafter is solved from, at about a second of one core for 2,000
    most_solved_tokens: int = 60_000  # that it is solved from again as they come; 0 = never again
    data_memory_bytes: int = 512 << 20

    @property
    def job_store_url(self) -> str:
        """The job's folder in the store."""
        return f"{self.store_url.rstrip('/')}/{self.job}"


@dataclass(frozen=True, kw_only=True)
class WindowOrder:
    """What the supervisor asks of a worker."""

    settings: TrainerSettings = field(repr=False)
    lease_id: str


def settings_from_environment(environment: Mapping[str, str]) -> TrainerSettings:
    """Reads the variables that the operator sets.

    Raises:
        SettingsError: names the variable and what is expected there.
    """
    job = _required(environment, JOB_VARIABLE)
    if job.count("/") != 1:
        raise SettingsError(f"{JOB_VARIABLE}: {job!r} is not <namespace>/<name>")
    return TrainerSettings(
        job=job,
        store_url=_required(environment, STORE_URL_VARIABLE),
        rollout_url=_required(environment, ROLLOUT_URL_VARIABLE).rstrip("/"),
        holder=_required(environment, HOLDER_VARIABLE),
        token_file=Path(environment.get(TOKEN_FILE_VARIABLE, TOKEN_FILE_DEFAULT)),
        config=_config(_required(environment, TRAINER_CONFIG_VARIABLE)),
        cores=accelerator_cores(environment),
        lighthouse_url=(lighthouse_url := _lighthouse_url(environment)),
        address=_required(environment, POD_ADDRESS_VARIABLE) if lighthouse_url else TrainerSettings.address,
    )


def _lighthouse_url(environment: Mapping[str, str]) -> str | None:
    url = environment.get(LIGHTHOUSE_URL_VARIABLE, "")
    if url and not url.startswith("http://"):
        raise SettingsError(f"{LIGHTHOUSE_URL_VARIABLE}: {url!r} is not http://<host>:<port>")
    return url or None


def accelerator_cores(environment: Mapping[str, str]) -> tuple[int, ...]:
    """The CPU cores that stand for this pod's emulated accelerators; empty on real ones.

    The example DRA driver tells a container its devices as `GPU_DEVICE_<n>=gpu-<N>`.
    """
    found = []
    for name, value in environment.items():
        if _ACCELERATOR.match(name):
            match = _CORE.match(value)
            if match is None:
                raise SettingsError(f"{name}: {value!r} is not gpu-<number>")
            found.append(int(match[1]))
    return tuple(sorted(found))


def _config(text: str) -> TrainerConfig:
    try:
        config = decode(TrainerConfig, json.loads(text))
    except (ValueError, ContractError) as error:
        raise SettingsError(f"{TRAINER_CONFIG_VARIABLE}: {error}") from error
    if config.method not in METHODS:
        reason = f" ({_NOT_YET[config.method]})" if config.method in _NOT_YET else ""
        raise SettingsError(
            f"spec.drafter.method: {config.method!r} cannot be trained{reason}; use one of {', '.join(METHODS)}"
        )
    return config


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"{name}: must be set")
    return value
