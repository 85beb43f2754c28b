"""What an attempt came to: which answers acknowledge, and what the others say."""

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from sekali.client.backoff import backoff_s, parse_retry_after

RETRY_AFTER_S_MAX = 3600.0
FIRST_BOUND_S, LONGEST_BOUND_S = 0.5, 3600.0
# Answers of an endpoint that cannot take anything now: time-outs, too early, too many, and gateways without a server.
_CANNOT_NOW = frozenset({408, 425, 429, 502, 503, 504})
_HOLDS_ALL = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        error: what happened, in a sentence.
        is_of_event: the endpoint answered, and what it said is about this event. Else it was not there, or not able.
        retry_after_s: how long it asked to be left alone; 0 where it did not.
        holds_all: that is meant for every event, not only for this one.
        is_gone: it wants none any more.

    """

    error: str
    is_of_event: bool = False
    retry_after_s: float = 0.0
    holds_all: bool = False
    is_gone: bool = False


def judge(status: int, retry_after: str | None, now: datetime) -> Failure | None:
    """Return why an answer is no acknowledgement, or None for one: any 2xx. Redirects are not followed."""
    if 200 <= status < 300:
        return None
    try:
        phrase = f" {HTTPStatus(status).phrase}"  # not the answer's own, which may be anything
    except ValueError:
        phrase = ""
    note = ": redirects are not followed" if 300 <= status < 400 else ""
    return Failure(
        f"answered {status}{phrase}{note}",
        is_of_event=status not in _CANNOT_NOW,
        retry_after_s=min(parse_retry_after(retry_after, now), RETRY_AFTER_S_MAX),
        holds_all=status in _HOLDS_ALL,
        is_gone=status == HTTPStatus.GONE,
    )


def retry_delay_s(failed: int, failure: Failure, share: float) -> float:
    """Return how long an event waits after its attempts failed so often. ``share`` is a random number in [0, 1).

    What holds all is no wait of its own: it would stay after the endpoint was mended or moved.
    """
    asked_s = 0.0 if failure.holds_all else failure.retry_after_s
    return backoff_s(failed, share, asked_s, first_bound_s=FIRST_BOUND_S, longest_bound_s=LONGEST_BOUND_S)
