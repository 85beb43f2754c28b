"""Pages of a listing, one leading to the next: a cursor in the ``Link`` header says where the one before ended."""

from dataclasses import replace
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import Response

from sekali.api import wire
from sekali.ports import EventStore, Page, Position, Query, Summary


def begin(store: EventStore, query: Query, token: str | None) -> tuple[Query, Summary]:
    """Put a query behind its cursor, if that is of this log.

    By event time a late event may belong anywhere. So that the pages fit together, each is of the log as it was when
    the first was asked for, and the cursor knows how far that had come. By seq what is new comes last, and is shown.

    Raises:
        InvalidQuery, PositionGone: see ``wire.open_cursor``.

    """
    summary = store.summary(query.readable)
    wire.require_not_above_head(query.after, summary)
    head = summary.head
    if token is not None:
        cursor = wire.open_cursor(token, listing_of(query), (int, int), summary)
        seq, timestamp_ns = cursor.position
        assert isinstance(seq, int) and isinstance(timestamp_ns, int)
        query = replace(query, position=Position(seq, timestamp_ns))
        head = cursor.head
    return (replace(query, up_to=head) if query.order.by_time else query), summary


def page_of_events(store: EventStore, query: Query, token: str | None) -> tuple[Page, wire.Cursor | None]:
    """Return the page behind a cursor (None: the first one), and the cursor to the next, where there may be one.

    Raises:
        InvalidQuery, PositionGone: see ``wire.open_cursor``.

    """
    query, summary = begin(store, query, token)
    page = store.read(query)
    if page.next is None:
        return page, None
    head = summary.head if query.up_to is None else query.up_to
    return page, wire.Cursor(summary.log_id, head, listing_of(query), [page.next.seq, page.next.timestamp_ns])


def listing_of(query: Query) -> str:
    """Return the name of a query's listing: a cursor is good only for that which it came from."""
    return f"events by {query.order.value}"


def page_response(request: Request, body: bytes, cursor: wire.Cursor | None) -> Response:
    """Answer with a page, and with the address of the next one where there is a cursor to it."""
    headers = {}
    if cursor is not None:
        parameters = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
        headers["Link"] = f'<{request.url.path}?{urlencode([*parameters, ("cursor", cursor.token())])}>; rel="next"'
    return Response(body, media_type="application/json", headers=headers)
