"""What a subscription is, and what a store keeps of it. No I/O, no clock.

A subscription is a set of *lanes*, one for each topic that its pattern matches. Of a lane is kept how far it is settled
(``cursor``), and what below that is not (``open``). Events above the cursor have not been touched.
"""

import base64
import binascii
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from sekali.topics import pattern_fault, topic_fault

ATTEMPTS_MAX = 1000
LEASE_S_MIN, LEASE_S_MAX = 0.1, 12 * 3600.0
DELAY_S_MAX = 24 * 3600.0
PUSH_LEASE_S_MAX = 60.0  # a request that waits for longer is better asked again
ERROR_CHARS_MAX = 1000
URL_CHARS_MAX = 2048
SECRET_PREFIX = "whsec_"  # noqa: S105 - https://www.standardwebhooks.com
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
SECRET_FORM = f"is {SECRET_PREFIX} and {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes in Base64"


class Delivery(StrEnum):
    """Who begins: the consumer asks for events, or the server sends them."""

    PULL = "pull"
    PUSH = "push"


class Ordering(StrEnum):
    """In what order events are delivered: those of a topic one run after the other, or as fast as possible."""

    TOPIC = "topic"
    NONE = "none"


Seq = Annotated[int, Meta(ge=1, le=2**63 - 1)]
LeaseSeconds = Annotated[float, Meta(ge=LEASE_S_MIN, le=LEASE_S_MAX)]


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A place in the log, one of: the first event with this seq or a higher one, or stored at this time or later."""

    seq: Seq | None = None
    time: str | None = None


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a subscription shall be. ``url`` and ``secret`` belong to delivery by push."""

    topic: str
    start: Literal["earliest", "latest"] | Place = "latest"
    delivery: Delivery = Delivery.PULL
    order: Ordering = Ordering.TOPIC
    max_attempts: Annotated[int, Meta(ge=1, le=ATTEMPTS_MAX)] = 10
    lease_seconds: LeaseSeconds = 30.0
    paused: bool = False
    url: str | None = None
    secret: str | None = None

    def public(self) -> dict[str, Any]:
        """Return it as it is shown: without the secret, and without what a pull subscription has not."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        del shown["secret"]
        if self.url is None:
            del shown["url"]
        return shown


# What makes another subscription of one: its position would mean something else.
FIXED = ("topic", "start", "delivery", "order")


def definition_fault(definition: Definition) -> tuple[str, str] | None:
    """Name the field that is wrong, and say what is wrong with it; None for a good definition.

    A secret that is missing is none: where there was one before, it stays.
    """
    if (fault := pattern_fault(definition.topic)) is not None:
        return "topic", fault
    if isinstance(definition.start, Place) and (fault := place_fault(definition.start)) is not None:
        return "start", fault
    if definition.delivery is Delivery.PULL:
        for name in ("url", "secret"):
            if getattr(definition, name) is not None:
                return name, "is for delivery by push"
        return None
    if (fault := _url_fault(definition.url)) is not None:
        return "url", fault
    if definition.lease_seconds > PUSH_LEASE_S_MAX:
        return "lease_seconds", f"at most {PUSH_LEASE_S_MAX:g} for delivery by push: the time that url has to answer"
    if definition.secret is not None and not _is_secret(definition.secret):
        return "secret", SECRET_FORM
    return None


def place_fault(place: Place) -> str | None:
    """Say what is wrong with a place, or None. Whether its time is one is seen where it is looked up."""
    return "give one of seq and time" if (place.seq is None) == (place.time is None) else None


def name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a subscription, or None for a good one: it is as a topic of one segment."""
    if "/" in name or topic_fault(name) is not None:
        return "not a name: at most 255 letters, digits and ._~:@=-, and neither . nor .."
    return None


def _url_fault(url: str | None) -> str | None:
    if url is None:
        return "is missing: delivery by push needs it"
    if len(url) > URL_CHARS_MAX or not (url.isascii() and url.isprintable()) or " " in url:
        return f"at most {URL_CHARS_MAX} printable characters of ASCII without blanks"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None or parts.fragment:
        return "an address such as https://example.com/hook, without a user and without a fragment"
    return None


def _is_secret(text: str) -> bool:
    try:
        size = len(base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        return False
    return text.startswith(SECRET_PREFIX) and SECRET_BYTES_MIN <= size <= SECRET_BYTES_MAX


class Pause(msgspec.Struct, frozen=True, array_like=True):
    """Why and since when the server delivers nothing of a subscription, which it paused itself."""

    reason: str
    at_ns: int


class Subscription(msgspec.Struct, frozen=True):
    """A subscription as it is stored. Events up to ``position`` are not part of it, see also ``LaneState``.

    With a ``fault`` it is damaged, and nothing of it but its name is known. It can only be deleted.
    """

    name: str
    definition: Definition
    position: int
    created_at_ns: int
    pause: Pause | None = None
    fault: str | None = None


class Open(msgspec.Struct, frozen=True, array_like=True):
    """An event that is neither settled nor untouched. ``attempts`` failed; the next is not due before ``due_at_ns``."""

    seq: int
    attempts: int = 0
    due_at_ns: int = 0


class LaneState(msgspec.Struct, frozen=True):
    """How far a topic is settled: every event up to ``cursor`` but those that are ``open``, and none above it.

    ``open`` is in the order of seq. A lane that is not stored is settled up to the subscription's position.
    """

    topic: str
    cursor: int
    open: tuple[Open, ...] = ()


class PendingLane(msgspec.Struct, frozen=True):
    """A lane in which something is not settled. ``last_seq`` is the newest event of its topic."""

    state: LaneState
    last_seq: int


class DeadLetter(msgspec.Struct, frozen=True):
    """An event given up after ``attempts``, the last of which failed with ``error``. ``number`` orders them."""

    seq: int
    topic: str
    attempts: int
    error: str
    at_ns: int
    number: int = 0  # given by the store


class Figures(msgspec.Struct, frozen=True):
    """What is to be done. ``lag`` counts what is not settled, and is at least that unless ``lag_is_exact``.

    ``oldest_at_ns`` is when the oldest of it was stored, None where everything is settled.
    """

    lag: int
    lag_is_exact: bool
    oldest_at_ns: int | None
    dead_letters: int


# What is changed, as it is committed. Of a subscription that is not there any more nothing is changed.


class Create(msgspec.Struct, frozen=True):
    """A new subscription, whose name is free."""

    subscription: Subscription


class Alter(msgspec.Struct, frozen=True):
    """Another definition; its position stays. ``pause`` where the server itself paused it."""

    name: str
    definition: Definition
    pause: Pause | None = None


class Delete(msgspec.Struct, frozen=True):
    """The end of a subscription, and of all that is kept of it."""

    name: str


class Seek(msgspec.Struct, frozen=True):
    """Events up to ``position`` are settled and those above are not, whatever became of them before."""

    name: str
    position: int


class Progress(msgspec.Struct, frozen=True):
    """Lanes as they are now, and events that were given up."""

    name: str
    lanes: Sequence[LaneState]
    dead: Sequence[DeadLetter] = ()


class Forget(msgspec.Struct, frozen=True):
    """Dead letters that are none any more; without ``seqs`` all of them."""

    name: str
    seqs: Sequence[int] | None = None


Change = Create | Alter | Delete | Seek | Progress | Forget


class SubscriptionStore(Protocol):
    """What a store keeps of subscriptions. Changes are committed with events, as one transaction.

    The reading methods may be called from any thread at any time, and raise ``StoreBroken`` as those of events do.
    """

    def prepare_changes(self, changes: Sequence[Change]) -> Any:
        """Return what ``commit`` takes among batches prepared, and applies in order; it adds no verdicts."""

    def subscriptions(self) -> list[Subscription]:
        """Return all of them, by name."""

    def pending(self, name: str) -> tuple[int, list[PendingLane]]:
        """Return the head of the log, and the lanes in which something is not settled, by topic."""

    def figures(self, name: str, lag_max: int) -> Figures:
        """Return figures of one moment; counting ends at ``lag_max``."""

    def dead_letters(self, name: str, after: int, limit: int, seqs: Sequence[int] | None = None) -> list[DeadLetter]:
        """Return dead letters by number, from behind ``after``; with ``seqs`` only those of these events."""

    def first_seq_at(self, processed_at_ns: int) -> int:
        """Return the seq of the first event stored at this time or later; one above the head where there is none."""
