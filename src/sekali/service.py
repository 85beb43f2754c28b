"""The composition root: the only place that names concrete classes, reads clocks and handles signals."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
import uvicorn
import uvloop
from rich.console import Console
from rich.progress import Progress

from sekali.api.app import Api
from sekali.api.body import ByteBudget
from sekali.api.protocol import bounded_protocol
from sekali.api.publish import Publish
from sekali.api.read import Reading, StreamCut
from sekali.consumer import Consumer
from sekali.errors import StartupError
from sekali.metrics import Metrics
from sekali.ports import EventStore
from sekali.settings import ServerSettings
from sekali.stores.sqlite import SqliteStore

READER_THREADS = 4
LISTEN_BACKLOG = 1024
EXIT_OK, EXIT_TOO_LATE, EXIT_GAVE_UP = 0, 1, 4

log = structlog.get_logger("sekali")


def open_store(settings: ServerSettings, *, accept_lost_tail: bool = False) -> EventStore:
    """Open the store that the settings name. ``accept_lost_tail``: also where it is known to have lost its end.

    Raises:
        StartupError: it cannot be used; the message says what to do.
        StoreBroken: it cannot be opened.

    """
    return SqliteStore(
        settings.db_path,
        time.time_ns,
        topics_max=settings.topics_max,
        disk_free_bytes_min=settings.disk_free_bytes_min,
        read_timeout_s=settings.read_timeout_s,
        accept_lost_tail=accept_lost_tail,
    )


def serve(settings: ServerSettings, open_store: Callable[[ServerSettings], EventStore] = open_store) -> int:
    """Run the server until SIGTERM or SIGINT, and return the exit code.

    0: everything accepted was committed and answered. 1: that took longer than ``stop_timeout_s``. 4: commits failed
    again and again, so that it gave up. A store of one's own, such as one that injects faults, comes in through
    ``open_store``.

    Raises:
        StartupError: it cannot start; the message says what to do.
        StoreBroken: the store cannot be opened.

    """
    configure_logging(settings.log_level)
    gc.freeze()  # what is imported lives as long as the process: the collector need not look at it again and again
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(settings))
        store = open_store(settings)
        stack.callback(store.close)
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        code = runner.run(_serve(settings, store, listener))
        if code == EXIT_TOO_LATE:
            # To close the file would be to wait for the commit that does not end. What was acknowledged is safe.
            os._exit(code)
        return code


@dataclass(frozen=True, slots=True)
class Running:
    """The parts that answer: ``app`` by ASGI, ``publish`` for the connections.

    ``ready`` is set once publishing is open. Reading is at once, and the store may take its time to get ready.
    """

    app: Api
    publish: Publish
    ready: asyncio.Event


@contextlib.asynccontextmanager
async def running_app(
    settings: ServerSettings,
    store: EventStore,
    stopping: asyncio.Event,
    on_give_up: Callable[[str], None] = lambda reason: None,
) -> AsyncIterator[Running]:
    """Put the parts together over a store and run them; at the end commit what was accepted.

    ``on_give_up`` is told why no commit works, once none will be tried any more.

    Raises:
        TimeoutError: at the end, that took longer than ``settings.stop_timeout_s``.

    """
    metrics = Metrics(time.monotonic)
    budget = ByteBudget(settings.queue_bytes_max)
    consumer = Consumer(
        store,
        metrics,
        time.monotonic,
        workers=settings.consumer_workers,
        queue_events_max=settings.queue_events_max,
        commit_events_max=settings.commit_events_max,
        commit_wait_ms_max=settings.commit_wait_ms_max,
        on_recovery=RecoveryReport(),
        on_give_up=on_give_up,
    )
    with (
        ThreadPoolExecutor(READER_THREADS, "sekali-reader") as readers,
        ThreadPoolExecutor(1, "sekali-careful") as careful,
    ):
        publish = Publish(consumer, metrics, budget, careful, time.monotonic, settings)
        reading = Reading(store, consumer, metrics, budget, readers, stopping, settings)
        consumer.start()
        try:
            yield Running(Api(reading), publish, consumer.ready)
        finally:
            if not await consumer.stop(settings.stop_timeout_s):
                raise TimeoutError("the last commit did not end in time")


class RecoveryReport:
    """Shows how far a store has come in getting ready: a bar on a terminal, else a line in the log every second."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._next_at_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show that so many of so many events are done."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = Progress(console=Console(stderr=True))
                self._task = self._bar.add_task("making the dedup index from the log")
                self._bar.start()
            self._bar.update(self._task, completed=done, total=total)
            if done == total:
                self._bar.stop()
                self._bar = None
        elif done == total or time.monotonic() >= self._next_at_s:
            log.info("making the dedup index from the log", done=done, total=total)
            self._next_at_s = time.monotonic() + 1


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process by the signal instead of with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(settings: ServerSettings, store: EventStore, listener: socket.socket) -> int:
    stopping = asyncio.Event()
    code = EXIT_OK
    async with contextlib.AsyncExitStack() as stack:

        def give_up(reason: str) -> None:
            nonlocal code
            code = EXIT_GAVE_UP
            log.error(
                "gave up: no commit works, so that nothing new can be stored. What was acknowledged is on the disk. "
                "See to the disk and its file system (dmesg, free space, mount options), then start the server again",
                reason=reason,
                db_path=str(settings.db_path),
            )
            stopping.set()
            server.should_exit = True

        running = await stack.enter_async_context(running_app(settings, store, stopping, give_up))
        server = _Server(
            uvicorn.Config(
                running.app,
                http=bounded_protocol(settings.header_timeout_s, running.publish),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=max(int(settings.stop_timeout_s), 1),
            )
        )

        def stop() -> None:
            log.info("stopping")
            stopping.set()
            server.should_exit = True

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)

        host, port = listener.getsockname()[:2]
        log.info("listening", url=f"http://{host}:{port}")

        async def report_ready() -> None:
            await running.ready.wait()
            log.info("ready", url=f"http://{host}:{port}", db_path=str(settings.db_path), head=store.summary().head)

        reporting = asyncio.create_task(report_ready())
        await server.serve([listener])
        reporting.cancel()
        try:
            await stack.aclose()
        except TimeoutError as error:
            log.error("stopped too late", reason=str(error))
            return EXIT_TOO_LATE
    log.info("stopped")
    return code


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupError(f"cannot resolve HOST {settings.host}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; choose another HOST or PORT"
        ) from None
    return listener


def configure_logging(level: str) -> None:
    """Log to standard error: in colour for a person on a terminal, else JSON lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_Forward()], force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


class _Forward(logging.Handler):
    """Gives what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop uvicorn's report of a stream that we cut on purpose."""
    return not (record.exc_info and isinstance(record.exc_info[1], StreamCut))
