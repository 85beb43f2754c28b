"""Logging into Sekali: nothing waits, nothing is raised, and what is lost is counted."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from fake_server import FakeServer, fake_server, problem
from sekali.client import Event, Limits, OutboxFile, Publisher, SekaliHandler, SekaliProcessor, Verdict
from sekali.client.background import is_ours
from sekali.client.logs import CHARACTERS_MAX, entry_payload, record_payload

DEADLINE_S = 30.0
EVENT_BYTES_MAX = 1024 * 1024  # of a server as it comes


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def publisher(fake: FakeServer) -> Iterator[Publisher]:
    with Publisher(fake.url, random_share=lambda: 0.0) as publisher:
        yield publisher
        fake.gate.set()


@pytest.fixture
def logger(publisher: Publisher) -> Iterator[logging.Logger]:
    """A logger that logs into Sekali."""
    with _Logging(publisher) as logger:
        yield logger


class _Logging:
    """A logger that logs into Sekali meanwhile."""

    def __init__(self, publisher: Publisher, name: str = "shop.orders", **options: Any) -> None:
        self.logger = logging.getLogger(name)
        self.handler = SekaliHandler(publisher, "app/shop", **options)

    def __enter__(self) -> logging.Logger:
        self.logger.addHandler(self.handler)
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        return self.logger

    def __exit__(self, *exception: object) -> None:
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(logging.NOTSET)
        self.logger.propagate = True
        self.handler.close()


def _events(fake: FakeServer, publisher: Publisher) -> list[dict[str, Any]]:
    assert publisher.flush(DEADLINE_S)
    return list(fake.events.values())


def test_a_record_becomes_an_event(fake: FakeServer, publisher: Publisher, logger: logging.Logger) -> None:
    before = datetime.now(UTC)
    logger.info("order %d of %s", 17, "Ada", extra={"order": 17, "total": 4.5, "tags": ["a", {"b": None}]})
    (event,) = _events(fake, publisher)
    assert event["topic"] == "app/shop"
    assert event["source"] == f"{socket.gethostname()}/{os.getpid()}"
    assert before.replace(microsecond=0) <= datetime.fromisoformat(event["timestamp"]) <= datetime.now(UTC)
    payload = event["payload"]
    assert payload.pop("line") > 0 and payload.pop("file") == __file__
    assert payload == {
        "level": "INFO",
        "logger": "shop.orders",
        "message": "order 17 of Ada",
        "function": "test_a_record_becomes_an_event",
        "thread": "MainThread",
        "extra": {"order": 17, "total": 4.5, "tags": ["a", {"b": None}]},
    }


def test_the_time_is_the_records_and_the_source_may_be_given(fake: FakeServer, publisher: Publisher) -> None:
    with _Logging(publisher, source="shop-1") as logger:
        record = logger.makeRecord(logger.name, logging.INFO, "f", 1, "m", (), None)
        record.created = 1_800_000_000.123457
        logger.handle(record)
    (event,) = _events(fake, publisher)
    assert (event["timestamp"], event["source"]) == ("2027-01-15T08:00:00.123457Z", "shop-1")


def test_an_exception_is_told_in_full(fake: FakeServer, publisher: Publisher, logger: logging.Logger) -> None:
    class Mine(Exception):
        pass

    try:
        raise Mine("oh") from KeyError("cause")
    except Mine:
        logger.exception("it failed", stack_info=True)
    (event,) = _events(fake, publisher)
    exception = event["payload"]["exception"]
    assert exception["type"].endswith("Mine") and exception["message"] == "oh"
    assert "KeyError: 'cause'" in exception["traceback"] and 'raise Mine("oh")' in exception["traceback"]
    assert "test_an_exception_is_told_in_full" in event["payload"]["stack"]


def test_an_exception_that_is_only_text_is_kept_too() -> None:
    record = logging.makeLogRecord({"msg": "m", "exc_text": "Traceback: something"})
    assert record_payload(record)["exception"] == {"traceback": "Traceback: something"}


def test_exc_info_without_an_exception_is_none(fake: FakeServer, publisher: Publisher, logger: logging.Logger) -> None:
    logger.error("no exception at all", exc_info=True)
    (event,) = _events(fake, publisher)
    assert "exception" not in event["payload"] and "extra" not in event["payload"]


class _Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class _NoMapping(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class _Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (_Number.ONE, 1),
        (10**50, 10**50),
        (10**100, str(10**100)),
        (-(10**100), str(-(10**100))),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("\ud800x", "\\ud800x"),
        (b"bytes", "b'bytes'"),
        ({1, 2}, [1, 2]),
        ((1, [2]), [1, [2]]),
        ({1: {None: "x"}}, {"1": {"None": "x"}}),
        (Path("/tmp"), "/tmp"),
        (datetime(2026, 11, 23, tzinfo=UTC), "2026-11-23 00:00:00+00:00"),
        (_Hostile(), "<_Hostile without a text>"),
        (_NoMapping(), "<_NoMapping that cannot be read>"),
        ({_Hostile(): 1}, {"<_Hostile without a text>": 1}),
    ],
)
def test_extra_fields_of_any_kind_become_json(value: Any, expected: Any) -> None:
    record = logging.makeLogRecord({"msg": "m", "field": value})
    found = record_payload(record)["extra"]["field"]
    json.dumps(found, allow_nan=False).encode()
    assert found == expected and type(found) in {dict, list, str, int, bool, float, type(None), _Number}


def test_a_number_that_python_refuses_to_write_is_no_trouble() -> None:
    assert record_payload(logging.makeLogRecord({"field": 10**5000}))["extra"]["field"] == "<int without a text>"


def test_arguments_that_do_not_fit_are_logged_all_the_same(
    fake: FakeServer, publisher: Publisher, logger: logging.Logger
) -> None:
    logging.raiseExceptions, before = False, logging.raiseExceptions  # for the other handlers
    try:
        logger.info("%d orders", "many")
        logger.info("%s", _Hostile())
    finally:
        logging.raiseExceptions = before
    first, second = (event["payload"]["message"] for event in _events(fake, publisher))
    assert first == "%d orders ('many',)" and "%s" in second


def test_whatever_is_logged_is_bounded() -> None:
    cycle: dict[str, Any] = {}
    cycle["again"], cycle["and again"] = cycle, [cycle] * 1_000
    record = logging.makeLogRecord({"msg": "\x00" * 10_000_000, "cycle": cycle, "wide": list(range(1_000_000))})
    payload = record_payload(record)
    assert len(json.dumps(payload, ensure_ascii=False).encode()) < EVENT_BYTES_MAX
    assert payload["message"].startswith("\x00" * CHARACTERS_MAX) or "(cut)" in payload["message"]
    deep: Any = "end"
    for _ in range(100):
        deep = [deep]
    assert json.dumps(record_payload(logging.makeLogRecord({"deep": deep}))).count("[") < 300


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(anything, st.text(st.characters()), st.tuples(anything))
def test_every_record_is_json(value: Any, message: str, arguments: tuple[Any, ...]) -> None:
    record = logging.makeLogRecord({"msg": message, "args": arguments, "value": value})
    encoded = json.dumps(record_payload(record), allow_nan=False, ensure_ascii=False).encode()
    assert "message" in json.loads(encoded) and len(encoded) < EVENT_BYTES_MAX


def test_logging_never_waits_and_counts_what_it_drops(fake: FakeServer) -> None:
    fake.gate.clear()
    dropped: list[Event] = []
    for when_full in ("block", "raise", "drop_newest", "drop_oldest"):
        publisher = Publisher(
            fake.url,
            when_full=when_full,
            limits=Limits(buffer_events_max=3),
            on_drop=lambda event, why: dropped.append(event),
        )
        with _Logging(publisher) as logger:
            for number in range(10):
                logger.info("record %d", number)
            counts = publisher.counts()
            assert (counts.published, counts.dropped, counts.held_events) == (10, 7, 3), when_full
            fake.gate.set()
        assert publisher.close(DEADLINE_S)
        fake.gate.clear()
    assert len(dropped) == 28
    fake.gate.set()
    left = [event["payload"]["message"] for event in fake.events.values()]
    assert left[:3] == ["record 0", "record 1", "record 2"]


def test_Logging_a_closed_publisher_is_counted(fake: FakeServer) -> None:
    publisher = Publisher(fake.url, on_drop=lambda event, why: None)
    publisher.close()
    with _Logging(publisher) as logger:
        logger.info("too late")
    assert publisher.counts().dropped == 1


def test_what_publishing_logs_is_not_published(fake: FakeServer) -> None:
    """The root logger at DEBUG: urllib3 logs each request, and the publisher its trouble. It comes to an end."""
    seen: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.name)

    def on_verdict(event: Event, verdict: Verdict) -> None:
        logging.getLogger("callback").info("a verdict: %s", verdict)

    root, level, listener = logging.getLogger(), logging.getLogger().level, Listener()
    publisher = Publisher(fake.url, on_verdict=on_verdict, random_share=lambda: 0.0, limits=Limits(linger_s=0))
    handler = SekaliHandler(publisher, "app")
    fake.script.append(problem(503, "t", "d"))
    root.addHandler(handler)
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        logging.getLogger("shop").info("one record")
        handler.flush()
    finally:
        root.removeHandler(handler)
        root.removeHandler(listener)
        root.setLevel(level)
    assert publisher.close(DEADLINE_S)
    assert {"shop", "urllib3.connectionpool", "sekali.client", "callback"} <= set(seen), "the fault did not happen"
    assert [event["payload"]["logger"] for event in fake.events.values()] == ["shop"]


def test_a_drop_that_is_logged_does_not_drop_again(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    fake.gate.clear()
    publisher = Publisher(fake.url, when_full="drop_newest", limits=Limits(buffer_events_max=1))
    handler = SekaliHandler(publisher, "app")
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for _ in range(3):
            logging.getLogger("shop").warning("a record")
    finally:
        root.removeHandler(handler)
    assert publisher.counts().dropped == 2
    assert sum(record.name == "sekali.client" for record in caplog.records) == 1
    fake.gate.set()
    publisher.close()


def test_a_flush_that_holds_the_lock_of_the_handler_does_not_stop_the_publisher(
    fake: FakeServer, publisher: Publisher
) -> None:
    """As when logging shuts down, while urllib3 logs on the publisher's thread."""
    with _Logging(publisher, "urllib3.connectionpool") as logger:
        logger.info("one record")
        handler = logger.handlers[0]
        handler.acquire()
        try:
            handler.flush()
            assert len(fake.events) == 1
        finally:
            handler.release()


def test_a_flush_from_a_callback_is_none(fake: FakeServer, publisher: Publisher, logger: logging.Logger) -> None:
    done = threading.Event()
    handler = logger.handlers[0]

    def flush(_: object) -> None:
        assert is_ours()
        handler.flush()
        done.set()

    publisher.publish("t", 1).add_done_callback(flush)
    assert done.wait(DEADLINE_S)


def test_levels_and_filters_are_those_of_logging(fake: FakeServer, publisher: Publisher) -> None:
    with _Logging(publisher, level="WARNING") as logger:
        logger.handlers[0].addFilter(lambda record: "secret" not in record.getMessage())
        logger.info("too low")
        logger.error("a secret")
        logger.error("this one")
    assert [event["payload"]["message"] for event in _events(fake, publisher)] == ["this one"]


def test_with_an_outbox_a_record_does_not_wait_for_the_disk(fake: FakeServer, tmp_path: Path) -> None:
    publisher = Publisher(fake.url, outbox=OutboxFile(tmp_path / "logs.outbox"), limits=Limits(buffer_events_max=2))
    assert publisher._desk is not None
    stuck, original = threading.Event(), publisher._desk.send

    def send(batch: Any) -> Any:
        assert stuck.wait(DEADLINE_S)
        return original(batch)

    publisher._desk.send = send  # type: ignore[method-assign]
    with _Logging(publisher) as logger:
        for number in range(5):
            logger.info("record %d", number)
        assert publisher.counts().dropped == 3
        stuck.set()
    assert publisher.close(DEADLINE_S)
    assert len(fake.events) == 2


AT_EXIT = """
import atexit, logging, sys, threading
from sekali.client import Limits, Publisher, SekaliHandler
publisher = Publisher(sys.argv[1], limits=Limits(linger_s=1000))
logging.getLogger().addHandler(SekaliHandler(publisher, "app"))
logging.getLogger().setLevel(logging.DEBUG)
atexit.register(lambda: logging.warning("registered after the publisher"))
threading.Timer(0.01, lambda: logging.warning("a thread that ends late")).start()
logging.warning("the last line")
sys.exit(sys.argv[2] if sys.argv[2:] else 0)
"""
BEFORE = 'import atexit, logging\natexit.register(lambda: logging.warning("registered before the publisher"))\n'


def _run(code: str, *arguments: str, status: int = 0, out: bool = False) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == status, result.stderr
    return result.stdout if out else result.stderr


def test_no_record_is_lost_at_the_end_of_the_process(fake: FakeServer) -> None:
    _run(BEFORE + AT_EXIT, fake.url)
    messages = {event["payload"]["message"] for event in fake.events.values()}
    assert messages == {
        "the last line",
        "a thread that ends late",
        "registered after the publisher",
        "registered before the publisher",
    }


def test_an_exception_that_ends_the_process_does_not_end_the_log(fake: FakeServer) -> None:
    assert "an error" in _run(AT_EXIT, fake.url, "an error", status=1)
    assert len(fake.events) == 3


SIGNALS = """
import logging, signal, sys
from sekali.client import Limits, Publisher, SekaliHandler
publisher = Publisher(sys.argv[1], limits=Limits(buffer_events_max=1_000_000, buffer_bytes_max=10**10))
logging.getLogger().addHandler(SekaliHandler(publisher, "app"))
logging.getLogger().setLevel(logging.INFO)
interruptions = []
def handle(number, frame):
    logging.info("a signal")
    interruptions.append(frame.f_code.co_filename)
    signal.setitimer(signal.ITIMER_REAL, 0.0002)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0002)
records = 0
while len(interruptions) < 500 or not any("sekali/client/pump" in name for name in interruptions):
    logging.info("a record")
    records += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert publisher.close(30)
counts = publisher.counts()
print(records + len(interruptions) - counts.published, counts.published - counts.stored - counts.dropped)
"""


def test_a_signal_handler_may_log_at_any_moment(fake: FakeServer) -> None:
    assert _run(SIGNALS, fake.url, out=True).split() == ["0", "0"]


def test_structlog_entries_are_published_and_go_on(fake: FakeServer, publisher: Publisher) -> None:
    processor = SekaliProcessor(publisher, "app/shop", source="shop-1")
    with structlog.testing.capture_logs(processors=[structlog.stdlib.add_log_level, processor]) as captured:
        log = structlog.get_logger().bind(order=17)
        log.warning("paid", total=4.5, nothing=None)
        try:
            raise ValueError("oh")
        except ValueError:
            log.exception("it failed")
    paid, failed = (event for event in _events(fake, publisher))
    assert (paid["topic"], paid["source"]) == ("app/shop", "shop-1")
    assert paid["payload"] == {
        "level": "warning",
        "logger": None,
        "message": "paid",
        "extra": {"order": 17, "total": 4.5, "nothing": None},
    }
    assert failed["payload"]["exception"]["message"] == "oh"
    assert "raise ValueError" in failed["payload"]["exception"]["traceback"]
    assert captured[0] == {"event": "paid", "order": 17, "total": 4.5, "nothing": None, "log_level": "warning"} | {
        key: value for key, value in captured[0].items() if key == "level"
    }


class _Named:
    name = "shop"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"event": "e"}, {"level": "info", "logger": "shop", "message": "e"}),
        ({"event": "e", "logger": "l", "level": "error"}, {"level": "error", "logger": "l", "message": "e"}),
        ({"event": 5}, {"level": "info", "logger": "shop", "message": 5}),
        (
            {"event": "e", "exception": "Traceback …", "stack": "Stack …", "exc_info": None},
            {
                "level": "info",
                "logger": "shop",
                "message": "e",
                "exception": {"traceback": "Traceback …"},
                "stack": "Stack …",
            },
        ),
        ({"event": "e", "_record": object()}, {"level": "info", "logger": "shop", "message": "e"}),
    ],
)
def test_entries_of_structlog(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    before = dict(entry)
    assert entry_payload(_Named(), "info", entry) == expected
    assert entry == before


def test_exceptions_of_structlog_come_in_three_ways() -> None:
    try:
        raise ValueError("oh")
    except ValueError as error:
        ways = [True, error, sys.exc_info()]
        found = [entry_payload(None, "error", {"event": "e", "exc_info": way})["exception"] for way in ways]
    assert {(one["type"], one["message"]) for one in found} == {("ValueError", "oh")}
    assert len({one["traceback"] for one in found}) == 1


def test_a_processor_on_the_publishers_own_thread_publishes_nothing(fake: FakeServer) -> None:
    published: list[Any] = []

    def on_verdict(event: Event, verdict: Verdict) -> None:
        published.append(processor(None, "info", {"event": "a verdict"}))

    publisher = Publisher(fake.url, on_verdict=on_verdict)
    processor = SekaliProcessor(publisher, "app")
    processor(None, "info", {"event": "one"})
    assert publisher.close(DEADLINE_S)
    assert published == [{"event": "a verdict"}] and len(fake.events) == 1


def test_a_defect_of_ours_is_not_the_applications(
    fake: FakeServer, publisher: Publisher, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("sekali.client.logs.record_payload", lambda record: 1 / 0)
    logger.info("x")
    assert "ZeroDivisionError" in caplog.text
