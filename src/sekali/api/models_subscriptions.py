"""The shapes of subscriptions, for the OpenAPI document only."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sekali.api.models import Event, UnreadableRow, listing, problems, request_body
from sekali.api.problems import Kind
from sekali.delivery import (
    ATTEMPTS_MAX,
    DELAY_S_MAX,
    ERROR_CHARS_MAX,
    LEASE_S_MAX,
    LEASE_S_MIN,
    URL_CHARS_MAX,
)

_LEASE = Field("", description="As in the answer to pull.")


class PlaceIn(BaseModel):
    """A place in the log: the first event with this seq or a higher one, or stored at this time or later."""

    model_config = ConfigDict(extra="forbid")

    seq: int | None = Field(None, ge=1, description="At most one above the newest.")
    time: str | None = Field(None, description="RFC 3339, compared with `processed_at`.")


class _Definition(BaseModel):
    topic: str = Field(max_length=255, description="A topic, or a pattern: `*` one segment, `**` any.")
    start: Literal["earliest", "latest"] | PlaceIn = Field("latest", description="Where it begins.")
    delivery: Literal["pull", "push"] = "pull"
    order: Literal["topic", "none"] = Field("topic", description="`topic`: events of one topic one after the other.")
    max_attempts: int = Field(10, ge=1, le=ATTEMPTS_MAX, description="Then an event is a dead letter.")
    lease_seconds: float = Field(30.0, ge=LEASE_S_MIN, le=LEASE_S_MAX)
    paused: bool = Field(False, description="Nothing is delivered meanwhile.")
    url: str | None = Field(None, max_length=URL_CHARS_MAX, description="Where push sends events to.")


class DefinitionIn(_Definition):
    """What a subscription shall be."""

    model_config = ConfigDict(extra="forbid")

    secret: str | None = Field(None, description="What push signs with: `whsec_` and 24 to 64 bytes in Base64.")


class Defined(_Definition):
    """What a subscription is. The secret is not shown."""

    name: str
    paused_reason: str | None = Field(description="Why the server itself paused it; null where it did not.")
    paused_at: str | None = Field(description="When it did.")
    created_at: str


class Counted(BaseModel):
    """What happened to its events since the server started."""

    delivered: int
    redelivered: int = Field(description="Of these, after a failed attempt.")
    acknowledged: int
    returned: int = Field(description="Given back with nack.")
    expired: int = Field(description="Held by leases that ran out.")
    dead: int = Field(description="Given up.")


class EndpointOut(BaseModel):
    """How the endpoint of a push subscription fared since the server started, or since it was changed."""

    failures: int = Field(description="In a row.")
    down_since: str | None = Field(description="Since when it counts as down; null where it does not.")
    last_error: str | None
    last_error_at: str | None
    last_success_at: str | None


class SubscriptionOut(Defined):
    """What a subscription is, and its figures."""

    lag: int = Field(description="Events that are not settled, in flight or not.")
    lag_is_exact: bool = Field(description="False: counting ended there, and there are more.")
    oldest_unacknowledged_seconds: float | None = Field(description="Age of the oldest that is not settled.")
    in_flight: int = Field(description="Events that leases hold.")
    waiting: int = Field(description="Events to be given again.")
    dead_letters: int
    since_start: Counted
    endpoint: EndpointOut = Field(None, description="Of a push subscription that is not paused.")  # type: ignore[assignment]


class PullIn(BaseModel):
    """What a consumer asks for."""

    model_config = ConfigDict(extra="forbid")

    max: int = Field(100, ge=1, le=1000, description="Events at most.")
    wait: float = Field(0, ge=0, le=30, description="Seconds to wait where there is none.")
    lease_seconds: float | None = Field(None, ge=LEASE_S_MIN, le=LEASE_S_MAX, description="Else the subscription's.")
    topics: int = Field(1, ge=1, le=100, description="Topics at most, of an ordered subscription.")


class DeliveredEvent(Event):
    """An event, and the number of the attempt to process it."""

    attempt: int


class UnreadableDelivered(UnreadableRow):
    """A row that cannot be read back. It has to be acknowledged as well."""

    attempt: int


class Leased(BaseModel):
    """Events, and the lease that holds them; none where there was nothing."""

    lease: str | None
    expires_at: str | None
    events: list[DeliveredEvent | UnreadableDelivered]


class AckIn(BaseModel):
    """Which events are done."""

    model_config = ConfigDict(extra="forbid")

    lease: str = _LEASE
    seqs: list[int] = Field(max_length=10_000)


class Acknowledged(BaseModel):
    """`acknowledged` are settled, now or before; `lost` the lease does not hold any more, they come again."""

    acknowledged: list[int]
    lost: list[int]


class NackIn(AckIn):
    """Which events failed."""

    delay: float = Field(0, ge=0, le=DELAY_S_MAX, description="Seconds until they come again.")
    error: str = Field("", max_length=ERROR_CHARS_MAX, description="Kept with a dead letter.")


class Returned(BaseModel):
    """`returned` count as failed; `lost` the lease does not hold any more."""

    returned: list[int]
    lost: list[int]


class ExtendIn(BaseModel):
    """Which lease shall run out when."""

    model_config = ConfigDict(extra="forbid")

    lease: str = _LEASE
    lease_seconds: float | None = Field(None, ge=LEASE_S_MIN, le=LEASE_S_MAX, description="From now.")


class ReleaseIn(BaseModel):
    """Which lease is given back."""

    model_config = ConfigDict(extra="forbid")

    lease: str = _LEASE


class Extended(BaseModel):
    """The lease as it is now."""

    lease: str
    expires_at: str
    held: list[int]


class Sought(BaseModel):
    """Where it goes on."""

    next_seq: int


class DeadLetter(BaseModel):
    """An event that failed at every attempt."""

    seq: int
    topic: str
    attempts: int
    error: str = Field(description="Of the last attempt.")
    at: str = Field(description="When it was given up.")


class ChosenIn(BaseModel):
    """Which dead letters: some, or all."""

    model_config = ConfigDict(extra="forbid")

    seqs: list[int] | None = Field(None, max_length=10_000)
    all: bool = False


class Replayed(BaseModel):
    """Which are delivered again. With `more`, ask again for the rest."""

    replayed: list[int]
    more: bool


def _route(
    description: str, model: Any, *kinds: Kind, body: type[BaseModel] | None = None, status: int = 200
) -> dict[str, Any]:
    route: dict[str, Any] = {
        "response_model": None,
        "status_code": status,
        "responses": {
            status: {"description": description} | ({} if model is None else {"model": model}),
            **problems(Kind.NOT_FOUND, *kinds, Kind.INVALID_QUERY, Kind.UNAVAILABLE),
        },
    }
    if body is not None:
        route["openapi_extra"] = request_body(body, required=body is not PullIn)
        route["responses"] |= problems(
            Kind.NOT_FOUND,
            *kinds,
            Kind.INVALID_QUERY,
            Kind.NOT_JSON,
            Kind.TOO_LARGE,
            Kind.MEDIA,
            Kind.QUEUE_FULL,
            Kind.UNAVAILABLE,
        )
    return route


ALL = listing(SubscriptionOut, "One page of subscriptions.")
PUT = _route("It existed, and is so now.", Defined, Kind.DIFFERS, Kind.TOO_MANY, Kind.GONE, body=DefinitionIn)
PUT["responses"][201] = {"description": "It is new.", "model": Defined}
GET = _route("The subscription.", SubscriptionOut)
DELETE = _route("It is deleted.", None, status=204)
PULL = _route("What there is.", Leased, Kind.DIFFERS, body=PullIn)
ACK = _route("They are settled.", Acknowledged, body=AckIn)
NACK = _route("They come again.", Returned, body=NackIn)
EXTEND = _route("It runs out later.", Extended, Kind.LEASE_GONE, body=ExtendIn)
RELEASE = _route("It holds nothing any more.", None, body=ReleaseIn, status=204)
SEEK = _route("It goes on from there.", Sought, Kind.GONE, body=PlaceIn)
DEAD_LETTERS = listing(DeadLetter, "One page of dead letters.")
DEAD_LETTERS["responses"] |= problems(Kind.NOT_FOUND, Kind.GONE, Kind.INVALID_QUERY, Kind.UNAVAILABLE)
REPLAY = _route("They are delivered again.", Replayed, body=ChosenIn)
DROP = _route("They are forgotten.", None, body=ChosenIn, status=204)

BODIES: list[type[BaseModel]] = [DefinitionIn, PullIn, AckIn, NackIn, ExtendIn, ReleaseIn, PlaceIn, ChosenIn]
