"""What has threads that call a handler: it starts, runs in a thread or in asyncio, stops after the event at hand."""

import asyncio
import inspect
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from sekali.client.background import register
from sekali.client.connect import open_server
from sekali.client.http import Server
from sekali.client.notices import Notices

CLOSE_S = 30.0


class Stopped(Exception):
    """It was to wait, and is to end."""


class Consumer(ABC):
    """The life of a subscriber or follower. Use it with ``run``, ``await run_async``, or ``start`` and ``close``.

    After a fork the parent's goes on, and the child's is as new.
    """

    def __init__(
        self,
        handle: Callable[..., Any],
        server_address: tuple[str, str | None, str | None],
        threads: int,
        *,
        stop_on_error: bool,
        random_share: Callable[[], float],
    ) -> None:
        self._handle = handle
        self._is_async = inspect.iscoroutinefunction(handle)
        self._server_address = server_address
        self._threads_max = threads
        self._stops_on_error = stop_on_error
        self._random_share = random_share
        self._reset()
        register(self)

    def _reset(self) -> None:
        """Make everything that a fork would break."""
        # It waits for the server as long as it takes, and every wait ends when this stops.
        self._server: Server = open_server(
            *self._server_address, give_up_after_s=math.inf, connections_max=self._threads_max, sleep=self._pause
        )
        self._notices = Notices()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._error: BaseException | None = None

    @abstractmethod
    def _work(self) -> None:
        """Consume, on one of the threads, until ``_stopping``."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self) -> None:
        """Consume until somebody calls ``stop``, from a signal handler for instance.

        Raises:
            ClientError: the server refused, and would again. What it is made of says what to do.
            Exception: the handler's own, with ``stop_on_error``.
            RuntimeError: it runs already, or has ended.
            TypeError: the handler is a coroutine function.

        """
        self.start()
        try:
            for thread in self._threads:
                thread.join()
        finally:
            self.close()

    async def run_async(self) -> None:
        """Consume until somebody calls ``stop`` or this is cancelled, which waits for the event at hand.

        A handler that is a coroutine function runs on this event loop, any other on a thread. Raises as ``run`` does.
        """
        self._loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(asyncio.to_thread(self.run))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self.stop()
            await running
            raise

    def start(self) -> None:
        """Begin to consume, on threads of its own. Errors are raised by ``close``. Raises as ``run`` does."""
        if self._is_async and self._loop is None:
            raise TypeError("the handler is a coroutine function: await run_async()")
        with self._changed:
            if self._threads:
                raise RuntimeError("it runs already, or has ended; make another one")
            self._threads = [
                threading.Thread(target=self._run, name="sekali-consumer", daemon=True)
                for _ in range(self._threads_max)
            ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let it end after the event at hand. Returns at once; safe in a handler and in a signal handler."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Stop, and wait for the event at hand; tell whether it ended in time.

        Raises:
            Exception: what ended it, if it ended by itself; see ``run``. Once.

        """
        self.stop()
        has_ended = self._wait(time.monotonic() + timeout_s)
        self._server.close()
        self._notices.say_rest()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return has_ended

    def at_exit(self, deadline_s: float) -> None:
        """Stop in order before the process ends."""
        self.stop()
        self._wait(deadline_s)

    def after_fork(self) -> None:
        """Be as new in a child."""
        self._reset()

    def _wait(self, deadline_s: float) -> bool:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        try:
            if not self._stopping:
                self._work()
        except Stopped:
            pass
        except BaseException as error:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """End all of it with an error; the first one counts."""
        with self._changed:
            self._error = self._error or error
        self.stop()

    def _pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopped: it is to end.

        """
        with self._changed:
            if self._changed.wait_for(lambda: self._stopping, min(seconds, threading.TIMEOUT_MAX)):
                raise Stopped("it was stopped")

    def _call(self, *arguments: Any) -> None:
        """Call the handler, where it wants to be called."""
        if not self._is_async:
            self._handle(*arguments)
            return
        assert self._loop is not None  # start has seen to it
        asyncio.run_coroutine_threadsafe(self._handle(*arguments), self._loop).result()
