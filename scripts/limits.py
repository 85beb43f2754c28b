"""Every limit of a request, a connection and an answer: the reference page and its test come from this table."""

from dataclasses import dataclass

from sekali.api.connections import TAKEN_BYTES_MIN
from sekali.api.encoding import MEMBERS_MAX
from sekali.api.protocol import HEADER_BYTES_MAX, HEADER_COUNT_MAX, PIPELINED_MAX
from sekali.api.subscribe import HEARTBEAT_S, PAGE_BYTES
from sekali.api.subscriptions import PULL_EVENTS_MAX, PULL_TOPICS_MAX, WAIT_S_MAX
from sekali.api.verdicts import ERRORS_LISTED_MAX
from sekali.delivery import ATTEMPTS_MAX, DELAY_S_MAX, ERROR_CHARS_MAX, LEASE_S_MAX, PUSH_LEASE_S_MAX
from sekali.event import EVENT_ID_BYTES_MAX, SOURCE_BYTES_MAX, SOURCE_SEQ_MAX
from sekali.feed import RING_BYTES_MAX
from sekali.jsonvalue import DEPTH_MAX, NUMBER_CHARACTERS_MAX
from sekali.ports import CONFLICT_BYTES_MAX, PAGE_BYTES_MAX, PAGE_EVENTS_MAX
from sekali.push.connection import BODY_BYTES_MAX, HEAD_BYTES_MAX
from sekali.push.health import REQUESTS_MAX
from sekali.push.outcome import RETRY_AFTER_S_MAX
from sekali.push.pushing import REQUESTS_IN_ALL_MAX
from sekali.settings import ServerSettings
from sekali.subscriptions.awake import REPLAYED_AT_ONCE
from sekali.subscriptions.lanes import OPEN_MAX, OPEN_OF_LANE_MAX
from sekali.subscriptions.manager import LAG_MAX, SAMPLED_MAX
from sekali.subscriptions.reading import LANES_BYTES_MAX
from sekali.topics import TOPIC_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: what it bounds, how much of what, and what comes of more. ``setting`` is None where it is fixed."""

    what: str
    value: float
    unit: str
    beyond: str
    setting: str | None = None


def _of(setting: str, what: str, unit: str, beyond: str) -> Limit:
    return Limit(what, ServerSettings.model_fields[setting].default, unit, beyond, setting)


LIMITS = {
    "Time": (
        _of("header_timeout_s", "the headers of a request, and the first byte of a new connection", "s", "408, closed"),
        _of("body_timeout_s", "the body of a request, however it trickles", "s", "408, closed"),
        _of(
            "answer_timeout_s",
            f"an answer to be taken, or {TAKEN_BYTES_MIN // 1024} KiB of it",
            "s",
            "cut without the rest",
        ),
        _of("read_timeout_s", "the reading of one page", "s", "503, or a stream is cut"),
        _of("idle_timeout_s", "a connection without a request", "s", "closed"),
    ),
    "Connections": (
        _of("connections_max", "connections", "", "an idle one is closed, or else the new one gets 503"),
        _of(
            "connection_bytes_max",
            "what waits on all connections: answers not taken, pipelined requests",
            "bytes",
            "who has waited longest is cut",
        ),
        Limit("requests waiting behind one on a connection", PIPELINED_MAX, "", "closed after the answers before"),
    ),
    "A request": (
        Limit("the address and the headers", HEADER_BYTES_MAX, "bytes", "431, closed"),
        Limit("headers", HEADER_COUNT_MAX, "", "431, closed"),
        _of("body_bytes_max", "the body, as sent", "bytes", "413"),
        _of("body_bytes_max", "the body, without its compression", "bytes", "413"),
        Limit("members of a gzip body", MEMBERS_MAX, "", "413"),
        _of("batch_events_max", "items, or lines of NDJSON that are not blank", "", "413"),
        _of("batch_events_max", "ids in one question to `/exists`", "", "413"),
    ),
    "All requests together": (
        _of("queue_bytes_max", "bytes of bodies held, as sent and without their compression", "bytes", "503"),
        _of("queue_events_max", "events accepted and not answered", "", "503"),
    ),
    "An item": (
        _of("event_bytes_max", "the values of an event", "bytes", "`invalid`"),
        Limit("`topic`", TOPIC_BYTES_MAX, "bytes", "`invalid`"),
        Limit("`event_id`", EVENT_ID_BYTES_MAX, "bytes", "`invalid`"),
        Limit("`source`", SOURCE_BYTES_MAX, "bytes", "`invalid`"),
        Limit("`source_seq`, and its negative less one", SOURCE_SEQ_MAX, "", "`invalid`"),
        Limit("digits of a fraction in `timestamp`", 9, "", "`invalid`"),
        Limit("levels of arrays and objects in `payload`", DEPTH_MAX, "", "`invalid`"),
        Limit("characters of a number in `payload`", NUMBER_CHARACTERS_MAX, "", "`invalid`"),
        _of("topics_max", "topics in the store", "", "`invalid`"),
    ),
    "Subscriptions": (
        _of("subscriptions_max", "subscriptions", "", "409"),
        Limit("`max` of a pull, in events", PULL_EVENTS_MAX, "", "422"),
        Limit("`wait` of a pull", WAIT_S_MAX, "s", "422"),
        Limit("`topics` of a pull", PULL_TOPICS_MAX, "", "422"),
        Limit("the events of a pull", LANES_BYTES_MAX, "bytes", "it ends with the topic that goes over that"),
        Limit("`lease_seconds`", LEASE_S_MAX, "s", "422"),
        Limit("`delay` of a nack", DELAY_S_MAX, "s", "422"),
        Limit("`error` of a nack", ERROR_CHARS_MAX, "characters", "422"),
        Limit("`max_attempts`", ATTEMPTS_MAX, "", "422"),
        Limit("`seqs` in one request", PAGE_EVENTS_MAX, "", "422"),
        Limit("events of one topic that are given out or to be given again", OPEN_OF_LANE_MAX, "", "others wait"),
        Limit("events of one subscription that are given out or to be given again", OPEN_MAX, "", "others wait"),
        Limit("dead letters replayed by one request", REPLAYED_AT_ONCE, "", '`"more": true`'),
        Limit("events counted for `lag`", LAG_MAX, "", "`lag_is_exact` is false"),
        Limit("subscriptions in `/metrics`", SAMPLED_MAX, "", "the first by name are there"),
    ),
    "An answer": (
        Limit("events, topics or variants in a page", PAGE_EVENTS_MAX, "", "422 for a higher `limit`"),
        Limit("a page, or a part of a stream", PAGE_BYTES_MAX, "bytes", "it ends there, and a next one follows"),
        Limit("places in `errors`", ERRORS_LISTED_MAX, "", "the others are in `results` only"),
        Limit("variants kept for `/conflicts`", CONFLICT_BYTES_MAX, "bytes", "the oldest go, their counts stay"),
    ),
    "A stream of `/subscribe`": (
        Limit("without anything sent on it", HEARTBEAT_S, "s", "a comment is sent"),
        Limit("what was committed last, for all streams together", RING_BYTES_MAX, "bytes", "each reads older itself"),
        Limit("what a stream reads by itself at a time", PAGE_BYTES, "bytes", "the next part, once that is taken"),
    ),
    "Webhooks": (
        Limit("requests under way to one endpoint", REQUESTS_MAX, "", "the next waits"),
        Limit("requests under way to all", REQUESTS_IN_ALL_MAX, "", "the next waits"),
        Limit("`lease_seconds`, the time an endpoint has", PUSH_LEASE_S_MAX, "s", "422"),
        Limit("the headers of an answer", HEAD_BYTES_MAX, "bytes", "a failed attempt"),
        Limit("the body of an answer, which is not looked at", BODY_BYTES_MAX, "bytes", "the connection is closed"),
        Limit("what `Retry-After` may ask for", RETRY_AFTER_S_MAX, "s", "that is waited"),
    ),
}
