"""The shapes of requests and answers, for the OpenAPI document only: nothing is checked or built with them."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.json_schema import models_json_schema

from sekali.api.problems import Kind

_TOPIC = Field(max_length=255, examples=["app/prod/api"])
_EVENT_ID = Field(max_length=512, examples=["0193b5a2-7c1e-7cc3-98c4-dc0c0c07398f"])
_SOURCE = Field(max_length=255, examples=["host-1"])


class EventIn(BaseModel):
    """An event to publish. The server's own fields are accepted and ignored, so that an export can be published."""

    model_config = ConfigDict(extra="forbid")

    topic: str = _TOPIC
    event_id: str = _EVENT_ID
    timestamp: str = Field(description="RFC 3339; without a zone it is UTC.", examples=["2026-11-23T10:15:30.123Z"])
    payload: JsonValue = Field(description="Any JSON value, at most 64 levels deep.")
    source: str | None = Field("", max_length=255)
    source_seq: int | None = Field(None, description="The publisher's own counter.", ge=-(2**63), le=2**63 - 1)
    seq: Any = Field(None, description="Ignored.")
    processed_at: Any = Field(None, description="Ignored.")
    duplicates: Any = Field(None, description="Ignored.")
    last_duplicate_at: Any = Field(None, description="Ignored.")


class Result(BaseModel):
    """The verdict on one item."""

    outcome: Literal["stored", "duplicate", "conflict", "invalid"]
    seq: int = Field(None, description="Place in the log; of the first for a duplicate or conflict.")  # type: ignore[assignment]
    error: str = Field(None, description="What to change about an invalid item.")  # type: ignore[assignment]


class Counts(BaseModel):
    """How many items got which verdict. ``received`` is without the invalid ones."""

    received: int
    stored: int
    duplicate: int
    conflict: int
    invalid: int


class Verdicts(Counts):
    """The answer to a publisher, sent after the commit. ``results`` are in the order sent."""

    results: list[Result] = Field(default_factory=list, description="Absent with `Prefer: return=minimal`.")


class Accepted(BaseModel):
    """The answer with ``Prefer: respond-async``. It is no acknowledgement: a crash may lose the events."""

    received: int
    accepted: int
    invalid: int


class Place(BaseModel):
    """Where a fault is: a JSON pointer into the document, or the name of a parameter."""

    detail: str
    pointer: str = Field(None, examples=["#/3/timestamp"])  # type: ignore[assignment]
    parameter: str = Field(None)  # type: ignore[assignment]


class Problem(BaseModel):
    """RFC 9457. For a publish request it also holds the counts and the results."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:sekali:problem:queue-full"])
    title: str
    status: int
    detail: str
    errors: list[Place] = Field(default_factory=list)


class Event(BaseModel):
    """A stored event. ``duplicates`` and ``last_duplicate_at`` are there where it was sent again."""

    topic: str
    event_id: str
    timestamp: str
    source: str
    source_seq: int = Field(None)  # type: ignore[assignment]
    payload: JsonValue
    processed_at: str
    seq: int
    duplicates: int = Field(None)  # type: ignore[assignment]
    last_duplicate_at: str = Field(None)  # type: ignore[assignment]


class UnreadableRow(BaseModel):
    """A row that cannot be read back."""

    seq: int
    error: str


class Topic(BaseModel):
    """What a topic holds."""

    topic: str
    stored: int
    duplicates: int
    conflicts: int
    first_seq: int
    last_seq: int
    last_event_time: str


class Source(BaseModel):
    """What came of a source that numbers its events (`source_seq`) in a topic, and what did not."""

    topic: str
    source: str
    lowest: int = Field(description="The lowest number that ever came.")
    highest: int = Field(description="The highest number that ever came.")
    received: int = Field(description="Of the numbers asked about, those that came.")
    missing: int = Field(description="Of the numbers asked about, those that did not come.")
    completeness: float = Field(description="Share of the numbers asked about that came; 1 only if none is missing.")
    missing_ranges: list[tuple[int, int]] = Field(description="First and last number of each; the first hundred.")
    missing_ranges_count: int
    repeated: int = Field(description="Events with a number that another event had before.")
    unnumbered: int = Field(description="Events without a number, after the first with one.")


class Conflict(BaseModel):
    """A variant refused because its identity was taken. ``seq`` is that of the event that stays."""

    topic: str
    event_id: str
    seq: int
    source: str
    payload: JsonValue
    count: int
    first_at: str
    last_at: str


class Question(BaseModel):
    """Which of these ids does the topic not hold?"""

    model_config = ConfigDict(extra="forbid")

    topic: str = _TOPIC
    event_ids: list[str]


class Missing(BaseModel):
    """The ids that are not stored, in the order asked."""

    missing: list[str]


class Health(BaseModel):
    """The server can commit. Where keys are asked for, only who shows one is told more."""

    ok: Literal[True]
    uptime_seconds: float = Field(None)  # type: ignore[assignment]


class Latency(BaseModel):
    """Milliseconds from a request read to its commit, over the newest requests; null before the first."""

    p50: float | None
    p95: float | None
    p99: float | None


class Lifetime(BaseModel):
    """Counts of all time, committed with the events."""

    received: int
    stored: int
    duplicate: int
    conflict: int


class StatsOfTopics(BaseModel):
    """The figures of the topics that a key may read, which it gets unless it may read everything."""

    model_config = ConfigDict(extra="forbid")

    unique_processed: int = Field(description="Events stored, of all time.")
    topics: list[str] = Field(description="Of all time, by name, at most 1,000.")
    topics_count: int
    log_id: str = Field(description="Names this log; it changes when a backup is restored.")
    lifetime: Lifetime


class Stats(StatsOfTopics):
    """The figures of this process and, where it says so, of all time."""

    received: int = Field(description="Since the process started: stored + duplicate + conflict.")
    duplicate_dropped: int = Field(description="Since the process started: duplicate + conflict.")
    uptime_seconds: float
    queue_depth: int = Field(description="Events accepted and not yet answered.")
    workers: int
    db_path: str
    conflicts: int = Field(description="Since the process started.")
    invalid: int = Field(description="Items that were not events, since the process started.")
    duplicate_rate: float = Field(description="duplicate_dropped / received.")
    throughput: float = Field(description="Events per second over the last minute.")
    latency_ms: Latency
    freshness_seconds: float = Field(description="Age of the oldest event accepted and not yet readable.")


_RETRY_AFTER = {"Retry-After": {"description": "Seconds, 1 to 5.", "schema": {"type": "integer"}}}
_CHALLENGE = {"WWW-Authenticate": {"description": "Bearer, and Basic.", "schema": {"type": "string"}}}
_PROBLEM_HEADERS = {401: _CHALLENGE, 429: _RETRY_AFTER, 503: _RETRY_AFTER}
_AT_THE_DOOR = (Kind.NO_KEY, Kind.FORBIDDEN, Kind.FOREIGN_PAGE, Kind.RATE_LIMITED)


def problems(*kinds: Kind, at_the_door: tuple[Kind, ...] = _AT_THE_DOOR) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an operation that are problems of these kinds."""
    titles: dict[int, list[str]] = {}
    for kind in (*at_the_door, *kinds):
        titles.setdefault(kind.value.status, []).append(kind.value.title)
    return {
        status: {
            "description": "; ".join(texts),
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": _PROBLEM_HEADERS[status]} if status in _PROBLEM_HEADERS else {}),
        }
        for status, texts in titles.items()
    }


_LINK = {"Link": {"description": 'The next page, `rel="next"`, where there may be one.', "schema": {"type": "string"}}}


def listing(model: Any, description: str) -> dict[str, Any]:
    """Return what a route says of itself that gives pages of a model."""
    return {
        "response_model": None,
        "responses": {
            200: {"description": description, "model": list[model], "headers": _LINK},
            **problems(Kind.GONE, Kind.INVALID_QUERY, Kind.UNAVAILABLE),
        },
    }


EVENTS = listing(Event | UnreadableRow, "One page of events.")
EVENTS["responses"][200]["content"] = {
    "application/x-ndjson": {"schema": {"type": "string", "description": "Everything that matches, an event a line."}}
}
SUBSCRIBE: dict[str, Any] = {
    "response_model": None,
    "response_class": Response,
    "responses": {
        200: {
            "description": "Server-Sent Events without an end: `data` is an event as in `/events`, `id` its place.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(Kind.GONE, Kind.INVALID_QUERY, Kind.VERSION, Kind.UNAVAILABLE),
    },
}
TOPICS = listing(Topic, "One page of topics.")
SOURCES = listing(Source, "One page of sources that number their events.")
CONFLICTS = listing(Conflict | UnreadableRow, "One page of refused variants.")
STATS: dict[str, Any] = {
    "response_model": None,
    "responses": {200: {"description": "The figures.", "model": Stats | StatsOfTopics}, **problems(Kind.UNAVAILABLE)},
}
HEALTH: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {"description": "It can commit.", "model": Health},
        **problems(Kind.UNAVAILABLE, at_the_door=(Kind.FOREIGN_PAGE,)),
    },
}
METRICS: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "Prometheus text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(),
    },
}
_CONTENT_ENCODING = {
    "name": "Content-Encoding",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`gzip` where the body is compressed, else `identity` or nothing. Its limit holds for what "
    "it stands for.",
}


def request_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return what a route says of itself that reads the body by itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "parameters": [_CONTENT_ENCODING],
        "requestBody": {"required": required, "content": {"application/json": {"schema": schema}}},
    }


EXISTS: dict[str, Any] = {
    "response_model": None,
    "openapi_extra": request_body(Question),
    "responses": {
        200: {"description": "What is missing.", "model": Missing},
        **problems(Kind.NOT_JSON, Kind.TOO_LARGE, Kind.MEDIA, Kind.INVALID_QUERY, Kind.QUEUE_FULL, Kind.UNAVAILABLE),
    },
}

_PREFERENCES = (
    "`return=minimal`: counts only. `handling=strict`: one invalid item refuses the request. `respond-async`: 202 as "
    "soon as the events are in memory, which is no acknowledgement."
)


def publish_path() -> dict[str, Any]:
    """Return the OpenAPI path item of ``/publish``, which is not a FastAPI route."""
    event = {"$ref": "#/components/schemas/EventIn"}
    return {
        "post": {
            "summary": "Publish",
            "description": "One event, or a batch. Each item gets a verdict once it is durable; sending it again is "
            "always safe.",
            "operationId": "publish",
            "parameters": [
                {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "description": _PREFERENCES},
                _CONTENT_ENCODING,
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"oneOf": [event, {"type": "array", "items": event}]}},
                    "application/x-ndjson": {"schema": {"type": "string", "description": "An event a line."}},
                },
            },
            "responses": {
                "200": _json_response("A verdict for every item.", "Verdicts"),
                "202": _json_response("In memory, and not durable.", "Accepted"),
                **{
                    str(status): response
                    for status, response in problems(
                        Kind.NOT_JSON,
                        Kind.CONFLICT,
                        Kind.TOO_LARGE,
                        Kind.MEDIA,
                        Kind.INVALID_EVENT,
                        Kind.QUEUE_FULL,
                        Kind.UNAVAILABLE,
                    ).items()
                },
            },
        }
    }


def _json_response(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The key: `id.secret`."},
    "basic": {"type": "http", "scheme": "basic", "description": "The key's id as user, its secret as password."},
}
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"basic": []}, {}]  # without: where there are no keys


def add_problems_of_connections(paths: dict[str, Any]) -> None:
    """Add to every operation what its connection may answer in its place, whatever the route."""
    of_connections = problems(Kind.NOT_HTTP, Kind.TOO_SLOW, Kind.HEADERS_TOO_LARGE, Kind.QUEUE_FULL)
    for operation in (one for path in paths.values() for one in path.values()):
        for status, response in of_connections.items():
            there = operation["responses"].setdefault(str(status), response)
            if response["description"] not in there["description"]:
                there["description"] += f"; {response['description']}"


def extra_schemas(bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Return the schemas that only hand-written parts of the document refer to, these bodies among them."""
    models: list[type[BaseModel]] = [EventIn, Verdicts, Accepted, Problem, Question, *bodies]
    _, document = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = document["$defs"]
    return schemas
