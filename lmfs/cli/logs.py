"""Where a mount's log goes, and how a line of it looks.

Owns: handlers and formats. Plain lines are for people; JSON lines, one object each, for programs:
time, level, logger, message, and where they apply operation, path, statistics and traceback.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from collections.abc import Mapping

_PLAIN = "lmfs[%(process)d]: %(message)s"
_EXTRA = ("operation", "path", "statistics")


class JsonFormatter(logging.Formatter):
    """One JSON object a record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in _EXTRA if name in vars(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(settings: Mapping[str, str | bool], *, background: bool) -> None:
    """Log to `logfile`; else in the background to the system's log, in front to standard error."""
    handler: logging.Handler
    if "logfile" in settings:
        handler = logging.FileHandler(str(settings["logfile"]))
    elif not background:
        handler = logging.StreamHandler()
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
    else:
        handler = logging.NullHandler()
    is_json = settings.get("logformat") == "json"
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter(_PLAIN))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
