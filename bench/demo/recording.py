"""All that a run showed from outside, as plain data that is kept in a file.

Times are seconds since 1970.  Learner lines, timeline events and state samples are kept as they came, so that a report
can be made again with other questions.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Recording:
    """One run."""

    name: str
    namespace: str
    job: str
    pods: list[str]
    began: float
    ended: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)  # the learner's lines
    events: list[dict[str, Any]] = field(default_factory=list)  # the operator's timeline
    samples: list[dict[str, Any]] = field(default_factory=list)  # {"at", "pod", "state": RolloutState as JSON}
    gateway: dict[str, Any] = field(default_factory=dict)  # its last state
    tltjob: dict[str, Any] = field(default_factory=dict)  # at the end
    revisions: list[dict[str, Any]] = field(default_factory=list)  # at the end
    policy_changes: int = 0  # drafter loads after which the policy's checksum differed

    def save(self, folder: Path) -> Path:
        """Writes `<name>.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text()))
