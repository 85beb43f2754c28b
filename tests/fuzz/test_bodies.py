"""Any bodies, in any form: no 500, no hang, only what the OpenAPI document says, and no verdict that the log belies."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from e2e.server import Client, ServerProcess
from e2e.server import event as an_event
from fuzz.bodies import BODY_BYTES_MAX, Request, requests
from fuzz.conftest import Fuzz
from fuzz.judge import CannotTell, Event, read_back, same_value
from fuzz.log import Row
from fuzz.sender import BATCH_EVENTS_MAX, Sender

ONE = json.dumps(an_event("fuzz/always", "id-1")).encode()
HOUR_S = 3600.0  # a long run may be stopped for a while, and no clock of the server should notice
SETTINGS: dict[str, Any] = {
    "BODY_BYTES_MAX": BODY_BYTES_MAX,
    "EVENT_BYTES_MAX": BODY_BYTES_MAX,
    "BATCH_EVENTS_MAX": BATCH_EVENTS_MAX,
    "IDLE_TIMEOUT_S": HOUR_S,
    "BODY_TIMEOUT_S": HOUR_S,
}


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    with ServerProcess(tmp_path_factory.mktemp("fuzz") / "store.db", **SETTINGS) as process:
        sender = Sender(process)
        yield sender
        sender.close()


def event_of(read: dict[str, Any]) -> Event:
    source_seq = read.get("source_seq")
    return Event(
        str(read["topic"]),
        str(read["event_id"]),
        str(read["source"]),
        None if source_seq is None else int(str(source_seq)),
        same_value(read["payload"]),
    )


def read_all(http: Client, path: str | None) -> Iterator[dict[str, Any]]:
    while path is not None:
        page = http.get(path)
        assert page.status == 200, page
        yield from read_back(page.data)
        path = page.next


def assert_stored(sender: Sender, rows: list[Row], *, after: int) -> None:
    """Read what is above a seq, as pages and as a stream: it is these rows and nothing else."""
    http = sender.server.http
    pages = list(read_all(http, f"/events?after={after}&limit=1000"))
    lines = [read_back(line) for line in http.export(after=after).splitlines()]
    assert lines == pages
    assert [(int(one["seq"]), event_of(one), int(one.get("duplicates", "0"))) for one in pages] == [
        (row.seq, row.event, row.duplicates) for row in rows
    ]


def assert_known(sender: Sender, events: list[Event]) -> None:
    """Ask /exists for what was sent, and for what was not: it knows the one and not the other."""
    for topic in {event.topic for event in events}:
        ids = sorted({event.event_id for event in events if event.topic == topic})
        question = json.dumps({"topic": topic, "event_ids": [*ids, "never sent"]}).encode()
        answer = sender.server.http.request("POST", "/exists", body=question)
        known = {event_id for event_id in ids if (topic, event_id) in sender.log.rows}
        assert answer.status == 200 and answer.json() == {
            "missing": [one for one in ids if one not in known] + ["never sent"]
        }


def assert_counted(sender: Sender) -> None:
    stats = sender.server.http.stats()
    counts = {outcome: sender.log.counts[outcome] for outcome in ("stored", "duplicate", "conflict")}
    assert stats["lifetime"] == counts | {"received": sum(counts.values())}
    assert stats["invalid"] == sender.invalid and stats["queue_depth"] == 0
    assert stats["unique_processed"] == sender.log.head


def check(sender: Sender, sequence: list[Request]) -> None:
    head = sender.log.head
    touched: list[Event] = []
    for request in sequence:
        try:
            touched += sender.publish(request)
        except CannotTell:
            continue
    assert_stored(sender, sender.log.after(head), after=head)
    assert_known(sender, touched)
    assert_counted(sender)


def check_all(sender: Sender) -> None:
    """Compare the whole log, and the variants that were refused."""
    assert_stored(sender, sender.log.after(0), after=0)
    variants = {
        (int(one["seq"]), one["source"], same_value(one["payload"]))
        for one in read_all(sender.server.http, "/conflicts?limit=1000")
    }
    kept = {(row.seq, source, payload) for row in sender.log.rows.values() for source, payload in row.variants}
    assert variants == kept
    metrics = sender.server.http.get("/metrics").data
    assert b"\nsekali_queue_bytes 0.0\n" in metrics and b"\nsekali_queue_events 0.0\n" in metrics


# Every answer that a request may get comes about, however few requests are made.
ALWAYS = [
    Request(b"[" + b",".join([ONE] * BATCH_EVENTS_MAX) + b"]"),
    Request(json.dumps(an_event("fuzz/always", "id-2")).encode(), preferences=("respond-async",)),
    Request(b"["),
    Request(b"[" + b",".join([ONE] * (BATCH_EVENTS_MAX + 1)) + b"]"),
    Request(ONE, content_type="text/plain"),
    Request(b"{}"),
]


def test_no_verdict_is_belied_by_the_log(sender: Sender, fuzz: Fuzz) -> None:
    check(sender, ALWAYS)
    assert list(sender.statuses) == [200, 202, 400, 413, 415, 422]
    sequences = 1
    for seed_now in fuzz.seeds(share=0.75):
        print(f"--fuzz-seed {seed_now}")  # noqa: T201

        @seed(seed_now)
        @settings(
            max_examples=100 if fuzz.minutes is None else 500,
            phases=[Phase.generate],  # what failed has changed the log: to shrink it would be to try something else
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(sequence=st.lists(requests(), min_size=2, max_size=8))
        def run(sequence: list[Request]) -> None:
            nonlocal sequences
            sequences += 1
            check(sender, sequence)

        run()
    assert min(sender.log.counts[outcome] for outcome in ("stored", "duplicate", "conflict")) > 0
    assert sender.invalid > 0
    check_all(sender)
    fuzz.figures["bodies"] = {
        "requests": sender.sent,
        "sequences": sequences,
        "statuses": {f"{status}": count for status, count in sorted(sender.statuses.items())},
        "outcomes": dict(sorted(sender.log.counts.items())) | {"invalid": sender.invalid},
    }
