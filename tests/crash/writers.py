"""Writers that number their events, one after the other, and keep account of what they sent and were told."""

import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import urllib3

from crash.checker import Read, Sent
from e2e.server import Client, Response, event

RETRY_S = 0.005  # while no server answers
NEW_AT_ONCE = (1, 1, 1, 3, 8, 25)
REPEATED_MAX = 3
LEFT_SHARE = 0.3  # of the requests during which the connection ended, these are not sent again before the end
WRONG_KEPT = 5


class Item(NamedTuple):
    """An event to send. ``variant``: with other content than the writer's events have."""

    counter: int
    variant: bool = False


def _payload(writer: str, counter: int) -> dict[str, Any]:
    return {"writer": writer, "counter": counter, "text": "x" * (counter * 7 % 211)}


def parse(line: dict[str, Any]) -> Read:
    """Read an event back. Its id is ``writer-counter``, its topic the writer's own."""
    writer, _, number = line["event_id"].rpartition("-")
    counter = int(number)
    expected = (f"kill/{writer}", "test", _payload(writer, counter))
    return Read(line["seq"], writer, counter, (line["topic"], line["source"], line["payload"]) == expected)


class Writer:
    """One publisher. Only its own thread changes what it holds.

    ``sent`` is its account for the checker; ``told`` counts the verdicts of answered requests, ``unanswered_items``
    what was in the others; ``settled`` is how often a retry learned that an event without an answer had been stored;
    ``wrong`` are verdicts that contradict what it knew.
    """

    def __init__(self, name: str, url: str, seed: str, stop: threading.Event) -> None:
        self.name = name
        self.sent = Sent()
        self.told: Counter[str] = Counter()
        self.requests = self.connection_errors = self.refusals = self.unanswered_items = self.settled = 0
        self.wrong_count = 0
        self.wrong: list[str] = []
        self._unanswered: set[int] = set()
        self._highest_seq = 0
        self._connection_ended = False  # while the last request was under way
        self._http = Client(url, connections=1)
        self._chance = random.Random(seed)
        self._stop = stop

    def run(self) -> None:
        """Send until told to stop. What is lost on the way is mostly sent again, and sometimes left for the end."""
        while not self._stop.is_set():
            items = self._compose()
            while not self._send(items) and not self._stop.is_set():
                if self._connection_ended and self._chance.random() < LEFT_SHARE:
                    break
                self._stop.wait(RETRY_S)

    def heal(self) -> None:
        """Send all that has no answer yet, to a server that works."""
        left = sorted(self._unanswered)
        for start in range(0, len(left), 500):
            assert self._send([Item(counter) for counter in left[start : start + 500]]), "a server that works refused"
        assert not self._unanswered

    def _compose(self) -> list[Item]:
        """Make a request of new events, most often with older ones among them, and now and then a variant."""
        chance = self._chance
        items = [Item(self.sent.attempted + number) for number in range(chance.choice(NEW_AT_ONCE))]
        self.sent.attempted += len(items)
        if chance.random() < 0.3:
            items += chance.choices(items, k=chance.randint(1, REPEATED_MAX))
        if chance.random() < 0.3:
            items += [Item(self._any_earlier()) for _ in range(REPEATED_MAX)]
        if chance.random() < 0.2 and self._unanswered:
            items.append(Item(min(self._unanswered)))
        chance.shuffle(items)
        known = [item.counter for item in items if item.counter in self.sent.acknowledged]
        if chance.random() < 0.2 and known:
            items.insert(chance.randint(0, len(items)), Item(chance.choice(known), variant=True))
        if chance.random() < 0.1:
            items.append(Item(items[0].counter, variant=True))  # behind its first, also where that is new
        return items

    def _any_earlier(self) -> int:
        return self._chance.randrange(self.sent.attempted)

    def _send(self, items: Sequence[Item]) -> bool:
        """Send a request, a single item often as a single event; tell whether it was answered."""
        self.requests += 1
        events = [self._event(item) for item in items]
        single = len(events) == 1 and self._chance.random() < 0.7
        body = json.dumps(events[0] if single else events).encode()
        try:
            answer = self._http.publish(body)
        except urllib3.exceptions.HTTPError as error:
            self.connection_errors += 1
            self._connection_ended = not isinstance(error, urllib3.exceptions.NewConnectionError)
        else:
            if answer.status != 503:
                self._judge(items, answer)
                return True
            self.refusals += 1
            self._connection_ended = False
        self.unanswered_items += len(items)
        self._unanswered |= {item.counter for item in items if item.counter not in self.sent.acknowledged}
        return False

    def _event(self, item: Item) -> dict[str, Any]:
        payload = {"variant": item.counter} if item.variant else _payload(self.name, item.counter)
        return event(f"kill/{self.name}", f"{self.name}-{item.counter}", payload=payload)

    def _judge(self, items: Sequence[Item], answer: Response) -> None:
        """Compare the verdicts with what is known: nothing acknowledged may be new, nothing new may be known."""
        assert answer.status in {200, 409} and len(answer.outcomes) == len(items), answer
        self.told.update(answer.outcomes)
        for item, outcome, seq in zip(items, answer.outcomes, answer.seqs, strict=True):
            known = self.sent.acknowledged.get(item.counter)
            if known is not None:
                good = (outcome, seq) == ("conflict" if item.variant else "duplicate", known)
            elif outcome == "stored":
                good = not item.variant and seq > self._highest_seq
            else:
                good = outcome == "duplicate" and item.counter in self._unanswered
                self.settled += good
            if not good:
                self.wrong_count += 1
                self.wrong = [*self.wrong, f"{item}: {outcome} at {seq}, known at {known}"][:WRONG_KEPT]
            self.sent.acknowledged.setdefault(item.counter, seq)
            self._unanswered.discard(item.counter)
            self._highest_seq = max(self._highest_seq, seq)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class Follower:
    """A reader that follows the log while the server dies again and again. What it saw has to stay where it was."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        self.seen: list[Read] = []
        self.wrong: list[str] = []
        self._http = Client(url, connections=1)
        self._stop = stop

    def run(self) -> None:
        """Read on behind the last event until told to stop."""
        while not self._stop.is_set():
            try:
                answer = self._http.get("/events", after=len(self.seen), limit=5000)
            except urllib3.exceptions.HTTPError:
                self._stop.wait(RETRY_S)
                continue
            if answer.status == 503:
                self._stop.wait(RETRY_S)
                continue
            if answer.status != 200:
                self.wrong.append(f"{answer}")
                return
            events = [parse(line) for line in answer.json()]
            if [read.seq for read in events] != list(range(len(self.seen) + 1, len(self.seen) + len(events) + 1)):
                self.wrong.append(f"behind {len(self.seen)}: {[read.seq for read in events][:10]} ...")
                return
            self.seen += events
            if not events:
                self._stop.wait(RETRY_S)

    def compare(self, log: Sequence[Read]) -> None:
        """Find what was seen and is now otherwise."""
        self.wrong += [f"seen: {seen}" for seen, now in zip_longest(self.seen, log[: len(self.seen)]) if seen != now]

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
