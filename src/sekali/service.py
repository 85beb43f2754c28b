"""The composition root: the only place that names concrete classes, reads clocks and handles signals."""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import structlog
import uvicorn
import uvloop
from rich.console import Console
from rich.progress import Progress

from sekali.admission import Admission
from sekali.api.access import Access
from sekali.api.app import Api
from sekali.api.body import ByteBudget
from sekali.api.connections import Connections, require_descriptors
from sekali.api.protocol import bounded_protocol
from sekali.api.publish import Publish
from sekali.api.read import Reading
from sekali.api.subscribe import Subscribing
from sekali.api.subscriptions import SubscriptionRoutes
from sekali.api.wire import events_sse, pushed_json
from sekali.consumer import Consumer
from sekali.feed import Feed
from sekali.listening import Server, listen
from sekali.logs import configure_logging
from sekali.metrics import Metrics
from sekali.ports import EventStore
from sekali.push.pusher import Means
from sekali.push.pushing import REQUESTS_IN_ALL_MAX, Pushing
from sekali.push.sender import Resolve, Sender
from sekali.settings import ServerSettings, networks
from sekali.stores.sqlite import SqliteStore
from sekali.subscriptions.manager import Subscriptions
from sekali.tls import server_context

READER_THREADS = 4
DELIVERY_THREADS = 2
RESOLVER_THREADS = 8
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

    0: everything accepted was committed and answered. 1: that took longer than ``stop_timeout_s``. 4: it gave up,
    because commits failed again and again, or because there is no memory left. A store of one's own, such as one that
    injects faults, comes in through ``open_store``.

    Raises:
        StartupError: it cannot start; the message says what to do.
        StoreBroken: the store cannot be opened.

    """
    configure_logging(settings.log_level)
    admission = Admission(settings)
    tls = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        tls = server_context(settings.tls_cert_file, settings.tls_key_file)
    require_descriptors(settings.connections_max)
    gc.freeze()  # what is imported lives as long as the process: the collector need not look at it again and again
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings))
        admission.require_safe(listener.getsockname()[0])
        store = open_store(settings)
        stack.callback(store.close)
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        try:
            code = runner.run(_serve(settings, store, listener, admission, tls))
        except MemoryError:
            _end_without_memory()
        if code != EXIT_OK:
            # To close the file may be to wait for a commit that does not end. What was acknowledged is safe.
            os._exit(code)
        return code


def _end_without_memory() -> NoReturn:
    """End at once, for whoever watches the server to start it again: to stop in order would take memory, too."""
    with contextlib.suppress(MemoryError):
        log.error("ended: there is no memory left. What was acknowledged is on the disk. Start the server again")
    os._exit(EXIT_GAVE_UP)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what no connection can be blamed for.

    For want of memory the loop may have stopped to accept connections, which it would never do again by itself.
    """
    if isinstance(context.get("exception"), MemoryError) and "transport" not in context:
        _end_without_memory()
    loop.default_exception_handler(context)


@dataclass(frozen=True, slots=True)
class Running:
    """The parts that answer: ``app`` by ASGI, ``publish`` for the connections.

    ``ready`` is set once publishing is open. Reading is at once, and the store may take its time to get ready.
    """

    app: Api
    publish: Publish
    connections: Connections
    ready: asyncio.Event


@contextlib.asynccontextmanager
async def running_app(
    settings: ServerSettings,
    store: EventStore,
    stopping: asyncio.Event,
    metrics: Metrics,
    access: Access,
    on_give_up: Callable[[str], None] = lambda reason: None,
) -> AsyncIterator[Running]:
    """Put the parts together over a store and run them; at the end commit what was accepted.

    ``on_give_up`` is told why no commit works, once none will be tried any more.

    Raises:
        TimeoutError: at the end, that took longer than ``settings.stop_timeout_s``.

    """
    budget = ByteBudget(settings.queue_bytes_max)
    with (
        ThreadPoolExecutor(READER_THREADS, "sekali-reader") as readers,
        ThreadPoolExecutor(1, "sekali-feed") as feeder,
        ThreadPoolExecutor(DELIVERY_THREADS, "sekali-delivery") as deliverers,
        ThreadPoolExecutor(1, "sekali-careful") as careful,
        ThreadPoolExecutor(RESOLVER_THREADS, "sekali-resolver") as resolvers,
    ):
        feed = Feed(store, feeder, partial(events_sse, store.summary().log_id))
        clock_ns = steady_clock_ns()
        subscriptions = Subscriptions(
            store,
            deliverers,
            stopping,
            clock_ns,
            lambda: secrets.token_urlsafe(16),
            subscriptions_max=settings.subscriptions_max,
        )
        sender = _sender(resolvers, settings)
        pushing = Pushing(_means_of_push(subscriptions, sender, stopping, clock_ns, settings))

        def on_stored(count: int, newest: int, topics: list[list[str]]) -> None:
            feed.committed(count, newest, topics)
            subscriptions.stored(newest, topics)

        def on_recovered() -> None:
            feed.look_again()
            subscriptions.look_again()
            pushing.look_again()

        consumer = _consumer(store, metrics, settings, on_give_up, on_stored, on_recovered)
        connections = Connections(metrics, settings)
        publish = Publish(consumer, metrics, budget, careful, time.monotonic, access, settings)
        routers = [
            Reading(
                store,
                consumer,
                metrics,
                budget,
                connections,
                subscriptions,
                pushing,
                readers,
                stopping,
                access,
                settings,
            ).router,
            Subscribing(store, feed, readers, stopping, access, metrics).router,
            SubscriptionRoutes(subscriptions, pushing, store, budget, deliverers, access, settings).router,
        ]
        consumer.start()
        subscriptions.start(consumer)
        pushing.start(consumer.ready)
        try:
            yield Running(Api(routers, access), publish, connections, consumer.ready)
        finally:
            await pushing.stop()
            sender.close()
            await subscriptions.stop()
            if not await consumer.stop(settings.stop_timeout_s):
                raise TimeoutError("the last commit did not end in time")


def _consumer(
    store: EventStore,
    metrics: Metrics,
    settings: ServerSettings,
    on_give_up: Callable[[str], None],
    on_stored: Callable[[int, int, list[list[str]]], None],
    on_recovered: Callable[[], None],
) -> Consumer:
    return Consumer(
        store,
        metrics,
        time.monotonic,
        workers=settings.consumer_workers,
        queue_events_max=settings.queue_events_max,
        commit_events_max=settings.commit_events_max,
        commit_wait_ms_max=settings.commit_wait_ms_max,
        on_recovery=RecoveryReport(),
        on_give_up=on_give_up,
        on_stored=on_stored,
        on_recovered=on_recovered,
    )


def _sender(resolvers: ThreadPoolExecutor, settings: ServerSettings) -> Sender:
    return Sender(
        pushed_json,
        resolver(resolvers),
        ssl.create_default_context(),
        networks(settings.push_allowed_networks),
        time.time,
    )


def _means_of_push(
    subscriptions: Subscriptions,
    sender: Sender,
    stopping: asyncio.Event,
    clock_ns: Callable[[], int],
    settings: ServerSettings,
) -> Means:
    return Means(
        subscriptions,
        sender.send,
        stopping,
        clock_ns,
        asyncio.sleep,
        random.random,
        asyncio.Semaphore(REQUESTS_IN_ALL_MAX),
        settings.push_pause_after_s,
    )


def steady_clock_ns() -> Callable[[], int]:
    """Return a clock that shows the time of now and goes on steadily from there, whatever the wall clock is set to."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    return lambda: time.monotonic_ns() + offset_ns


def resolver(threads: ThreadPoolExecutor) -> Resolve:
    """Return what looks up the addresses of a host, on threads of its own: a name server may let one wait for long."""

    async def resolve(host: str, port: int) -> list[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return [str(found[4][0]) for found in await asyncio.get_running_loop().run_in_executor(threads, look_up)]

    return resolve


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


async def _serve(
    settings: ServerSettings,
    store: EventStore,
    listener: socket.socket,
    admission: Admission,
    tls: ssl.SSLContext | None,
) -> int:
    stopping = asyncio.Event()
    metrics = Metrics(time.monotonic)
    host, port = listener.getsockname()[:2]
    url = f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
    access = admission.access(host, metrics)
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

        running = await stack.enter_async_context(running_app(settings, store, stopping, metrics, access, give_up))
        server = Server(
            uvicorn.Config(
                running.app,
                http=bounded_protocol(running.publish, running.connections),
                timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]  # any number will do
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=max(int(settings.stop_timeout_s), 1),
            ),
            tls,
            settings.header_timeout_s,
        )

        def stop() -> None:
            log.info("stopping")
            stopping.set()
            server.should_exit = True

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)

        log.info("listening", url=url)

        async def report_ready() -> None:
            await running.ready.wait()
            log.info("ready", url=url, db_path=str(settings.db_path), head=store.summary().head)

        beside = [asyncio.create_task(report_ready()), asyncio.create_task(admission.keep_up(access))]
        await server.serve([listener])
        for task in beside:
            task.cancel()
        try:
            await stack.aclose()
        except TimeoutError as error:
            log.error("stopped too late", reason=str(error))
            return EXIT_TOO_LATE
    log.info("stopped")
    return code
