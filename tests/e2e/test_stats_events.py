"""What readers get: figures, events in every order and page size, topics, conflicts, metrics, health, OpenAPI."""

import json
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.conftest import Launch
from e2e.openapi import Contract
from e2e.server import Client, ServerProcess, event, wait_until
from sekali.metrics import METRICS
from stored import put_back

ORDERS = ["seq", "-seq", "timestamp", "-timestamp"]
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6}|\.\d{9})?Z")

# Figures.


def test_stats_has_every_field_and_the_sums_hold(launch: Launch) -> None:
    server = launch(CONSUMER_WORKERS=3)
    http = server.http
    empty = http.stats()
    assert empty["topics"] == [] and empty["duplicate_rate"] == 0
    http.publish([event("b", "1"), event("a", "1"), event("a", "1"), event("a", "1", payload=0), {"no": "event"}])
    http.publish(event("a", "1"))
    http.publish(event("c", "1"), prefer="respond-async")
    http.publish({"no": "event"})
    wait_until(lambda: http.stats()["queue_depth"] == 0, "everything is committed")
    stats = http.stats()
    latency_ms = stats.pop("latency_ms")
    uptime_seconds, throughput, log_id = (stats.pop(name) for name in ("uptime_seconds", "throughput", "log_id"))
    assert stats == {
        "received": 6,
        "unique_processed": 3,
        "duplicate_dropped": 3,
        "topics": ["a", "b", "c"],
        "topics_count": 3,
        "queue_depth": 0,
        "workers": 3,
        "db_path": str(server.db_path),
        "conflicts": 1,
        "invalid": 2,
        "duplicate_rate": 0.5,
        "freshness_seconds": 0.0,
        "lifetime": {"received": 6, "stored": 3, "duplicate": 2, "conflict": 1},
    }
    assert 0 < latency_ms["p50"] <= latency_ms["p95"] <= latency_ms["p99"] and set(latency_ms) == {"p50", "p95", "p99"}
    assert uptime_seconds > empty["uptime_seconds"] and throughput > 0
    assert log_id == empty["log_id"] and isinstance(log_id, str) and log_id


def test_stats_names_at_most_1000_topics(launch: Launch) -> None:
    http = launch().http
    http.publish([event(f"t/{number:04}", "1") for number in range(1005)])
    stats = http.stats()
    assert stats["topics"] == [f"t/{number:04}" for number in range(1000)] and stats["topics_count"] == 1005


def test_queue_depth_and_freshness_show_what_waits(launch: Launch) -> None:
    server = launch(faults="held")
    server.fault_file.touch()
    publishing = threading.Thread(target=server.http.publish, args=([event("slow", f"{n}") for n in range(7)],))
    publishing.start()
    try:
        wait_until(lambda: server.http.stats()["queue_depth"] == 7, "the events wait")
        first = server.http.stats()
        wait_until(lambda: server.http.stats()["freshness_seconds"] > first["freshness_seconds"] > 0, "they grow older")
        assert first["received"] == first["unique_processed"] == 0, "an item is counted when its verdict is known"
        assert server.http.events() == [], "what readers see is committed"
    finally:
        server.fault_file.unlink()
        publishing.join()
    stats = server.http.stats()
    assert (stats["queue_depth"], stats["freshness_seconds"], stats["received"]) == (0, 0, 7)


def test_duplicates_and_last_duplicate_at(http: Client) -> None:
    http.publish([event("again", "once"), event("again", "thrice")])
    once, thrice = http.events(topic="again")
    assert "duplicates" not in once and "last_duplicate_at" not in once
    http.publish(event("again", "thrice"))
    http.publish(event("again", "thrice", payload="a conflict is no duplicate"))
    http.publish([event("again", "thrice")] * 2)
    once, thrice = http.events(topic="again")
    assert thrice["duplicates"] == 3 and UTC_TIME.fullmatch(thrice["last_duplicate_at"])
    assert _time_ns(thrice["last_duplicate_at"]) >= _time_ns(thrice["processed_at"])
    assert "duplicates" not in once


def test_processed_at_follows_seq(http: Client) -> None:
    for number in range(5):
        http.publish([event("clock", f"{number}-{item}") for item in range(3)])
    events = http.events(topic="clock")
    assert all(UTC_TIME.fullmatch(one["processed_at"]) for one in events)
    times = [_time_ns(one["processed_at"]) for one in events]
    assert len(events) == 15 and times == sorted(times) and len(set(times)) > 1


def _time_ns(text: str) -> int:
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(seconds + "+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


# Events, against an oracle.

TOPICS = ["app", "app/prod/api", "app/prod/web", "app/dev/api", "app/prod/api/v2", "other/app/api", "App/prod/api"]


class Corpus:
    """A server with events of which the test knows everything."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.http = server.http
        chance = random.Random(7)
        self.events: list[dict[str, Any]] = []
        for request in range(12):
            events = [
                event(
                    chance.choice(TOPICS),
                    f"{request}-{item}" if item else "same",
                    timestamp=f"2026-11-23T10:15:0{chance.randrange(6)}.{chance.choice(['5', '000000001'])}Z",
                    source=chance.choice(["", "one", "two"]),
                    payload={"request": request},
                )
                for item in range(8)
            ]
            answer = server.http.publish(events)
            for one, result in zip(events, answer.json()["results"], strict=True):
                if result["outcome"] == "stored":
                    self.events.append(one | {"seq": result["seq"], "time_ns": _time_ns(one["timestamp"])})
        assert len(self.events) > 80

    def expected(self, order: str, **query: Any) -> list[int]:
        """Return the seqs that match a query, in order."""
        found = [one for one in self.events if _matches(one, query)]
        found.sort(key=lambda one: (one["time_ns"], one["seq"]) if "timestamp" in order else (one["seq"],))
        return [one["seq"] for one in (reversed(found) if order.startswith("-") else found)]


def _matches(one: dict[str, Any], query: dict[str, Any]) -> bool:
    return (
        ("topic" not in query or _topic_matches(query["topic"].split("/"), one["topic"].split("/")))
        and ("source" not in query or one["source"] == query["source"])
        and ("since" not in query or one["time_ns"] >= _time_ns(query["since"]))
        and ("until" not in query or one["time_ns"] < _time_ns(query["until"]))
        and one["seq"] > query.get("after", 0)
        and ("event_id" not in query or one["event_id"] == query["event_id"])
    )


def _topic_matches(pattern: list[str], topic: list[str]) -> bool:
    if not pattern:
        return not topic
    if pattern[0] == "**":
        return any(_topic_matches(pattern[1:], topic[skip:]) for skip in range(len(topic) + 1))
    return bool(topic) and pattern[0] in {"*", topic[0]} and _topic_matches(pattern[1:], topic[1:])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    with ServerProcess(tmp_path_factory.mktemp("corpus") / "store.db") as server:
        yield Corpus(server)


QUERIES: list[dict[str, Any]] = [
    {},
    {"topic": "app"},
    {"topic": "app/prod/api"},
    {"topic": "nothing"},
    {"topic": "*"},
    {"topic": "**"},
    {"topic": "*/*/*"},
    {"topic": "app/*/api"},
    {"topic": "app/**"},
    {"topic": "**/api"},
    {"topic": "app/**/api"},
    {"topic": "app/prod/*"},
    {"topic": "**/app/**"},
    {"topic": "**/**"},
    {"topic": "no/**"},
    {"source": "one"},
    {"source": ""},
    {"source": "nobody"},
    {"since": "2026-11-23T10:15:03.000000001Z"},
    {"until": "2026-11-23T10:15:03.000000001Z"},
    {"since": "2026-11-23T10:15:02.5Z", "until": "2026-11-23T10:15:04.5Z"},
    {"since": "2026-11-23T10:15:02.5Z", "until": "2026-11-23T10:15:02.5Z"},
    {"since": "2026-11-23T10:15:05Z", "until": "2026-11-23T10:15:01Z"},
    {"after": 40},
    {"after": 40, "topic": "app/**", "source": "two"},
    {"topic": "app/prod/api", "since": "2026-11-23T10:15:01Z", "after": 10, "source": "one"},
    {"topic": "app/*/api", "until": "2026-11-23T10:15:04Z"},
    {"topic": "app", "event_id": "same"},
    {"topic": "app", "event_id": "same", "source": "one", "since": "2026-11-23T10:15:01Z"},
    {"topic": "app", "event_id": "never"},
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: " ".join(f"{k}={v}" for k, v in query.items()) or "all")
def test_events_by_filter_in_every_order_on_pages_of_every_size(
    corpus: Corpus, query: dict[str, Any], order: str
) -> None:
    """A page of everything, pages through Link with tiny limits, and the stream: the same events, each once."""
    expected = corpus.expected(order, **query)
    http = corpus.http
    assert [one["seq"] for one in http.events(order=order, **query)] == expected
    for limit in (1, 3, 50):
        pages = list(http.pages("/events", order=order, limit=limit, **query))
        assert [one["seq"] for page in pages for one in page] == expected, f"limit {limit}"
        assert all(len(page) <= limit for page in pages)
    stream = http.export(order=order, limit=2, **query)
    assert [json.loads(line)["seq"] for line in stream.splitlines()] == expected, "a stream is unpaged"
    assert stream.endswith(b"\n") or not expected


def test_the_queries_above_are_worth_asking(corpus: Corpus) -> None:
    """Most of them match something and leave something out."""
    sizes = [len(corpus.expected("seq", **query)) for query in QUERIES]
    assert sum(0 < size < len(corpus.events) for size in sizes) >= 18
    times = Counter(one["time_ns"] for one in corpus.events)
    assert max(times.values()) > 3, "there are ties to break by seq"


def test_seq_is_the_default_order_and_1000_the_default_limit(launch: Launch) -> None:
    http = launch().http
    http.publish([event("many", f"{number}") for number in range(1500)])
    pages = list(http.pages("/events"))
    assert [len(page) for page in pages] == [1000, 500]
    assert [one["seq"] for page in pages for one in page] == list(range(1, 1501))


def test_event_has_its_fields_as_published(corpus: Corpus) -> None:
    for read, sent in zip(corpus.http.events(), corpus.events, strict=True):
        assert {"processed_at", "seq"} < set(read)
        for name in ("topic", "event_id", "source", "payload", "seq"):
            assert read[name] == sent[name]
        assert _time_ns(read["timestamp"]) == sent["time_ns"]


@pytest.mark.parametrize("order", ["timestamp", "-timestamp"])
def test_pages_by_time_are_those_of_the_moment_of_the_first(http: Client, order: str) -> None:
    """What comes late, behind the reader, ahead of it or at a time that others have, is on no page and moves none."""
    root = f"late{order}"
    http.publish([event(f"{root}/a", f"{n}", timestamp=f"2026-11-23T10:15:{n // 2:02}Z") for n in range(40)])
    late = [f"2026-11-23T10:{time}Z" for time in ("14:00", "15:00", "15:09", "15:19", "16:00")]
    for query in ({"topic": f"{root}/**"}, {"topic": f"{root}/**", "source": "test"}, {"topic": f"{root}/a"}):
        expected = http.events(order=order, **query)
        pages = []
        for number, page in enumerate(http.pages("/events", order=order, limit=3, **query)):
            pages.append(page)
            http.publish([event(f"{root}/a", f"{len(expected)} {number} {at}", timestamp=at) for at in late])
        assert [one for page in pages for one in page] == expected
        assert [len(page) for page in pages[:-1]] == [3] * (len(pages) - 1) and len(pages) > 13
        assert len(http.events(order=order, **query)) == len(expected) + len(late) * len(pages), "they did arrive"


@pytest.mark.parametrize("order", ["timestamp", "-timestamp"])
def test_a_stream_behind_a_page_by_time_ends_where_the_pages_do(http: Client, order: str) -> None:
    topic = f"pages-and-stream/{order}"
    http.publish([event(topic, f"{n}", timestamp=f"2026-11-23T10:15:{n:02}Z") for n in range(5)])
    first = http.get("/events", topic=topic, order=order, limit=2)
    http.publish([event(topic, f"late {n}", timestamp=f"2026-11-23T10:15:{n:02}.5Z") for n in range(5)])
    rest = http.request("GET", str(first.next), headers={"Accept": "application/x-ndjson"}).data
    seen = [one["event_id"] for one in [*first.json(), *map(json.loads, rest.splitlines())]]
    assert seen == [f"{n}" for n in (reversed(range(5)) if order.startswith("-") else range(5))]


@pytest.mark.parametrize("order", ORDERS)
def test_paging_while_events_arrive_gives_none_twice(http: Client, order: str) -> None:
    topic = f"arriving/{order}"
    http.publish([event(topic, f"{n}", timestamp=f"2026-11-23T10:15:{n % 7:02}Z") for n in range(30)])
    seen: Counter[str] = Counter()
    for number, page in enumerate(http.pages("/events", topic=topic, order=order, limit=4)):
        seen.update(one["event_id"] for one in page)
        if number < 10:
            http.publish(event(topic, f"new-{number}", timestamp=f"2026-11-23T10:15:{number % 7:02}Z"))
    assert set(seen.values()) == {1} and {f"{n}" for n in range(30)} <= set(seen)


def test_stream_ends_at_what_was_there_when_it_began(http: Client) -> None:
    http.publish([event("bounded", f"{n}") for n in range(10)])
    assert len(http.export(topic="bounded").splitlines()) == 10


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with 120,000 small events, two of them of a rare source, and 20 events of about 900 KB."""
    with ServerProcess(tmp_path_factory.mktemp("large") / "store.db") as server:
        for request in range(12):
            events = [event("small", f"{request}-{n}", payload=n) for n in range(10_000)]
            events[5_000]["source"] = "rare" if request in {5, 6} else "test"
            assert server.http.publish(events).json()["stored"] == 10_000
        for start in range(0, 20, 10):
            events = [event("large", f"{n}", payload="x" * 900_000) for n in range(start, start + 10)]
            assert server.http.publish(events).json()["stored"] == 10
        yield server.http


@pytest.mark.parametrize("order", ORDERS)
def test_page_ends_after_a_bounded_scan_and_an_empty_page_may_have_a_next(large: Client, order: str) -> None:
    pages = list(large.pages("/events", source="rare", order=order))
    assert [one["source"] for page in pages for one in page] == ["rare", "rare"]
    assert [] in pages[:-1], "120,000 rows were scanned for one page"
    assert len(large.export(source="rare", order=order).splitlines()) == 2


def test_page_ends_at_8_mib(large: Client) -> None:
    sizes = []
    ids: list[str] = []
    response = large.get("/events", topic="large")
    while True:
        sizes.append(len(response.data))
        ids += [one["event_id"] for one in response.json()]
        if response.next is None:
            break
        response = large.get(response.next)
    assert ids == [f"{n}" for n in range(20)]
    assert max(sizes) < 10 * 1024 * 1024 and len(sizes) > 1
    assert len(large.export(topic="large").splitlines()) == 20


# Errors.


def _assert_names(response: Any, status: int, parameter: str | None) -> None:
    assert response.status == status, response
    assert response.headers["Content-Type"] == "application/problem+json"
    if parameter is not None:
        assert [place["parameter"] for place in response.json()["errors"]] == [parameter]


@pytest.mark.parametrize(
    ("parameter", "query"),
    [
        ("topic", {"topic": text})
        for text in ("", "a b", "/a", "a/", "a//b", "..", "a/../*", "a*", "***", "a/b**", "é", "a" * 256)
    ]
    + [
        (name, {name: text})
        for name in ("since", "until")
        for text in ("", "yesterday", "1763892930", "2262-01-01T00:00:00Z")
    ]
    + [("after", {"after": value}) for value in (-1, "x", 2**63, "1.5")]
    + [("limit", {"limit": value}) for value in (0, -1, "x", 10**9)]
    + [("order", {"order": text}) for text in ("", "SEQ", "--seq", "processed_at", "seq; DROP TABLE events")]
    + [
        ("event_id", {"event_id": "a"}),
        ("event_id", {"event_id": "a", "topic": "a/*"}),
        ("event_id", {"event_id": "", "topic": "a"}),
        ("event_id", {"event_id": "e\u0301", "topic": "a"}),
    ],
)
def test_bad_parameter_is_422_and_named(http: Client, parameter: str, query: dict[str, Any]) -> None:
    _assert_names(http.get("/events", **query), 422, parameter)


@pytest.mark.parametrize("path", ["/topics", "/sources", "/conflicts"])
@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": "x"}, {"cursor": "x"}], ids=str)
def test_bad_parameter_of_a_listing_is_422_and_named(http: Client, path: str, query: dict[str, Any]) -> None:
    _assert_names(http.get(path, **query), 422, next(iter(query)))


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!!!", "WyJhIl0", "W10", "eyJhIjoxfQ", "AAAA", "é", "a" * 5000, "=", "bnVsbA"]
)
def test_garbage_cursor_is_422(http: Client, cursor: str) -> None:
    _assert_names(http.get("/events", cursor=cursor), 422, "cursor")


def _cursor(http: Client, path: str, **query: Any) -> str:
    address = http.get(path, limit=1, **query).next
    assert address is not None
    return next(part.partition("=")[2] for part in urlsplit(address).query.split("&") if part.startswith("cursor="))


def test_cut_or_changed_cursor_is_refused(corpus: Corpus) -> None:
    cursor = _cursor(corpus.http, "/events")
    for place in range(0, len(cursor), 3):
        assert corpus.http.get("/events", cursor=cursor[:place]).status == 422
    changed = cursor[:8] + ("A" if cursor[8] != "A" else "B") + cursor[9:]
    assert corpus.http.get("/events", cursor=changed).status in {410, 422}


@pytest.mark.parametrize("order", ORDERS)
def test_cursor_of_another_order_or_listing_is_422(corpus: Corpus, order: str) -> None:
    cursor = _cursor(corpus.http, "/events", order=order)
    for other in ORDERS:
        if other == order:
            assert corpus.http.get("/events", cursor=cursor, order=order).status == 200
        else:
            _assert_names(corpus.http.get("/events", cursor=cursor, order=other), 422, "cursor")
    _assert_names(corpus.http.get("/topics", cursor=cursor), 422, "cursor")
    _assert_names(corpus.http.get("/conflicts", cursor=cursor), 422, "cursor")
    _assert_names(corpus.http.get("/sources", cursor=cursor), 422, "cursor")
    _assert_names(corpus.http.get("/events", cursor=_cursor(corpus.http, "/topics"), order=order), 422, "cursor")


@pytest.mark.parametrize("path", ["/events", "/topics", "/sources", "/conflicts"])
def test_cursor_of_another_log_is_410(http: Client, corpus: Corpus, path: str) -> None:
    for number in range(2):
        corpus.http.publish([event(f"two/{number}", "1", source_seq=1), event(f"two/{number}", "1", payload="variant")])
    _assert_names(http.get(path, cursor=_cursor(corpus.http, path)), 410, None)


def test_position_above_the_head_is_410(http: Client) -> None:
    http.publish([event("head", "1")])
    head = http.events(order="-seq", limit=1)[0]["seq"]
    assert http.events(after=head) == []
    _assert_names(http.get("/events", after=head + 1), 410, None)
    assert http.request("GET", f"/events?after={head + 1}", headers={"Accept": "application/x-ndjson"}).status == 410


def test_cursor_above_the_head_is_410(launch: Launch) -> None:
    """The file was put back to an older state: the log has the same name and is shorter than the reader has seen."""
    server = launch()
    server.http.publish(event("old", "1"))
    assert server.terminate() == 0
    older = server.db_path.with_suffix(".older")
    shutil.copy(server.db_path, older)
    server.start()
    server.http.publish([event("old", f"{n}", timestamp=f"2026-11-23T10:15:{n:02}Z") for n in range(2, 9)])
    server.http.publish([event("old", f"{n}", payload="variant") for n in range(2, 9)])
    addresses = [server.http.get("/events", limit=5, order=order).next for order in ORDERS]
    addresses.append(server.http.get("/conflicts", limit=5).next)
    assert [server.http.get(str(address)).status for address in addresses] == [200] * 5
    assert server.terminate() == 0
    assert not server.db_path.with_name(server.db_path.name + "-wal").exists()
    put_back(older, server.db_path)
    server.start()
    statuses = {str(address): server.http.get(str(address)).status for address in addresses}
    assert statuses == dict.fromkeys(statuses, 410)


# Topics and conflicts.


def test_topics_tell_what_each_holds_and_are_paged(launch: Launch) -> None:
    http = launch().http
    http.publish([event("b", "1"), event("a/x", "1", timestamp="2030-01-01T00:00:00+01:00"), event("a/x", "2")])
    http.publish([event("b", "1"), event("b", "1", payload=0), event("c", "1"), event("b", "2"), event("B", "1")])
    topics = http.get_json("/topics")
    assert topics == [
        _topic("B", 1, 0, 0, 6, 6),
        _topic("a/x", 2, 0, 0, 2, 3) | {"last_event_time": "2029-12-31T23:00:00Z"},
        _topic("b", 2, 1, 1, 1, 5),
        _topic("c", 1, 0, 0, 4, 4),
    ]
    for limit in (1, 2, 3, 4):
        pages = list(http.pages("/topics", limit=limit))
        assert [one for page in pages for one in page] == topics and all(len(page) <= limit for page in pages)


def _topic(name: str, *figures: int) -> dict[str, Any]:
    names = ("stored", "duplicates", "conflicts", "first_seq", "last_seq")
    time = {"last_event_time": "2026-11-23T10:15:30.123Z"}
    return {"topic": name} | dict(zip(names, figures, strict=True)) | time


def test_conflicts_are_paged(launch: Launch) -> None:
    http = launch().http
    http.publish([event("a", f"{n}") for n in range(7)])
    http.publish([event("a", f"{n}", payload={"variant": n}, source="late") for n in reversed(range(7))])
    conflicts = http.get_json("/conflicts")
    assert [(one["event_id"], one["seq"], one["payload"]) for one in conflicts] == [
        (f"{n}", n + 1, {"variant": n}) for n in reversed(range(7))
    ]
    fields = {"topic", "event_id", "seq", "source", "payload", "count", "first_at", "last_at"}
    assert all(set(one) == fields and UTC_TIME.fullmatch(one["first_at"]) for one in conflicts)
    for limit in (1, 3, 7):
        assert [one for page in http.pages("/conflicts", limit=limit) for one in page] == conflicts


# Metrics and health.


def _samples(http: Client) -> dict[tuple[str, tuple[str, ...]], float]:
    response = http.get("/metrics")
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.data.decode())
    return {
        (sample.name, tuple(sample.labels.values())): float(sample.value)
        for family in families
        for sample in family.samples
    }


def test_metrics_parse_and_every_one_of_them_is_there(launch: Launch) -> None:
    http = launch().http
    http.publish([event("a", "1"), event("a", "1"), event("b", "1"), event("b", "1", payload=0), {}])
    http.publish(b"{")
    assert http.request("PUT", "/subscriptions/s", body=b'{"topic": "a"}').status == 201
    assert _samples(http)["sekali_commit_seconds_count", ()] == 2  # of the events, and of the subscription
    push = {"topic": "nothing", "delivery": "push", "url": "https://example.com", "secret": "whsec_" + "A" * 40}
    assert http.request("PUT", "/subscriptions/push", body=json.dumps(push).encode()).status == 201
    wait_until(lambda: b"endpoint_down{" in http.get("/metrics").data, "the endpoint is looked after")
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").data.decode())}
    for metric in METRICS:
        family = families.pop(metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert family.samples and {tuple(sample.labels) for sample in family.samples} - {("le",)} <= {metric.labels}
    assert set(families) <= {"sekali_commit_seconds_created"}, "a metric that is not in the table"
    samples = _samples(http)
    outcomes = {labels[0]: value for (name, labels), value in samples.items() if name == "sekali_events_total"}
    assert outcomes == {"stored": 2, "duplicate": 1, "conflict": 1, "invalid": 1}
    assert samples["sekali_responses_total", ("200",)] == samples["sekali_responses_total", ("400",)] == 1
    assert (samples["sekali_log_events", ()], samples["sekali_log_topics", ()]) == (2, 2)
    assert samples["sekali_subscriptions", ()] == 2
    assert samples["sekali_healthy", ()] == 1
    assert samples["sekali_queue_events", ()] == samples["sekali_queue_bytes", ()] == 0


def test_healthz_is_503_while_commits_fail_and_200_again_by_itself(launch: Launch) -> None:
    server = launch(faults="failing")
    http = server.http
    healthy = http.get("/healthz")
    assert healthy.status == 200 and healthy.json()["ok"] is True
    server.fault_file.touch()
    assert http.publish(event("a", "1")).status == 503
    sick = http.get("/healthz")
    assert sick.status == 503 and sick.json()["ok"] is False and "injected" in sick.json()["detail"]
    assert 1 <= int(sick.headers["Retry-After"]) <= 5
    assert _samples(http)["sekali_healthy", ()] == 0
    failures = _samples(http)["sekali_commit_failures_total", ()]
    assert failures >= 1
    wait_until(lambda: _samples(http)["sekali_commit_failures_total", ()] > failures, "it probes with real commits")
    for _ in range(3):
        refused = http.publish(event("a", "1"))
        assert refused.status == 503 and 1 <= int(refused.headers["Retry-After"]) <= 5
    assert http.get("/events").status == http.get("/stats").status == http.get("/topics").status == 200
    server.fault_file.unlink()
    wait_until(lambda: http.get("/healthz").status == 200, "healthy by itself, without a request to publish")
    assert http.publish(event("a", "1")).outcomes == ["stored"]
    assert _samples(http)["sekali_healthy", ()] == 1


# OpenAPI.

ROUTES = {
    ("post", "/publish"),
    ("get", "/events"),
    ("get", "/subscribe"),
    ("get", "/stats"),
    ("get", "/healthz"),
    ("get", "/topics"),
    ("get", "/sources"),
    ("get", "/conflicts"),
    ("post", "/exists"),
    ("get", "/metrics"),
    ("get", "/subscriptions"),
    *((method, "/subscriptions/{name}") for method in ("get", "put", "delete")),
    *(("post", f"/subscriptions/{{name}}/{what}") for what in ("pull", "ack", "nack", "extend", "release", "seek")),
    ("get", "/subscriptions/{name}/dead-letters"),
    *(("post", f"/subscriptions/{{name}}/dead-letters/{what}") for what in ("replay", "drop")),
}


def test_openapi_has_every_route_and_method(http: Client) -> None:
    document = http.get_json("/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert {(method, path) for path, item in document["paths"].items() for method in item} == ROUTES
    parameters = document["paths"]["/events"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == {
        *("topic", "source", "since", "until", "after", "event_id", "order", "limit", "cursor"),
    }
    of_streams = document["paths"]["/subscribe"]["get"]["parameters"]
    assert {parameter["name"].lower() for parameter in of_streams} == {"topic", "after", "last-event-id"}
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text)):
        assert reference in document["components"]["schemas"]


def test_openapi_is_true_for_real_answers(launch: Launch) -> None:
    server = launch(faults="failing", BODY_BYTES_MAX=5000, EVENT_BYTES_MAX=5000)
    http = server.http
    contract = Contract(http)
    ask = b'{"topic": "a", "event_ids": ["1", "2"]}'

    def publish(status: int, document: Any, prefer: str | None = None, content_type: str = "application/json") -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = {"Content-Type": content_type} | ({} if prefer is None else {"Prefer": prefer})
        response = http.request("POST", "/publish", body=body, headers=headers)
        assert response.status == status
        contract.check(response, "post", "/publish")

    def get(status: int, path: str, **query: Any) -> None:
        response = http.get(path, **query)
        assert response.status == status
        contract.check(response, "get", path)

    def exists(status: int, body: bytes) -> None:
        response = http.request("POST", "/exists", body=body)
        assert response.status == status
        contract.check(response, "post", "/exists")

    for path in ("/events", "/subscribe", "/stats", "/healthz", "/topics", "/sources", "/conflicts", "/metrics"):
        get(200, path)
    get(410, "/subscribe", after=10**9)
    get(422, "/subscribe", after="newest")
    publish(200, [event("a", "1"), event("a", "1"), event("a", "1", payload=0), event("a", "2", source_seq=1), {}])
    publish(200, [])
    publish(200, [event("a", "1")], "return=minimal")
    publish(202, [event("a", "3")], "respond-async")
    publish(409, event("a", "1", payload=0))
    publish(422, {})
    publish(422, [{}], "return=minimal")
    publish(422, [{}, event("a", "1")], "handling=strict")
    publish(400, b"{")
    publish(413, b" " * 5001)
    publish(415, b"{}", content_type="text/plain")
    for path in ("/events", "/stats", "/healthz", "/topics", "/sources", "/conflicts", "/metrics"):
        get(200, path)
    get(422, "/events", order="x")
    get(410, "/events", after=10**6)
    get(422, "/topics", cursor="x")
    get(422, "/conflicts", limit=0)
    contract.check(http.request("GET", "/events", headers={"Accept": "application/x-ndjson"}), "get", "/events")
    exists(200, ask)
    exists(400, b"{")
    exists(422, b"{}")
    exists(413, b" " * 5001)
    server.fault_file.touch()
    publish(503, [event("a", "4")])
    get(503, "/healthz")
    assert http.events(topic="a")[0]["duplicates"] == 2, "events with every field were among the answers"


def test_openapi_knows_what_an_event_is(http: Client) -> None:
    contract = Contract(http)
    body = contract.document["paths"]["/publish"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-ndjson"}
    schema = body["application/json"]["schema"]
    http.publish([event("openapi", "1", source_seq=1), event("openapi", "1", source_seq=1)])
    for good in (event("a", "1"), [], [event("a", "1", source_seq=3)], http.events(topic="openapi")):
        contract.validate(schema, good)
    for bad in ({}, 1, [1], event("a", "1") | {"id": 2}, [event("a", "1", timestamp=3)], event("a", "1", source=0)):
        with pytest.raises(jsonschema_rs.ValidationError):
            contract.validate(schema, bad)


def test_docs_are_served_without_any_other_host(http: Client) -> None:
    page = http.get("/docs")
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    text = page.data.decode()
    assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE), "an address of another host"
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert any(link.endswith(".js") for link in links) and any(link.endswith(".css") for link in links)
    for link in links:
        resource = http.get(link)
        assert resource.status == 200 and resource.data, link
    assert "/openapi.json" in text


def test_pairs_of_pages_never_overlap(corpus: Corpus) -> None:
    pages = list(corpus.http.pages("/events", order="timestamp", limit=2))
    keys = [[(_time_ns(one["timestamp"]), one["seq"]) for one in page] for page in pages if page]
    assert all(one[-1] < other[0] for one, other in pairwise(keys))


@pytest.mark.parametrize("query", ["after=1&after=0", "topic=a&topic=b", "limit=1&after=0&limit=2"])
def test_a_parameter_given_twice_is_refused(http: Client, query: str) -> None:
    answer = http.request("GET", f"/events?{query}")
    assert answer.status == 422 and "given more than once" in answer.json()["detail"]
