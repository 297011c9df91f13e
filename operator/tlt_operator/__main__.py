"""`tlt-operator`: reads the environment and runs.  Every option is a variable; see `tlt_operator.config`."""

from __future__ import annotations

import os
import sys

from tlt_operator.app import run
from tlt_operator.config import Settings
from tlt_operator.errors import InvalidSettingsError
from tlt_operator.telemetry.logs import configure_logs


def main() -> int:
    """The exit status: 2 when an option cannot be used."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettingsError as error:
        print(f"tlt-operator: {error}", file=sys.stderr)  # noqa: T201 - logs are not configured yet
        return 2
    configure_logs(log_format=settings.log_format, level=settings.log_level)
    run(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
