"""``GET /sources``: what came of the numbers that sources give to their events, and what did not."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request
from fastapi.responses import Response

from sekali.api import wire
from sekali.api.paging import page_response
from sekali.api.parameters import Cursor, Limit, Source, Topic, reader_of, require_readable
from sekali.errors import InvalidQuery
from sekali.event import SOURCE_SEQ_MAX, SOURCE_SEQ_MIN
from sekali.ports import PAGE_RANGES_MAX, EventStore, SourceQuery

_Page = tuple[bytes, wire.Cursor | None]
_Result = TypeVar("_Result")
_Number = Annotated[int | None, Query(ge=SOURCE_SEQ_MIN, le=SOURCE_SEQ_MAX)]


class Sources:
    """The route over one store. ``read`` calls what reads on a thread."""

    def __init__(self, store: EventStore, read: Callable[[Callable[[], _Page]], Coroutine[Any, Any, _Page]]) -> None:
        self._store = store
        self._read = read

    async def sources(
        self,
        request: Request,
        topic: Topic = None,
        source: Source = None,
        first: Annotated[_Number, Query(alias="from", description="The first number asked about.")] = None,
        last: Annotated[_Number, Query(alias="to", description="The last number asked about.")] = None,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> Response:
        """Sources that number their events (`source_seq`), by topic and source: which numbers came, and which did not.

        Without `from` and `to` that is about the numbers from the lowest to the highest that came.
        """
        grant = reader_of(request)
        require_readable(grant, topic)
        if first is not None and last is not None and first > last:
            raise InvalidQuery("to", "below from; the first number comes first")

        def read() -> _Page:
            summary = self._store.summary(grant.readable)
            after = ("", "")
            if cursor is not None:
                after_topic, after_source = wire.open_cursor(cursor, "sources", (str, str), summary).position
                after = str(after_topic), str(after_source)
            found = self._store.sources(SourceQuery(topic, source, first, last, after, limit, grant.readable))
            full = len(found) == limit or sum(len(info.missing_ranges) for info in found) > PAGE_RANGES_MAX
            following = wire.cursor(summary, "sources", found[-1].topic, found[-1].source) if full else None
            return wire.sources_json(found), following

        return page_response(request, *await self._read(read))
