"""An event is stored once, whatever is sent, and the publisher is told what became of each item."""

import json
from collections import Counter
from typing import Any

import pytest

from e2e.conftest import Launch
from e2e.server import Client, event, in_parallel, verify


def test_same_event_twice_is_processed_once(http: Client) -> None:
    topic = "twice/requests"
    first = http.publish(event(topic, "a"))
    again = http.publish(event(topic, "a"))
    assert (first.status, again.status) == (200, 200)
    assert first.json()["results"] == [{"outcome": "stored", "seq": first.seqs[0]}]
    assert again.json() == {
        "received": 1,
        "stored": 0,
        "duplicate": 1,
        "conflict": 0,
        "invalid": 0,
        "results": [{"outcome": "duplicate", "seq": first.seqs[0]}],
    }
    [stored] = http.events(topic=topic)
    assert (stored["event_id"], stored["seq"], stored["duplicates"]) == ("a", first.seqs[0], 1)


def test_same_event_twice_in_one_batch_is_processed_once(http: Client) -> None:
    topic = "twice/batch"
    answer = http.publish([event(topic, "a"), event(topic, "b"), event(topic, "a")])
    assert answer.outcomes == ["stored", "stored", "duplicate"]
    assert answer.seqs[2] == answer.seqs[0]
    assert [stored["event_id"] for stored in http.events(topic=topic)] == ["a", "b"]


def test_same_id_in_another_topic_is_another_event(http: Client) -> None:
    topics = ["identity/one", "identity/two", "identity/One"]
    assert http.publish([event(topic, "same") for topic in topics]).outcomes == ["stored"] * 3


@pytest.mark.parametrize("one", ["a", "A", " a", "a ", "é", "0a"])
def test_ids_are_compared_byte_for_byte(http: Client, one: str) -> None:
    assert http.publish(event("identity/bytes", one)).outcomes == ["stored"]
    assert http.publish(event("identity/bytes", one)).outcomes == ["duplicate"]


@pytest.mark.parametrize(
    "change",
    [{"payload": {"n": 2}}, {"payload": None}, {"payload": "1"}, {"source": "other"}, {"source": ""}],
    ids=["payload", "null", "type", "source", "no source"],
)
def test_same_identity_with_other_content_is_a_conflict(
    http: Client, request: pytest.FixtureRequest, change: dict[str, Any]
) -> None:
    topic = f"conflict/{request.node.callspec.id.replace(' ', '-')}"
    seq = http.publish(event(topic, "a")).seqs[0]
    answer = http.publish([event(topic, "a", **change)])
    assert answer.status == 200 and answer.json()["conflict"] == 1
    assert answer.json()["results"] == [{"outcome": "conflict", "seq": seq}]
    single = http.publish(event(topic, "a", **change))
    assert single.status == 409
    assert single.json()["results"] == [{"outcome": "conflict", "seq": seq}] and single.json()["conflict"] == 1
    assert single.headers["Content-Type"] == "application/problem+json"
    [stored] = http.events(topic=topic)
    assert (stored["payload"], stored["source"]) == ({"n": 1}, "test"), "the first stays"
    [variant] = [line for line in http.get_json("/conflicts") if line["topic"] == topic]
    expected = event(topic, "a", **change)
    assert (variant["payload"], variant["source"], variant["count"]) == (expected["payload"], expected["source"], 2)
    assert (variant["event_id"], variant["seq"]) == ("a", seq)


def _with_payload(topic: str, event_id: str, payload: str) -> bytes:
    head = json.dumps(event(topic, event_id, payload=0))
    return head.replace('"payload": 0', f'"payload": {payload}').encode()


SAME_VALUES = [
    ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}'),
    ('{"a": {"x": 1, "y": 2}}', '{ "a" : { "y" : 2 ,\n "x" : 1 } }'),
    ("1", "1.0"),
    ("1", "1e0"),
    ("100", "1E+2"),
    ("0.5", "5e-1"),
    ("0", "-0.0"),
    ("[10, 0.10]", "[1e1,1e-1]"),
    ('"\\u00e9"', '"é"'),
    ('"\\/"', '"/"'),
    ('{"a": 1, "a": 2}', '{"a": 2}'),
]


@pytest.mark.parametrize(("one", "other"), SAME_VALUES)
def test_payloads_that_are_the_same_json_value_are_the_same(
    http: Client, request: pytest.FixtureRequest, one: str, other: str
) -> None:
    number = SAME_VALUES.index((one, other))
    assert http.publish(_with_payload("equal", f"{number}", one)).outcomes == ["stored"]
    assert http.publish(_with_payload("equal", f"{number}", other)).outcomes == ["duplicate"]


OTHER_VALUES = [
    ("1", '"1"'),
    ("1", "true"),
    ("0", "null"),
    ("[1, 2]", "[2, 1]"),
    ("{}", "[]"),
    ('{"a": null}', "{}"),
    ('"a"', '"A"'),
    # Neighbours that binary64 cannot tell apart: numbers are kept as sent, so these are two values.
    ("9007199254740992", "9007199254740993"),
    ("0.1", "0.1000000000000000055511151231257827"),
    ('"\\u00e9"', '"e\\u0301"'),
]


@pytest.mark.parametrize(("one", "other"), OTHER_VALUES)
def test_payloads_that_are_other_json_values_are_in_conflict(http: Client, one: str, other: str) -> None:
    number = OTHER_VALUES.index((one, other))
    assert http.publish(_with_payload("unequal", f"{number}", one)).outcomes == ["stored"]
    assert http.publish(_with_payload("unequal", f"{number}", other)).outcomes == ["conflict"]


def test_timestamp_and_source_seq_are_not_content(http: Client) -> None:
    topic = "stamped/anew"
    first = event(topic, "a", timestamp="2026-01-01T00:00:00Z", source_seq=1)
    assert http.publish(first).outcomes == ["stored"]
    again = event(topic, "a", timestamp="2026-01-01T00:00:01.5+01:00", source_seq=2)
    assert http.publish(again).outcomes == ["duplicate"]
    [stored] = http.events(topic=topic)
    assert (stored["timestamp"], stored["source_seq"]) == ("2026-01-01T00:00:00Z", 1)


def test_conflict_in_one_batch_and_again_after_a_restart(launch: Launch) -> None:
    """Seen working, item 3: b-1, b-2, b-2 with another payload, in topic alpha."""
    server = launch()
    batch = [event("alpha", "b-1"), event("alpha", "b-2"), event("alpha", "b-2", payload={"n": 2})]
    answer = server.http.publish(batch)
    assert answer.status == 200 and answer.outcomes == ["stored", "stored", "conflict"]
    assert answer.seqs == [1, 2, 2]
    assert [stored["event_id"] for stored in server.http.events(topic="alpha")] == ["b-1", "b-2"]
    [before] = server.http.get_json("/conflicts")
    assert (before["event_id"], before["payload"], before["count"]) == ("b-2", {"n": 2}, 1)

    server.restart()
    answer = server.http.publish(batch)
    assert answer.status == 200 and answer.outcomes == ["duplicate", "duplicate", "conflict"]
    assert answer.seqs == [1, 2, 2]
    stored = server.http.events(topic="alpha")
    assert [(one["event_id"], one["duplicates"], one["payload"]) for one in stored] == [
        ("b-1", 1, {"n": 1}),
        ("b-2", 1, {"n": 1}),
    ]
    [variant] = server.http.get_json("/conflicts")
    assert (variant["payload"], variant["count"], variant["seq"]) == ({"n": 2}, 2, 2)
    assert variant["first_at"] == before["first_at"] and variant["last_at"] >= before["last_at"]
    assert server.terminate() == 0
    verify(server.db_path)


def test_each_variant_is_kept_once_and_counted(http: Client) -> None:
    topic = "variants"
    seq = http.publish(event(topic, "a")).seqs[0]
    variants: list[dict[str, Any]] = [
        {"payload": {"n": 2}},
        {"payload": {"n": 2.0}},
        {"payload": {"n": 3}},
        {"source": "other"},
    ]
    assert http.publish([event(topic, "a", **variant) for variant in variants]).outcomes == ["conflict"] * 4
    kept = [line for line in http.get_json("/conflicts") if line["topic"] == topic]
    assert [(line["payload"], line["source"], line["count"]) for line in kept] == [
        ({"n": 2}, "test", 2),
        ({"n": 3}, "test", 1),
        ({"n": 1}, "other", 1),
    ]
    assert {line["seq"] for line in kept} == {seq}


def test_retry_storm_stores_one_row_each_and_the_verdicts_add_up(launch: Launch) -> None:
    """One batch from many senders at once, in different order: dedup under concurrency, with several workers."""
    server = launch(CONSUMER_WORKERS=4)
    senders, size = 16, 500
    batch = [event(f"storm/{number % 3}", f"e-{number}") for number in range(size)]
    outcomes: list[list[str]] = [[] for _ in range(senders)]

    def send(sender: int) -> None:
        turned = batch[sender * 31 :] + batch[: sender * 31]
        for start in range(0, size, 100):
            answer = server.http.publish(turned[start : start + 100])
            assert answer.status == 200
            outcomes[sender] += answer.outcomes

    in_parallel(senders, send)
    assert Counter(outcome for sender in outcomes for outcome in sender) == {
        "stored": size,
        "duplicate": (senders - 1) * size,
    }
    assert sum("stored" in sender for sender in outcomes) > 1, "the senders did not overlap"
    events = [one for page in server.http.pages("/events", limit=200) for one in page]
    assert sorted(one["event_id"] for one in events) == sorted(one["event_id"] for one in batch)
    assert [one["seq"] for one in events] == list(range(1, size + 1))
    assert {one["duplicates"] for one in events} == {senders - 1}
    stats = server.http.stats()
    assert (stats["received"], stats["duplicate_dropped"]) == (senders * size, (senders - 1) * size)
    assert server.terminate() == 0
    verify(server.db_path)


def test_order_of_a_request_and_of_requests_is_kept(http: Client) -> None:
    topic = "order"
    first = http.publish([event(topic, f"{number}") for number in (3, 1, 2)])
    second = http.publish([event(topic, f"{number}") for number in (9, 8)])
    assert first.seqs == sorted(first.seqs) and max(first.seqs) < min(second.seqs)
    assert [one["event_id"] for one in http.events(topic=topic)] == ["3", "1", "2", "9", "8"]


def test_exists_names_what_is_missing_in_the_order_asked(http: Client) -> None:
    http.publish([event("resume", "a"), event("resume", "c"), event("elsewhere", "b")])
    ask = {"topic": "resume", "event_ids": ["d", "c", "b", "a", "d", "C"]}
    answer = http.request("POST", "/exists", body=json.dumps(ask).encode())
    assert answer.status == 200 and answer.json() == {"missing": ["d", "b", "d", "C"]}
    nothing = http.request("POST", "/exists", body=b'{"topic": "never/seen", "event_ids": ["a"]}')
    assert nothing.json() == {"missing": ["a"]}
    assert http.request("POST", "/exists", body=b'{"topic": "resume", "event_ids": []}').json() == {"missing": []}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b'{"topic": "resume", "event_ids": ["a"], "also": 1}', 422),
        (b'{"topic": "resume"}', 422),
        (b'{"topic": "re sume", "event_ids": []}', 422),
        (b'{"topic": "resume", "event_ids": [1]}', 422),
        (b'{"topic": "resume", "event_ids": [%b"a"]}' % (b'"a",' * 10_000), 413),
    ],
)
def test_exists_refuses_what_is_no_question(http: Client, body: bytes, status: int) -> None:
    answer = http.request("POST", "/exists", body=body)
    assert answer.status == status and answer.json()["status"] == status
    assert answer.headers["Content-Type"] == "application/problem+json"
