"""Sets up how this process writes its log."""

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from pbkv_cluster.core.config import LoggingConfig

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

_FOREIGN = ("message", "asctime", "_ray_timestamp_ns")  # left in a record by others that have handled it before


def set_up_logs(config: LoggingConfig, member: str = "", stream: TextIO | None = None, least: int = logging.DEBUG) -> None:
    """Makes this process write its log as configured, whoever logs in it. May be called again.

    Args:
        config: format and level.
        member: name of the process in its cluster; empty: none.
        stream: where to; by default standard error.
        least: severity below which nothing is logged, whatever is configured.
    """
    from structlog import contextvars, dev, processors, stdlib

    def complete(logger: "WrappedLogger", method: str, event: "EventDict") -> "EventDict":
        for foreign in _FOREIGN:
            event.pop(foreign, None)
        if member:
            event["member"] = member
        return event

    shared: list[Processor] = [
        contextvars.merge_contextvars,
        stdlib.add_log_level,
        stdlib.add_logger_name,
        stdlib.ExtraAdder(),
        complete,
        processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor]
    if config.format == "json":
        last = [processors.format_exc_info, processors.JSONRenderer(default=str, ensure_ascii=False)]
    else:
        last = [_visible, dev.ConsoleRenderer(colors=False, pad_event_to=0, exception_formatter=dev.plain_traceback)]
    handler = _OurHandler(stream or sys.stderr)
    handler.setFormatter(
        stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [other for other in root.handlers if not isinstance(other, _OurHandler)]
    root.addHandler(handler)
    root.setLevel(max(logging.getLevelNamesMapping()[config.level.upper()], least))


def _visible(logger: "WrappedLogger", method: str, event: "EventDict") -> "EventDict":
    """Escapes what would break a line of text or steer a terminal; names that clients choose are part of messages."""
    event["event"] = "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in str(event["event"])
    )
    return event


class _OurHandler(logging.StreamHandler[TextIO]):
    """Told from handlers that others have added, such as those of a test."""
