"""The subscriber: pulls from a durable subscription, calls a handler, and acknowledges what it returned from."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

from sekali.client.backoff import backoff_s
from sekali.client.connect import open_server
from sekali.client.consuming import Consumer
from sekali.client.errors import ClientError, Gone, NotSekali, Refused
from sekali.client.leases import Event, Lease, is_unreadable

PULL_EVENTS_MAX = 1000  # the server's limit
WAIT_S = 2.0  # for events, in one request: how long stop takes where there are none
ACK_AFTER_S = 0.05  # what is done waits so long for company: handlers that are quick share acknowledgements
RETRY_FIRST_BOUND_S = 1.0
RETRY_LONGEST_BOUND_S = 300.0
ERROR_CHARS_MAX = 1000  # the server's limit


class SubscriptionFields(TypedDict):
    """What a subscription is; see ``PUT /subscriptions/{name}``."""

    topic: str
    start: NotRequired[str | Mapping[str, int | str]]
    order: NotRequired[str]
    max_attempts: NotRequired[int]
    lease_seconds: NotRequired[float]


@dataclass(frozen=True, slots=True)
class SubscriberCounts:
    """What a subscriber has done so far, in events: ``lost`` were taken from it before it could acknowledge them."""

    acknowledged: int
    failed: int
    lost: int


class Subscriber(Consumer):
    """Takes the events of a durable subscription, at least once each, and calls a handler with them.

    An event is acknowledged after the handler returned. An exception of the handler gives it back: it comes again
    after a while that grows with the attempts (exponential, full jitter, up to five minutes), and in the end is a dead
    letter. While a handler runs its events stay leased, however long it takes. Any number of subscribers share a
    subscription.

    Args:
        url: of the server.
        subscription: its name.
        handle: called with an event: a dict as ``GET /events`` shows it, with the number of its ``attempt``. It may be
            a coroutine function.
        create: what the subscription is. It is made when it is missing, and changed where it may change.
        batch_events_max: call the handler with a list of up to so many events instead. They fail together.
        pull_events_max: events leased at a time, by each worker.
        topics_max: of how many topics these may be where the order is by topic. While a handler is busy with one of
            them, the others wait.
        concurrency: workers, each a thread. Where the order is by topic, a topic is with one of them at a time.
        stop_on_error: end at the first exception of the handler, which ``run`` raises, after the event is given back.
        api_key: ``id.secret``; else ``SEKALI_API_KEY`` of the environment.
        ca_file: certificates (PEM) to trust for https; else ``SEKALI_CA_FILE``, else the system's.
        random_share: random numbers in [0, 1), for waits.

    Raises:
        ValueError: an argument is not what it should be.

    """

    def __init__(
        self,
        url: str,
        subscription: str,
        handle: Callable[[Any], Any],
        *,
        create: SubscriptionFields | None = None,
        batch_events_max: int | None = None,
        pull_events_max: int = 100,
        topics_max: int = 1,
        concurrency: int = 1,
        stop_on_error: bool = False,
        api_key: str | None = None,
        ca_file: str | None = None,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        if not 1 <= pull_events_max <= PULL_EVENTS_MAX or (batch_events_max or 1) > pull_events_max:
            raise ValueError(f"a pull brings 1 to {PULL_EVENTS_MAX} events, and a batch is at most one pull")
        if concurrency < 1 or topics_max < 1 or (batch_events_max is not None and batch_events_max < 1):
            raise ValueError("concurrency, topics_max and batch_events_max are 1 or more")
        self._name = subscription
        self._path = f"/subscriptions/{quote(subscription, safe='')}"
        self._create = create
        self._batch_events_max = batch_events_max
        self._ask = {"max": pull_events_max, "wait": WAIT_S, "topics": topics_max}
        super().__init__(
            handle, (url, api_key, ca_file), concurrency, stop_on_error=stop_on_error, random_share=random_share
        )

    def _reset(self) -> None:
        super()._reset()
        self._opening = threading.Lock()
        self._definition: dict[str, Any] | None = None
        self._leases: set[Lease] = set()
        self._tally: Counter[str] = Counter()

    def counts(self) -> SubscriberCounts:
        """Return what was done so far."""
        with self._changed:
            return SubscriberCounts(self._tally["acknowledged"], self._tally["failed"], self._tally["lost"])

    def _work(self) -> None:
        is_ordered = self._open()["order"] == "topic"
        while not self._stopping:
            answer = self._post("pull", self._ask)
            try:
                lease = Lease(str(answer["lease"]), answer["events"], is_ordered=is_ordered)
            except (KeyError, TypeError):
                raise NotSekali("the answer to a pull has no events. Check the URL") from None
            if lease.is_held:
                self._consume(lease)

    def _open(self) -> dict[str, Any]:
        """Return what the subscription is, and make it where that was asked for. One worker does it for all."""
        with self._opening:
            if self._definition is None:
                try:
                    found = self._server.get_object(self._path)
                except Refused as error:
                    if error.status != 404:
                        raise
                    if self._create is None:
                        hint = f"Make it with create=…, or with: sekali subscriptions create {self._name} --topic …"
                        raise Refused(404, f"{error}. {hint}") from None
                    found = {}
                if self._create is not None:  # whoever has paused it wants it to be so still
                    wanted = {**self._create, "paused": found.get("paused", False)}
                    found = self._server.send("PUT", self._path, wanted)
                if not {"order", "lease_seconds"} <= found.keys():
                    raise NotSekali(f"{self._path} is no subscription. Check the URL")
                self._definition = found
                interval_s = found["lease_seconds"] / 3
                threading.Thread(target=self._keep, args=(interval_s,), name="sekali-leases", daemon=True).start()
            return self._definition

    def _consume(self, lease: Lease) -> None:
        """Handle what a lease holds, and give back what is left of it when it is time to stop."""
        with self._changed:
            self._leases.add(lease)
        try:
            acknowledged_s = time.monotonic()
            for part in lease.parts(self._batch_events_max or 1):
                if self._stopping:
                    break
                try:
                    self._handle_part(part)
                except Exception as error:
                    self._give_back(lease, part, error)
                    if self._stops_on_error:
                        raise
                else:
                    lease.done(part)
                if time.monotonic() >= acknowledged_s + ACK_AFTER_S:
                    self._acknowledge(lease)
                    acknowledged_s = time.monotonic()
        finally:
            try:
                self._acknowledge(lease)
                if lease.is_held:
                    self._post("release", {"lease": lease.id})
            finally:
                with self._changed:
                    self._leases.discard(lease)
                    self._changed.notify_all()

    def _handle_part(self, part: list[Event]) -> None:
        if is_unreadable(part[0]):
            raise ClientError(f"it cannot be read back: {part[0].get('error')}")
        self._call(part[0] if self._batch_events_max is None else part)

    def _acknowledge(self, lease: Lease) -> None:
        if done := lease.take_done():
            lost = self._post("ack", {"lease": lease.id, "seqs": done}).get("lost", [])
            self._count("acknowledged", len(done) - len(lost))
            self._note_lost(lost)

    def _give_back(self, lease: Lease, part: list[Event], error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        self._count("failed", len(part))
        self._notices.warn("events that could not be handled", f"seq {part[0]['seq']}: {text}", len(part), error)
        if seqs := lease.fail(part):
            delay_s = backoff_s(
                max(int(event["attempt"]) for event in part),
                self._random_share(),
                first_bound_s=RETRY_FIRST_BOUND_S,
                longest_bound_s=RETRY_LONGEST_BOUND_S,
            )
            self._post("nack", {"lease": lease.id, "seqs": seqs, "delay": delay_s, "error": text[:ERROR_CHARS_MAX]})

    def _keep(self, interval_s: float) -> None:
        """Extend what is leased, three times before it would run out, for as long as handlers take."""
        with open_server(*self._server_address, give_up_after_s=0) as server:
            while not self._has_ended_within(interval_s):
                for lease in list(self._leases):
                    try:
                        self._note_lost(
                            lease.lose(server.send("POST", f"{self._path}/extend", {"lease": lease.id})["held"])
                        )
                    except Gone:  # it ran out while the server was not to be reached, or that was restarted
                        self._note_lost(lease.lose())
                    except (ClientError, KeyError) as error:
                        self._notices.warn("leases that could not be extended", str(error))

    def _has_ended_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._stopping and not self._leases, seconds)

    def _note_lost(self, seqs: list[int]) -> None:
        """Nothing can be done about it but to say so: somebody else gets these events, or got them."""
        if seqs:
            self._count("lost", len(seqs))
            self._notices.warn("events whose lease was lost, so that they come again", f"seq {seqs[-1]}", len(seqs))

    def _post(self, what: str, document: dict[str, Any]) -> dict[str, Any]:
        return self._server.send("POST", f"{self._path}/{what}", document)

    def _count(self, what: str, events: int) -> None:
        with self._changed:
            self._tally[what] += events
