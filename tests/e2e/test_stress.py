"""Many events at once: every one is counted, none is lost, none is there twice."""

import json
import random
from collections import Counter

from e2e.conftest import Launch
from e2e.server import Client, event, in_parallel, verify


def _everything(http: Client) -> list[tuple[str, str]]:
    events = [json.loads(line) for line in http.export().splitlines()]
    assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
    return [(one["topic"], one["event_id"]) for one in events]


def test_5000_events_with_1000_duplicates_in_one_request(launch: Launch) -> None:
    server = launch()
    http = server.http
    unique = [event(f"stress/{n % 4}", f"e-{n}", payload={"n": n, "text": "x" * (n % 200)}) for n in range(4000)]
    chance = random.Random(1)
    batch = unique + chance.choices(unique, k=1000)
    chance.shuffle(batch)
    answer = http.publish(batch)
    assert answer.status == 200
    counts = {name: answer.json()[name] for name in ("received", "stored", "duplicate", "conflict", "invalid")}
    assert counts == {"received": 5000, "stored": 4000, "duplicate": 1000, "conflict": 0, "invalid": 0}
    assert Counter(answer.outcomes) == {"stored": 4000, "duplicate": 1000}
    first: dict[tuple[str, str], int | None] = {}
    for one, outcome, seq in zip(batch, answer.outcomes, answer.seqs, strict=True):
        key = (one["topic"], one["event_id"])
        assert outcome == ("duplicate" if key in first else "stored") and first.setdefault(key, seq) == seq
    stats = http.stats()
    assert (stats["received"], stats["unique_processed"], stats["duplicate_dropped"]) == (5000, 4000, 1000)
    assert stats["duplicate_rate"] == 0.2 and stats["topics_count"] == 4
    stored = _everything(http)
    assert len(stored) == 4000 and set(stored) == set(first)
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == 4000


def test_connections_with_overlapping_ids(launch: Launch) -> None:
    """Each id is sent by three of the publishers, over many small requests; all figures agree with what they sent."""
    server = launch(CONSUMER_WORKERS=2)
    http = server.http
    publishers, ids = 12, 6000
    told: list[Counter[str]] = [Counter() for _ in range(publishers)]
    sent: list[list[str]] = [
        [f"e-{n}" for n in range(ids) if publisher in {n % 12, (n + 3) % 12, (n * 7 + 5) % 12}]
        for publisher in range(publishers)
    ]

    def publish(publisher: int) -> None:
        mine = list(sent[publisher])
        random.Random(publisher).shuffle(mine)
        for start in range(0, len(mine), 50):
            answer = http.publish([event("overlap", event_id) for event_id in mine[start : start + 50]])
            assert answer.status == 200
            told[publisher].update(answer.outcomes)

    in_parallel(publishers, publish)
    total, unique = sum(map(len, sent)), len(set().union(*sent))
    assert unique == ids and total > 2 * ids
    assert sum(told, Counter()) == {"stored": unique, "duplicate": total - unique}
    assert sum(counts["stored"] > 0 for counts in told) > 1, "the publishers did not overlap"
    assert Counter(_everything(http)) == Counter(("overlap", f"e-{n}") for n in range(ids))
    stats = http.stats()
    assert stats["lifetime"] == {"received": total, "stored": unique, "duplicate": total - unique, "conflict": 0}
    assert (stats["received"], stats["duplicate_dropped"]) == (total, total - unique)
    line = http.topic("overlap")
    assert (line["stored"], line["duplicates"]) == (unique, total - unique)
    assert server.terminate() == 0
    verify(server.db_path)
