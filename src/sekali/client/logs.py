"""Logs into Sekali: a handler for ``logging`` and a processor for structlog, on a publisher.

Neither waits, and neither raises into the application. What cannot be taken at once is dropped, and the publisher
counts and tells of it. What publishing itself logs is left out.
"""

import logging
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from itertools import islice
from typing import Any

from sekali.client.background import is_ours, ours
from sekali.client.events import format_time, new_event
from sekali.client.publisher import Publisher

FLUSH_S = 5.0
CHARACTERS_MAX = 128 * 1024  # of six bytes each (\u0000) they are still less than what a server takes as one event
VALUES_MAX = 10_000
DEPTH_MAX = 8
_LARGEST_NUMBER = 10**100
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CUT = "… (cut)"
_logger = logging.getLogger("sekali.client")


class _Publishing:
    """What handler and processor have in common."""

    def __init__(self, publisher: Publisher, topic: str, source: str | None) -> None:
        self.publisher = publisher
        self._topic = topic
        self._source = source

    def publish(self, ns: int, make_payload: Callable[[], dict[str, Any]]) -> None:
        """Publish what happened at a time in nanoseconds since 1970, or drop it. Does not raise."""
        if is_ours():
            return
        try:
            source = f"{socket.gethostname()}/{os.getpid()}" if self._source is None else self._source
            event = new_event(self._topic, make_payload(), timestamp=format_time(ns), source=source)
            self.publisher.publish_or_drop(event)
        except Exception:  # a defect of ours, which must not be the application's
            with ours():
                _logger.warning("a log entry was not published", exc_info=True)


class SekaliHandler(logging.Handler):
    """Publishes log records. ``logging`` flushes it when the process ends, and waits for that at most 5 seconds.

    The payload has ``level``, ``logger``, ``message``, ``file``, ``line``, ``function``, ``thread`` and, where there
    are any, ``exception`` (``type``, ``message``, ``traceback``), ``stack`` and ``extra``. The event's time is the
    record's.

    Args:
        publisher: stays open when the handler is closed.
        topic: of all records.
        source: of all records; without it, the name of the machine and the number of the process.
        level: below it, records are left out.

    """

    def __init__(
        self, publisher: Publisher, topic: str, *, source: str | None = None, level: int | str = logging.NOTSET
    ) -> None:
        super().__init__(level)
        self._publishing = _Publishing(publisher, topic, source)

    def filter(self, record: logging.LogRecord) -> Any:
        """Leave out what publishing itself logs: here, where the lock that a flush may hold is not needed yet."""
        return not is_ours() and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record."""
        self._publishing.publish(round(record.created * 1e9), lambda: record_payload(record))

    def flush(self) -> None:
        """Wait until what was logged has its verdict, but not longer than 5 seconds."""
        if not is_ours():
            self._publishing.publisher.flush(FLUSH_S)


class SekaliProcessor:
    """Publishes what goes through it and hands it on unchanged; for structlog, before the renderer.

    The payload is like that of ``SekaliHandler``: ``level``, ``logger``, ``message`` (structlog's ``event``),
    ``exception``, ``stack``, and all other keys in ``extra``. The event's time is now.

    Args:
        publisher: where to.
        topic: of all entries.
        source: of all entries; without it, the name of the machine and the number of the process.

    """

    def __init__(self, publisher: Publisher, topic: str, *, source: str | None = None) -> None:
        self._publishing = _Publishing(publisher, topic, source)

    def __call__(self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Publish a copy."""
        self._publishing.publish(time.time_ns(), lambda: entry_payload(logger, method_name, event_dict))
        return event_dict


def record_payload(record: logging.LogRecord) -> dict[str, Any]:
    """Return the payload of a record: always JSON, and of bounded size, whatever the record holds."""
    payload: dict[str, Any] = {
        "level": record.levelname,
        "logger": record.name,
        "message": _message(record),
        "file": record.pathname,
        "line": record.lineno,
        "function": record.funcName,
        "thread": record.threadName,
    }
    exception = _exception(record.exc_info)
    if exception is None and record.exc_text:
        exception = {"traceback": record.exc_text}
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return _with_more(payload, exception, record.stack_info, extra)


def entry_payload(logger: Any, method_name: str, event_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of an entry of structlog: always JSON, and of bounded size, whatever the entry holds."""
    extra = {key: value for key, value in event_dict.items() if key not in {"_record", "_from_structlog"}}
    payload = {
        "level": extra.pop("level", method_name),
        "logger": extra.pop("logger", None) or getattr(logger, "name", None),
        "message": extra.pop("event", None),
    }
    exception = _exception(extra.pop("exc_info", None))
    formatted = extra.pop("exception", None)
    if exception is None and formatted:  # by a processor before this one
        exception = {"traceback": formatted}
    return _with_more(payload, exception, extra.pop("stack", None), extra)


def _with_more(
    payload: dict[str, Any], exception: dict[str, Any] | None, stack: Any, extra: dict[str, Any]
) -> dict[str, Any]:
    more = {"exception": exception, "stack": stack, "extra": extra}
    whole: dict[str, Any] = _Plain().value(payload | {key: value for key, value in more.items() if value})
    return whole


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the arguments do not fit the text; both are better than neither
        return f"{_text(record.msg)} {_text(record.args)}"


def _exception(info: Any) -> dict[str, Any] | None:
    """Describe an exception, given in any of the ways in which loggers take one."""
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if not isinstance(info, tuple) or info[1] is None:
        return None
    kind, error, _ = info
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        "message": _text(error),
        "traceback": "".join(traceback.format_exception(*info)),
    }


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} without a text>"


class _Plain:
    """Makes JSON of any value, within limits: of depth, of the number of values, and of characters in all."""

    def __init__(self) -> None:
        self._characters_left = CHARACTERS_MAX
        self._values_left = VALUES_MAX

    def value(self, value: Any, depth: int = 0) -> Any:
        self._values_left -= 1
        if self._values_left < 0:
            return _CUT
        try:
            return self._value(value, depth)
        except Exception:  # of a mapping that is none, for instance
            return f"<{type(value).__name__} that cannot be read>"

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if (isinstance(value, float) and math.isfinite(value)) or (
            isinstance(value, int) and abs(value) < _LARGEST_NUMBER
        ):
            return value
        if depth == DEPTH_MAX and isinstance(value, Mapping | list | tuple | set | frozenset):
            return _CUT  # its text could be of any length
        if isinstance(value, Mapping):
            items = islice(list(value.items()), VALUES_MAX)
            return {self._string(_text(key)): self.value(one, depth + 1) for key, one in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(one, depth + 1) for one in islice(list(value), self._values_left + 1)]
        return self._string(_text(value))

    def _string(self, text: str) -> str:
        if len(text) > self._characters_left:
            text = text[: self._characters_left] + _CUT
        self._characters_left = max(0, self._characters_left - len(text))
        return text.encode(errors="backslashreplace").decode()
