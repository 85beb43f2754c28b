"""The load publisher's events: made up, partly repeated, in any number, in little memory."""

import time
from collections.abc import Iterator, Sequence
from random import Random

from sekali.client.events import encode_event, format_time
from sekali.client.lines import Item
from sekali.client.uuid7 import Uuid7

SOURCE = "simulator"
RECENT_EVENTS_MAX = 1000  # repeats are drawn from so many events: some of the same batch, some of earlier ones
_SEEDED_START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
_NS_PER_MS = 1_000_000
_LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARNING", "ERROR")
_MESSAGES = ("request served", "cache miss", "user logged in", "payment accepted", "retrying upstream", "job finished")


def simulate(count: int, dup_ratio: float, topics: Sequence[str], seed: int | None = None) -> Iterator[Item]:
    """Yield ``count`` events, of which ``round(count * dup_ratio)`` repeat an earlier one byte for byte.

    The repeats are spread evenly at random. The first event cannot be one, so there are at most ``count - 1``. With a
    seed, ids, times and payloads are the same in every run; without one, ids are fresh and times are now.
    """
    random = Random(seed)  # noqa: S311 - a load, no secret
    new_events = _new_events(topics, random, is_seeded=seed is not None)
    recent: list[bytes] = []
    made = 0
    repeats_left = min(round(count * dup_ratio), max(count - 1, 0))
    for number in range(count):
        # Selection sampling (Knuth, TAOCP 2, 3.4.2, algorithm S): each of the positions left is as likely as the
        # others to be one of the repeats left, and none is left over.
        if recent and random.random() * (count - number) < repeats_left:
            repeats_left -= 1
            event = recent[int(random.random() * len(recent))]
        else:
            event = next(new_events)
            if len(recent) < RECENT_EVENTS_MAX:
                recent.append(event)
            else:
                recent[made % RECENT_EVENTS_MAX] = event
            made += 1
        yield Item(f"event {number + 1}", event)


def _new_events(topics: Sequence[str], random: Random, *, is_seeded: bool) -> Iterator[bytes]:
    now_ns = _SEEDED_START_NS
    make_id = Uuid7(lambda: now_ns, random.getrandbits) if is_seeded else Uuid7()
    number = 0
    while True:
        now_ns = now_ns + _NS_PER_MS if is_seeded else time.time_ns()
        payload = {
            "number": number,
            "level": _LEVELS[int(random.random() * len(_LEVELS))],
            "message": _MESSAGES[int(random.random() * len(_MESSAGES))],
            "duration_ms": int(random.random() * 1000),
        }
        topic = topics[int(random.random() * len(topics))]
        yield encode_event(topic, make_id(), format_time(now_ns), payload, SOURCE)
        number += 1
