"""Errors as RFC 9457 problem documents, and the one place where an error becomes an HTTP status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from sekali.errors import (
    InvalidQuery,
    LeaseGone,
    NoSuchSubscription,
    NotJson,
    PositionGone,
    QueueFull,
    SekaliError,
    StoreBroken,
    SubscriptionDiffers,
    TooManyItems,
    TooManySubscriptions,
    Unavailable,
)

MEDIA_TYPE = b"application/problem+json"
# Up to 5 s: clients that read Retry-After give up when it is longer than the time they have left.
RETRY_AFTER_FULL_S = 1
RETRY_AFTER_TROUBLE_S = 2


@dataclass(frozen=True, slots=True)
class _Kind:
    slug: str
    status: int
    title: str
    retry_after_s: int | None = None


class Kind(Enum):
    """Every kind of problem. Its ``type`` is ``urn:sekali:problem:<slug>`` and does not change."""

    NOT_JSON = _Kind("not-json", 400, "The document is not JSON in UTF-8")
    NOT_HTTP = _Kind("not-http", 400, "The request is not HTTP")
    NO_KEY = _Kind("no-key", 401, "The request has no valid key")
    FORBIDDEN = _Kind("forbidden", 403, "The key may not do this")
    FOREIGN_PAGE = _Kind("foreign-page", 403, "The request may have been made by another web site")
    NOT_FOUND = _Kind("not-found", 404, "There is no such resource")
    METHOD = _Kind("method-not-allowed", 405, "The resource does not take this method")
    TOO_SLOW = _Kind("too-slow", 408, "The request did not arrive in time")
    CONFLICT = _Kind("conflict", 409, "The identity is taken by an event with other content")
    DIFFERS = _Kind("subscription-differs", 409, "The subscription is another one")
    TOO_MANY = _Kind("too-many-subscriptions", 409, "There is no room for another subscription")
    LEASE_GONE = _Kind("lease-gone", 410, "The lease is over")
    GONE = _Kind("position-gone", 410, "The position is not one of this log")
    TOO_LARGE = _Kind("too-large", 413, "The request is over a limit")
    MEDIA = _Kind("unsupported-media", 415, "The content type or encoding is not known")
    INVALID_EVENT = _Kind("invalid-event", 422, "Nothing was stored, because the request is not valid")
    INVALID_QUERY = _Kind("invalid-query", 422, "A parameter is not valid")
    VERSION = _Kind("http-version", 426, "The answer needs HTTP/1.1")
    RATE_LIMITED = _Kind("rate-limited", 429, "The key sends too much; send the request again later")
    HEADERS_TOO_LARGE = _Kind("headers-too-large", 431, "The headers are over a limit")
    INTERNAL = _Kind("internal", 500, "A defect of the server")
    QUEUE_FULL = _Kind("queue-full", 503, "The server has no room for the request now", RETRY_AFTER_FULL_S)
    UNAVAILABLE = _Kind("unavailable", 503, "Nothing can be made durable or read now", RETRY_AFTER_TROUBLE_S)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Problem(SekaliError):
    """A request ends with a problem document. ``errors`` name the places, ``extra`` adds members of our own."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        extra: Mapping[str, Any] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.extra = extra or {}
        self.headers = headers

    def answer(self) -> Answer:
        """Return the problem as an HTTP answer."""
        kind = self.kind.value
        document: dict[str, Any] = {
            "type": f"urn:sekali:problem:{kind.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = list(self.errors)
        headers = list(self.headers)
        if kind.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % kind.retry_after_s))
        return json_answer(kind.status, document | dict(self.extra), headers=headers, media_type=MEDIA_TYPE)


def json_answer(
    status: int,
    document: Any,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    media_type: bytes = b"application/json",
) -> Answer:
    """Encode a document as a whole answer."""
    body = msgspec.json.encode(document)
    return Answer(status, [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers], body)


def problem_of(error: SekaliError) -> Problem:
    """Turn any error of ours into the problem it is for the client."""
    match error:
        case Problem():
            return error
        case NotJson():
            return Problem(Kind.NOT_JSON, str(error))
        case TooManyItems():
            return Problem(Kind.TOO_LARGE, str(error))
        case InvalidQuery():
            place = {"parameter": error.parameter, "detail": error.detail}
            return Problem(Kind.INVALID_QUERY, str(error), errors=[place])
        case NoSuchSubscription():
            return Problem(Kind.NOT_FOUND, str(error))
        case SubscriptionDiffers():
            return Problem(Kind.DIFFERS, str(error))
        case TooManySubscriptions():
            return Problem(Kind.TOO_MANY, str(error))
        case LeaseGone():
            return Problem(Kind.LEASE_GONE, str(error))
        case PositionGone():
            return Problem(Kind.GONE, str(error))
        case QueueFull():
            return Problem(Kind.QUEUE_FULL, str(error))
        case Unavailable() | StoreBroken():
            return Problem(Kind.UNAVAILABLE, str(error))
        case _:
            return Problem(Kind.INTERNAL, str(error))
