"""Follows a log as it grows, by seq, without a gap."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sekali.client.errors import Gone, NotSekali
from sekali.client.http import Page, Server

IDLE_FIRST_S = 0.05
IDLE_LONGEST_S = 1.0

_decode_at = json.JSONDecoder().raw_decode


class Row(NamedTuple):
    """An event, and its JSON text as the server wrote it (numbers read and written again may not be the same)."""

    event: dict[str, Any]
    text: str


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


def newest_seq(server: Server) -> int:
    """Return the seq of the newest event of the log, 0 if it is empty. Raises as ``Server.get`` does."""
    newest = rows(server.get("/events", {"order": "-seq", "limit": 1}))
    return int(newest[0].event["seq"]) if newest else 0


def follow(
    server: Server,
    after: int,
    *,
    topic: str | None = None,
    log_id: str,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[Row]]:
    """Yield the events above the seq ``after``, in order, as they come. Never ends by itself.

    ``log_id`` is that of the log that ``after`` is a position of.

    Raises:
        Gone: the server holds another log now, a restored one for instance.
        ClientError: see ``Server.get``.

    """
    idle_s = IDLE_FIRST_S
    while True:
        params: dict[str, str | int | None] | str | None = {"after": after, "topic": topic}
        is_idle = True
        while params is not None:
            page = server.get("/events", params)
            found = rows(page)
            if found:
                if is_idle:  # a cursor names its log, a seq does not: ask before these are believed
                    _check_log(server, log_id)
                after = int(found[-1].event["seq"])
                is_idle = False
                yield found
            params = page.next
        idle_s = min(idle_s * 2, IDLE_LONGEST_S) if is_idle else IDLE_FIRST_S
        sleep(idle_s)


def _check_log(server: Server, log_id: str) -> None:
    found = server.get_object("/stats").get("log_id")
    if found != log_id:
        raise Gone(410, f"{server.url}: the log is another one now (log_id {found}, before {log_id})")
