"""The log: one line for each thing that happened, whatever strangers put into it."""

import contextlib
import logging
import sys
import textwrap

import structlog

from sekali.api.read import StreamCut
from sekali.printable import escape_controls


def configure_logging(level: str) -> None:
    """Log to standard error: in colour for a person on a terminal, else JSON lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(_StandardError()),  # type: ignore[arg-type]  # it asks for no more
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers(for_people=sys.stderr.isatty()),
        ],
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_Forward()], force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


class _StandardError:
    """Standard error that never fails: a full disk, or whoever read the log and is gone, must not end the writer."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def renderers(*, for_people: bool) -> list[structlog.typing.Processor]:
    """Return what turns an entry into text, in which no value can look like another line.

    JSON escapes what could. What is shown to people is escaped here, all but the line ends of a traceback, whose lines
    are indented instead.
    """
    if not for_people:
        return [structlog.processors.JSONRenderer()]
    return [_escape, structlog.dev.ConsoleRenderer()]


def _escape(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    traceback = entry.pop("exception", None)
    escaped: structlog.typing.EventDict = {
        name: value if isinstance(value, bool | int | float | None) else escape_controls(str(value))
        for name, value in entry.items()
    }
    if traceback is not None:
        lines = [escape_controls(line) for line in str(traceback).split("\n")]
        escaped["exception"] = textwrap.indent("\n".join(lines), "    ")
    return escaped


class _Forward(logging.Handler):
    """Gives what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop uvicorn's report of a stream that we cut on purpose."""
    return not (record.exc_info and isinstance(record.exc_info[1], StreamCut))
