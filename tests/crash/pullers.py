"""Competing consumers of one subscription that crash, stall and fail, and an account of what they were told."""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import urllib3

from e2e.server import Client, Response

RETRY_S = 0.005  # while no server answers
WRONG_KEPT = 10
DONE, PART, CRASH, STALL = "all of it", "a part, and the rest failed", "crashes", "stalls"
HABITS = {DONE: 70, PART: 10, CRASH: 10, STALL: 10}


@dataclass(frozen=True, slots=True)
class Step:
    """What a consumer did, in the order it happened. ``seqs`` are of one topic where it was given them."""

    was_given: bool
    seqs: tuple[int, ...]
    topic: str = ""


@dataclass(slots=True)
class _Holding:
    puller: str
    seqs: set[int]
    since: int
    until_s: float


@dataclass(slots=True)
class Ledger:
    """What all consumers did and were told. Moments are numbers that count up; safe for many threads.

    ``is_ordered``: nobody gets anything of a topic of which another holds something; otherwise not the same event.
    """

    is_ordered: bool = True
    steps: list[Step] = field(default_factory=list)
    given: Counter[int] = field(default_factory=Counter)
    acknowledged: dict[int, int] = field(default_factory=dict)  # seq: the moment of the answer
    unanswered: set[int] = field(default_factory=set)  # acknowledged, and nobody said whether that was done
    lost: int = 0
    attempts: Counter[int] = field(default_factory=Counter)  # of deliveries, by number of the attempt
    habits: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wrong_count: int = 0
    _holding: dict[str, _Holding] = field(default_factory=dict)  # by topic, or by seq
    _moment: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def moment(self) -> int:
        """Return the number of this moment."""
        with self._lock:
            self._moment += 1
            return self._moment

    def void_leases(self) -> None:
        """The server is gone, and with it whatever was leased."""
        with self._lock:
            self._holding.clear()

    def got(self, puller: str, asked: int, asked_s: float, lease_s: float, events: Sequence[dict[str, Any]]) -> None:
        """Note events that a consumer got to a request that was sent at the moment ``asked``."""
        with self._lock:
            self._moment += 1
            now_s = time.monotonic()
            runs = _by_topic(events)
            self.steps += [Step(True, tuple(seqs), topic) for topic, seqs in runs.items()]
            for what, seqs in (runs if self.is_ordered else {str(one["seq"]): [one["seq"]] for one in events}).items():
                holding = self._holding.get(what)
                if holding is not None and holding.seqs and holding.since < asked and now_s < holding.until_s:
                    self._note(f"{what} given to {puller} while {holding.puller} holds {sorted(holding.seqs)}")
                self._holding[what] = _Holding(puller, set(seqs), self._moment, asked_s + lease_s)
            for one in events:
                seq = one["seq"]
                self.given[seq] += 1
                self.attempts[one["attempt"]] += 1
                if self.acknowledged.get(seq, asked) < asked:
                    self._note(f"{seq} given to {puller} at {asked}, acknowledged at {self.acknowledged[seq]}")

    def says(self, seqs: Iterable[int]) -> None:
        """Note that a consumer is about to acknowledge events."""
        with self._lock:
            for holding in self._holding.values():
                holding.seqs.difference_update(seqs)
            self.steps.append(Step(False, tuple(seqs)))

    def lets_go(self, seqs: Iterable[int]) -> None:
        """Note that a consumer is about to give events back; what follows them in their topics goes with them."""
        with self._lock:
            for holding in self._holding.values():
                if not holding.seqs.isdisjoint(seqs):
                    holding.seqs.clear()

    def told(self, seqs: Iterable[int], answer: Response | None) -> None:
        """Note the answer to an acknowledgement, None where there was none."""
        with self._lock:
            self._moment += 1
            if answer is None:
                self.unanswered.update(seqs)
                return
            document = answer.json()
            self.lost += len(document["lost"])
            for seq in document["acknowledged"]:
                self.acknowledged.setdefault(seq, self._moment)

    def _note(self, what: str) -> None:
        self.wrong_count += 1
        self.wrong = [*self.wrong, what][:WRONG_KEPT]

    def left_out(self, log: Sequence[dict[str, Any]]) -> list[int]:
        """Return what nobody got, or nobody acknowledged, though the server says that everything is settled."""
        settled = self.given.keys() & (self.acknowledged.keys() | self.unanswered)
        return [one["seq"] for one in log if one["seq"] not in settled][:WRONG_KEPT]

    def figures(self) -> dict[str, int]:
        """Return counts for a report."""
        return {
            "events": len(self.given),
            "deliveries": self.given.total(),
            "acknowledged": len(self.acknowledged),
            "acknowledged without an answer": len(self.unanswered - self.acknowledged.keys()),
            "events of leases that were lost": self.lost,
            "highest attempt": max(self.attempts, default=0),
            **{f"pullers: {habit}": count for habit, count in sorted(self.habits.items())},
            "wrong": self.wrong_count,
        }

    def out_of_order(self, log: Sequence[dict[str, Any]]) -> list[str]:
        """Compare every run with the log: it has no gap, and what comes before it somebody had said to be done."""
        topics: defaultdict[str, list[int]] = defaultdict(list)
        for one in log:
            topics[one["topic"]].append(one["seq"])
        places = {seq: place for seqs in topics.values() for place, seq in enumerate(seqs)}
        done: set[int] = set()
        first_open: Counter[str] = Counter()  # by topic, a place
        wrong = []
        for step in self.steps:
            if not step.was_given:
                done.update(step.seqs)
                continue
            seqs, place = topics[step.topic], first_open[step.topic]
            while place < len(seqs) and seqs[place] in done:
                place += 1
            first_open[step.topic] = place
            run = [places[seq] for seq in step.seqs]
            missing = [seqs[one] for one in range(run[0], run[-1]) if one not in run and seqs[one] not in done]
            if run != sorted(run) or run[0] > place or missing:
                wrong.append(
                    f"{step.topic}: {step.seqs} given, {seqs[place : place + 3]} come first, left out {missing}"
                )
        return wrong[:WRONG_KEPT]


def _by_topic(events: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in events:
        found.setdefault(one["topic"], []).append(one["seq"])
    return found


class Puller:
    """One consumer. Only its own thread uses it."""

    def __init__(
        self,
        name: str,
        url: str,
        subscription: str,
        ledger: Ledger,
        seed: str,
        stop: threading.Event,
        *,
        lease_s: float,
        habits: dict[str, int] = HABITS,
        events_max: Sequence[int] = (1, 3, 10, 50),
        topics_max: Sequence[int] = (1, 1, 2, 5),
    ) -> None:
        self.name = name
        self.connection_errors = 0
        self._path = f"/subscriptions/{subscription}"
        self._url = url
        self._http = Client(url, connections=1)
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._stop = stop
        self._lease_s = lease_s
        self._habits = habits
        self._events_max, self._topics_max = events_max, topics_max

    def run(self) -> None:
        """Consume until told to stop."""
        while not self._stop.is_set():
            self.take()

    def take(self) -> int:
        """Take events once and do something with them; return how many there were."""
        chance, ledger = self._chance, self._ledger
        ask = {
            "max": chance.choice(self._events_max),
            "wait": 0.2,
            "topics": chance.choice(self._topics_max),
            "lease_seconds": self._lease_s,
        }
        asked, asked_s = ledger.moment(), time.monotonic()
        answer = self._post("pull", ask)
        if answer is None:
            return 0
        document = answer.json()
        events = document["events"]
        if not events:
            return 0
        ledger.got(self.name, asked, asked_s, self._lease_s, events)
        habit = chance.choices([*self._habits], [*self._habits.values()])[0]
        ledger.habits[habit] += 1
        seqs = [one["seq"] for one in events]
        if habit == CRASH:  # what it did is lost, with its connection and its lease
            self._http.close()
            self._http = Client(self._url, connections=1)
        elif habit == STALL:
            self._stop.wait(self._lease_s * 1.3)
            self._acknowledge(document["lease"], seqs)
        elif habit == PART:
            # In the order of the topics, as whoever fails half-way through: what comes behind was not tried.
            done = chance.randrange(len(seqs))
            if self._acknowledge(document["lease"], seqs[:done]):
                self._ledger.lets_go(seqs[done:])
                self._post("nack", {"lease": document["lease"], "seqs": seqs[done:], "delay": chance.choice((0, 0.05))})
        else:
            self._acknowledge(document["lease"], seqs)
        return len(events)

    def _acknowledge(self, lease: str, seqs: list[int]) -> bool:
        self._ledger.says(seqs)
        answer = self._post("ack", {"lease": lease, "seqs": seqs})
        self._ledger.told(seqs, answer)
        return answer is not None

    def _post(self, what: str, document: dict[str, Any]) -> Response | None:
        """Send a request; None where it got no answer, or the server cannot now."""
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._http.request(
                "POST", f"{self._path}/{what}", body=json.dumps(document).encode(), headers=headers
            )
        except urllib3.exceptions.HTTPError:
            self.connection_errors += 1
            self._stop.wait(RETRY_S)
            return None
        if answer.status == 503:
            self._stop.wait(RETRY_S)
            return None
        assert answer.status == 200, answer
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
