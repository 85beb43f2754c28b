"""Follows a log as it grows, in order and without a gap; and takes pages of events apart."""

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import urllib3

from sekali.client.backoff import backoff_s
from sekali.client.errors import NotSekali, StreamCut
from sekali.client.http import CONNECT_TIMEOUT_S, Page, Params, Server
from sekali.client.sse import Message, Parser

SILENCE_S = 45.0  # the server has something to say every 15 s

_decode_at = json.JSONDecoder().raw_decode


class Row(NamedTuple):
    """An event, and its JSON text as the server wrote it (numbers read and written again may not be the same).

    Of one that was followed ``id`` is its place in the log, to go on behind it.
    """

    event: dict[str, Any]
    text: str
    id: str = ""


def rows(page: Page) -> list[Row]:
    """Return the events of a page.

    Raises:
        NotSekali: it is no array of objects.

    """
    text = page.text.strip()
    found: list[Row] = []
    if not text.startswith("[") or not text.endswith("]"):
        raise NotSekali("the answer is not a list of events. Check the URL")
    start = _skip(text, 1, " \t\r\n")
    while start < len(text) - 1:
        try:
            event, end = _decode_at(text, start)
        except (ValueError, RecursionError) as error:
            raise NotSekali(f"the answer is not JSON ({error}). Check the URL") from None
        if not isinstance(event, dict):
            raise NotSekali("the answer is not a list of events. Check the URL")
        # Line ends can only stand between the tokens, where a space does as well.
        found.append(Row(event, text[start:end].replace("\n", " ").replace("\r", " ")))
        start = _skip(text, end, " \t\r\n,")
    return found


def _skip(text: str, start: int, characters: str) -> int:
    while start < len(text) and text[start] in characters:
        start += 1
    return start


def follow(
    server: Server,
    *,
    topic: str | None = None,
    after: str = "latest",
    last_event_id: str | None = None,
    on_open: Callable[[Callable[[], None]], object] = lambda hang_up: None,
    sleep: Callable[[float], None] = time.sleep,
    random_share: Callable[[], float] = random.random,
) -> Iterator[list[Row]]:
    """Yield events as they are committed, in order, each once. Never ends by itself: a broken connection is made anew.

    Args:
        server: tries to connect as patiently as it is told to.
        topic: a topic or a pattern.
        after: where to begin: behind this seq, ``earliest`` or ``latest``.
        last_event_id: the ``id`` of a row: begin behind that instead.
        on_open: given what ends a connection, from any thread, each time one is made.
        sleep: waits for so many seconds.
        random_share: random numbers in [0, 1).

    Raises:
        Gone: the position is not one of the server's log, which is a restored one for instance.
        ClientError: see ``Server.get``.

    """
    failures = 0
    params: Params = {"topic": topic, "after": after}
    while True:
        try:
            for number, messages in enumerate(_subscribe(server, params, last_event_id, on_open)):
                if messages:
                    last_event_id = messages[-1].id or last_event_id
                if found := [_row(message) for message in messages if message.data is not None]:
                    yield found
                if number:  # the first that a server says, it says to everybody
                    failures = 0
        except StreamCut:
            pass  # it goes on behind the last event that came whole
        failures += 1
        sleep(backoff_s(failures, random_share()))


def _subscribe(
    server: Server, params: Params, last_event_id: str | None, on_open: Callable[[Callable[[], None]], object]
) -> Iterator[list[Message]]:
    """Yield what one connection brings, as it comes. Ends where the server ends the stream."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=SILENCE_S)
    parser = Parser()
    for piece in server.pieces("/subscribe", params, "text/event-stream", headers, on_open, timeout=timeout):
        try:
            yield parser.feed(piece)
        except ValueError as error:
            raise NotSekali(f"the answer is no stream of events ({error}). Check the URL") from None


def _row(message: Message) -> Row:
    text = str(message.data)
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotSekali(f"an event is not JSON ({error}). Check the URL") from None
    if not isinstance(event, dict):
        raise NotSekali("an event is not an object. Check the URL")
    return Row(event, text, message.id or "")
