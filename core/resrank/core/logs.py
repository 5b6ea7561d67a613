"""How a server's log looks: lines for people, or one JSON object a line for what collects logs.

Code says what happened in fixed words, and the rest as ``extra``: ``logger.info("draining", extra={"grace_s": 10})``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from enum import StrEnum

from opentelemetry import trace

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
"""What every record has; anything else came as ``extra``."""


_LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"


class LogFormat(StrEnum):
    """Of each line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def log_to_stderr(level: LogLevel, form: LogFormat) -> None:
    """Sets up the whole process's log; for commands, never for libraries.

    Args:
        level: The least that is told.
        form: ``json`` needs the package ``python-json-logger``, which the extras of servers bring.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_formatter(form))
    handler.addFilter(_with_trace)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_formatter(form: LogFormat) -> logging.Formatter:
    """Writes records with their ``extra`` fields, times in UTC."""
    formatter: logging.Formatter
    if form is LogFormat.JSON:
        from pythonjsonlogger.json import JsonFormatter

        formatter = JsonFormatter(_LINE, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"})
    else:
        formatter = _TextFormatter(_LINE)
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    return formatter


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        fields = (f" {name}={_one_word(value)}" for name, value in record.__dict__.items() if name not in _OWN)
        return super().formatMessage(record) + "".join(fields)


def _one_word(value: object) -> str:
    """As it is, or in quotes: what a caller sent may hold a new line that looks like another record."""
    text = str(value)
    return text if text.isprintable() and not {" ", '"'} & {*text} else json.dumps(text, ensure_ascii=False)


def _with_trace(record: logging.LogRecord) -> bool:
    """Names the trace that a line belongs to, so that one leads to the other."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
        record.span_id = trace.format_span_id(context.span_id)
    return True
