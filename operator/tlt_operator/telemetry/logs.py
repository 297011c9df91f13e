"""Log lines on standard error, as JSON or text; the timeline has standard output for itself."""

from __future__ import annotations

import json
import logging
import sys

from tlt_operator.config import LogFormat
from tlt_operator.telemetry.timeline import LOGGER as TIMELINE


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and, for errors, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logs(*, log_format: LogFormat, level: str) -> None:
    """Sends all loggers to standard error in one format and the timeline to standard output as it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if log_format is LogFormat.JSON
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Kopf says of every single event that its handler succeeded.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    timeline = logging.getLogger(TIMELINE)
    plain = logging.StreamHandler(sys.stdout)
    plain.setFormatter(logging.Formatter("%(message)s"))
    timeline.handlers[:] = [plain]
    timeline.propagate = False
