"""What the reading routes take from a request: who asks, and for which topic and page."""

from typing import Annotated

from fastapi import Query, Request

from sekali.api.access import require_reader, require_topic
from sekali.errors import InvalidQuery
from sekali.keys import Grant
from sekali.ports import PAGE_EVENTS_MAX
from sekali.topics import is_pattern, pattern_fault

GRANT = "sekali.grant"  # in the ASGI scope: what the sender may do

Topic = Annotated[str | None, Query(description="A topic, or a pattern: `*` one segment, `**` any.")]
Source = Annotated[str | None, Query(description="Exactly this source.")]
Limit = Annotated[int, Query(ge=1, le=PAGE_EVENTS_MAX, description="Items in one page.")]
Cursor = Annotated[str | None, Query(description="From the `Link` header of the page before.")]


async def each_parameter_once(request: Request) -> None:
    """Refuse what another program may read otherwise: FastAPI takes the last of several.

    Raises:
        InvalidQuery: one is given more than once.

    """
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidQuery(name, "given more than once")


def reader_of(request: Request) -> Grant:
    """Return what the sender may do, which has to be reading something.

    Raises:
        Problem: 403.

    """
    grant: Grant = request.scope[GRANT]
    require_reader(grant)
    return grant


def require_readable(grant: Grant, topic: str | None) -> None:
    """Refuse what is no topic or pattern, and an exact topic that may not be read, whether it exists or not.

    Raises:
        InvalidQuery: it is neither a topic nor a pattern.
        Problem: 403.

    """
    if topic is None:
        return
    if (fault := pattern_fault(topic)) is not None:
        raise InvalidQuery("topic", fault)
    if not is_pattern(topic):
        require_topic(grant, topic)
