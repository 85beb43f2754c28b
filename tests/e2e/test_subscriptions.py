"""Durable subscriptions over real sockets: every route, what it answers, and who gets which event when."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Launch
from e2e.openapi import Contract
from e2e.server import Client, RawConnection, Response, ServerProcess, event, wait_until
from sekali.keyfile import KeyFile

BOOTSTRAP = "boot." + "b" * 43
NOW = datetime.now(UTC)
ROUTES = {  # by method and what follows the name, with a body that is good
    "GET": ("get", "", None),
    "PUT": ("put", "", {"topic": "shop/a"}),
    "pull": ("post", "/pull", {}),
    "ack": ("post", "/ack", {"lease": "x", "seqs": []}),
    "nack": ("post", "/nack", {"lease": "x", "seqs": []}),
    "extend": ("post", "/extend", {"lease": "x"}),
    "seek": ("post", "/seek", {"seq": 1}),
    "dead letters": ("get", "/dead-letters", None),
    "replay": ("post", "/dead-letters/replay", {"all": True}),
    "drop": ("post", "/dead-letters/drop", {"all": True}),
    "DELETE": ("delete", "", None),
}


@pytest.fixture(scope="module")
def contract(server: ServerProcess) -> Contract:
    return Contract(server.http)


class Subscription:
    """A subscription as a consumer has it; each answer is held against the OpenAPI document."""

    def __init__(self, http: Client, contract: Contract, name: str) -> None:
        self.http = http
        self.name = name
        self._contract = contract

    def send(self, method: str, rest: str = "", document: Any = None, **params: object) -> Response:
        body = None if document is None else json.dumps(document).encode()
        answer = self.http.request(
            method.upper(), f"/subscriptions/{self.name}{rest}", body=body, params=params or None
        )
        self._contract.check(answer, method, f"/subscriptions/{{name}}{rest}")
        return answer

    def put(self, **definition: Any) -> Response:
        return self.send("put", "", {"topic": f"{self.name}/**", "start": "earliest"} | definition)

    def post(self, rest: str, **document: Any) -> Any:
        answer = self.send("post", rest, document)
        assert answer.status == 200, answer
        return answer.json()

    def pull(self, **ask: Any) -> Any:
        return self.post("/pull", **ask)

    def figures(self) -> Any:
        answer = self.send("get")
        assert answer.status == 200, answer
        return answer.json()

    def publish(self, *topics: str) -> list[int]:
        """Publish an event in each of these topics below the name; return their seqs."""
        made = [event(f"{self.name}/{topic}", f"{number}-{datetime.now(UTC)}") for number, topic in enumerate(topics)]
        answer = self.http.publish(made)
        assert answer.outcomes == ["stored"] * len(topics), answer
        return [int(seq) for seq in answer.seqs]


@pytest.fixture
def one(request: pytest.FixtureRequest, http: Client, contract: Contract) -> Subscription:
    """A subscription of the test's own, with its topics, which is not made yet."""
    name = request.node.name.replace("[", ":").replace("]", "").replace("/", "-").replace(" ", "_")
    return Subscription(http, contract, name)


def seqs(delivered: Any) -> list[int]:
    return [one["seq"] for one in delivered["events"]]


def attempts(delivered: Any) -> list[tuple[int, int]]:
    return [(one["seq"], one["attempt"]) for one in delivered["events"]]


def problem(answer: Response, status: int, slug: str) -> Any:
    assert answer.status == status, answer
    document = answer.json()
    assert document["type"] == f"urn:sekali:problem:{slug}", document
    return document


# What a subscription is.


def test_one_is_made_shown_changed_and_deleted(one: Subscription) -> None:
    made = one.put(lease_seconds=5, max_attempts=3)
    assert made.status == 201
    document = made.json()
    assert document.pop("created_at")
    assert document == {
        "name": one.name,
        "topic": f"{one.name}/**",
        "start": "earliest",
        "delivery": "pull",
        "order": "topic",
        "max_attempts": 3,
        "lease_seconds": 5.0,
        "paused": False,
        "paused_reason": None,
        "paused_at": None,
    }
    assert one.put(lease_seconds=5, max_attempts=3).status == 200
    changed = one.put(max_attempts=4)
    assert changed.status == 200 and (changed.json()["max_attempts"], changed.json()["lease_seconds"]) == (4, 30)
    detail = problem(one.put(topic="x/*", order="none"), 409, "subscription-differs")["detail"]
    assert "another topic, order" in detail and "delete it first" in detail
    shown = one.figures()
    assert shown["max_attempts"] == 4 and shown["lag"] == 0 and shown["oldest_unacknowledged_seconds"] is None
    assert one.send("delete").status == 204
    for method, rest, body in ROUTES.values():
        if method != "put":
            problem(one.send(method, rest, body), 404, "not-found")
    assert one.put().status == 201


@pytest.mark.parametrize("name", ["a%2Fb", "a%20b", ".", "..", "n" * 256, "caf%C3%A9"])
def test_a_name_is_as_a_topic_of_one_segment(http: Client, name: str) -> None:
    answer = http.request("PUT", f"/subscriptions/{name}", body=b'{"topic": "a"}')
    if name in {".", ".."} or "%2F" in name:
        assert answer.status in {404, 405, 422}, answer
    else:
        assert "at most 255 letters" in problem(answer, 422, "invalid-query")["detail"]


@pytest.mark.parametrize(
    ("rest", "document", "pointer", "detail"),
    [
        ("", {}, "#/topic", "missing required field `topic`"),
        ("", {"topic": 1}, "#/topic", "Expected `str`, got `int`"),
        ("", {"topic": "a//b"}, "topic", ""),
        ("", {"topic": "a", "x": 1}, "#/x", "unknown field `x`"),
        ("", {"topic": "a", "delivery": "fax"}, "#/delivery", "Invalid enum value 'fax'"),
        ("", {"topic": "a", "order": "any"}, "#/order", "Invalid enum value 'any'"),
        ("", {"topic": "a", "start": "now"}, "#/start", "Invalid enum value 'now'"),
        ("", {"topic": "a", "start": {}}, "start", "give one of seq and time"),
        ("", {"topic": "a", "start": {"time": "noon"}}, "time", ""),
        ("", {"topic": "a", "start": {"seq": 0}}, "#/start/seq", ">= 1"),
        ("", {"topic": "a", "max_attempts": 0}, "#/max_attempts", ">= 1"),
        ("", {"topic": "a", "max_attempts": 1001}, "#/max_attempts", "<= 1000"),
        ("", {"topic": "a", "lease_seconds": 0.01}, "#/lease_seconds", ">= 0.1"),
        ("", {"topic": "a", "lease_seconds": 43201}, "#/lease_seconds", "<= 43200"),
        ("", {"topic": "a", "paused": "no"}, "#/paused", "Expected `bool`"),
        ("", {"topic": "a", "url": "https://example.com"}, "url", "is for delivery by push"),
        ("", {"topic": "a", "delivery": "push"}, "url", "is missing"),
        ("/pull", {"max": 0}, "#/max", ">= 1"),
        ("/pull", {"max": 1001}, "#/max", "<= 1000"),
        ("/pull", {"wait": -1}, "#/wait", ">= 0"),
        ("/pull", {"wait": 31}, "#/wait", "<= 30"),
        ("/pull", {"topics": 101}, "#/topics", "<= 100"),
        ("/pull", {"lease_seconds": 0}, "#/lease_seconds", ">= 0.1"),
        ("/pull", {"count": 1}, "#/count", "unknown field `count`"),
        ("/pull", [], "#", "Expected `object`, got `array`"),
        ("/ack", {"seqs": [1]}, "#/lease", "missing required field `lease`"),
        ("/ack", {"lease": "x"}, "#/seqs", "missing required field `seqs`"),
        ("/ack", {"lease": "x", "seqs": [0]}, "#/seqs", ">= 1"),
        ("/ack", {"lease": "x", "seqs": [2**63]}, "#/seqs", ""),
        ("/ack", {"lease": "x", "seqs": ["1"]}, "#/seqs", "Expected `int`, got `str`"),
        ("/ack", {"lease": "x", "seqs": [1] * 10_001}, "#/seqs", "<= 10000"),
        ("/nack", {"lease": "x", "seqs": [1], "delay": 86401}, "#/delay", "<= 86400"),
        ("/nack", {"lease": "x", "seqs": [1], "error": "x" * 1001}, "#/error", "<= 1000"),
        ("/extend", {"lease": "x", "lease_seconds": 43201}, "#/lease_seconds", "<= 43200"),
        ("/seek", {}, "seq", "give one of seq and time"),
        ("/seek", {"seq": 1, "time": "2026-01-01T00:00:00Z"}, "seq", "give one of seq and time"),
        ("/seek", {"time": "noon"}, "time", ""),
        ("/dead-letters/replay", {}, "seqs", "give the seqs of some"),
        ("/dead-letters/replay", {"all": True, "seqs": [1]}, "seqs", "give the seqs of some"),
        ("/dead-letters/drop", {"seqs": None}, "seqs", "give the seqs of some"),
    ],
    ids=str,
)
def test_a_wrong_form_is_422_and_names_the_field_and_the_limit(
    http: Client, contract: Contract, rest: str, document: Any, pointer: str, detail: str
) -> None:
    known = Subscription(http, contract, "forms")
    assert known.put().status in {200, 201}
    tried = Subscription(http, contract, "new") if not rest else known
    found = problem(tried.send("post" if rest else "put", rest, document), 422, "invalid-query")
    (place,) = found["errors"]
    assert place.get("pointer", place.get("parameter")) == pointer and detail in place["detail"], found
    assert http.get("/subscriptions/new").status == 404


def test_what_is_no_json_is_400_and_other_media_are_refused(one: Subscription) -> None:
    one.put()
    path = f"/subscriptions/{one.name}/pull"
    for body in (b"{", b"\xff", b'{"max"'):
        assert one.http.request("POST", path, body=body).status == 400
    headers = {"Content-Type": "application/x-ndjson"}
    problem(one.http.request("POST", path, body=b"{}", headers=headers), 415, "unsupported-media")
    assert one.http.request("POST", path).status == 200, "no body is an empty form"
    answer = one.http.request("POST", f"/subscriptions/{one.name}")
    assert answer.status == 405 and answer.headers["Allow"] == "DELETE, GET, PUT"


def test_there_is_room_for_so_many(launch: Launch) -> None:
    http = launch(SUBSCRIPTIONS_MAX=2).http
    statuses = [
        http.request("PUT", f"/subscriptions/{name}", body=b'{"topic": "a"}').status for name in ("a", "b", "a")
    ]
    assert statuses == [201, 201, 200]
    answer = http.request("PUT", "/subscriptions/c", body=b'{"topic": "a"}')
    assert "at most 2 may be (SUBSCRIPTIONS_MAX)" in problem(answer, 409, "too-many-subscriptions")["detail"]
    assert http.request("DELETE", "/subscriptions/a").status == 204
    assert http.request("PUT", "/subscriptions/c", body=b'{"topic": "a"}').status == 201


@pytest.mark.parametrize("start", ["earliest", "latest", "seq", "time"])
def test_where_it_begins(one: Subscription, start: str) -> None:
    (first, second) = one.publish("a", "a")
    (third,) = one.publish("a")
    at = one.http.events(topic=f"{one.name}/a", after=second)[0]["processed_at"]
    place: Any = {"seq": {"seq": second}, "time": {"time": at}}.get(start, start)
    assert one.put(start=place).status == 201
    (fourth,) = one.publish("a")
    expected = {"earliest": [first, second, third, fourth], "latest": [fourth], "seq": [second, third, fourth]}
    assert seqs(one.pull()) == expected.get(start, [third, fourth])


def test_a_start_above_the_head_is_410(one: Subscription) -> None:
    (head,) = one.publish("a")
    assert (
        f"at most {head + 1} can come next" in problem(one.put(start={"seq": head + 2}), 410, "position-gone")["detail"]
    )
    assert one.put(start={"seq": head + 1}).status == 201


# Taking and settling.


def test_events_are_leased_acknowledged_and_gone(one: Subscription) -> None:
    one.put()
    published = one.publish("a", "a", "a")
    assert one.pull(max=2, lease_seconds=50)["events"] != []
    assert one.pull() == {"lease": None, "expires_at": None, "events": []}, "the topic is held"
    shown = one.figures()
    assert (shown["lag"], shown["in_flight"], shown["lag_is_exact"]) == (3, 2, True)
    assert shown["oldest_unacknowledged_seconds"] >= 0
    one.post("/seek", seq=published[0])
    taken = one.pull(max=2)
    whole = one.http.events(topic=f"{one.name}/a")
    assert taken["events"] == [event_out | {"attempt": 1} for event_out in whole[:2]], "as /events has them"
    answer = one.post("/ack", lease=taken["lease"], seqs=[published[0], 10**9])
    assert answer == {"acknowledged": [published[0]], "lost": [10**9]}
    again = one.post("/ack", lease=taken["lease"], seqs=published[:2])
    assert again == {"acknowledged": published[:2], "lost": []}, "one that got no answer can be sent again"
    assert seqs(one.pull()) == published[2:]
    assert one.figures()["since_start"]["acknowledged"] == 2


def test_a_topic_is_with_one_consumer_at_a_time_and_others_go_on(one: Subscription) -> None:
    one.put()
    a1, a2, b1 = one.publish("a", "a", "b")
    first = one.pull(max=1)
    second = one.pull()
    assert (seqs(first), seqs(second)) == ([a1], [b1])
    assert seqs(one.pull()) == []
    one.post("/ack", lease=first["lease"], seqs=[a1])
    assert seqs(one.pull()) == [a2]


def test_one_consumer_may_take_many_topics(one: Subscription) -> None:
    one.put()
    published = one.publish("a", "b", "c")
    assert sorted(seqs(one.pull(topics=2))) == published[:2]
    assert seqs(one.pull(topics=100)) == published[2:]


def test_without_order_everybody_gets_of_one_topic(one: Subscription) -> None:
    one.put(order="none")
    published = one.publish("a", "a", "a")
    taken = [one.pull(max=1) for _ in published]
    assert [seqs(each) for each in taken] == [[seq] for seq in published]
    for each in reversed(taken):
        one.post("/ack", lease=each["lease"], seqs=seqs(each))
    assert one.figures()["lag"] == 0


def test_competing_consumers_share_what_there_is(one: Subscription) -> None:
    one.put()
    published = one.publish(*(f"t{number % 7}" for number in range(100)))
    found: list[tuple[str, int]] = []

    def consume() -> None:
        while (taken := one.pull(max=3))["events"] or one.figures()["lag"]:
            found.extend((each["topic"], each["seq"]) for each in taken["events"])
            if taken["events"]:
                one.post("/ack", lease=taken["lease"], seqs=seqs(taken))

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(consume) for _ in range(4)]:
            each.result()
    assert sorted(seq for _, seq in found) == published
    for topic in {topic for topic, _ in found}:
        mine = [seq for each, seq in found if each == topic]
        assert mine == sorted(mine)


def test_a_lease_that_runs_out_is_given_to_the_next_with_another_attempt(one: Subscription) -> None:
    one.put()
    (seq,) = one.publish("a")
    first = one.pull(lease_seconds=0.1)
    second = one.pull(wait=20)
    assert attempts(first) == [(seq, 1)] and attempts(second) == [(seq, 2)]
    assert one.post("/ack", lease=first["lease"], seqs=[seq]) == {"acknowledged": [], "lost": [seq]}
    assert one.post("/nack", lease=first["lease"], seqs=[seq]) == {"returned": [], "lost": [seq]}
    problem(one.send("post", "/extend", {"lease": first["lease"]}), 410, "lease-gone")
    assert one.figures()["since_start"]["expired"] == 1
    one.post("/ack", lease=second["lease"], seqs=[seq])


def test_a_lease_is_extended_and_shortened(one: Subscription) -> None:
    one.put()
    (seq,) = one.publish("a")
    taken = one.pull(lease_seconds=2)
    longer = one.post("/extend", lease=taken["lease"], lease_seconds=60)
    assert longer["lease"] == taken["lease"] and longer["held"] == [seq]
    assert longer["expires_at"] > taken["expires_at"]
    assert seqs(one.pull(wait=2.2)) == [], "it did not run out"
    one.post("/extend", lease=taken["lease"], lease_seconds=0.1)
    assert attempts(one.pull(wait=20)) == [(seq, 2)]


def test_what_failed_comes_again_after_its_delay_and_other_topics_go_on(one: Subscription) -> None:
    one.put()
    a1, a2, b1 = one.publish("a", "a", "b")
    taken = one.pull()
    assert seqs(taken) == [a1, a2]
    assert one.post("/nack", lease=taken["lease"], seqs=[a1], delay=1.5) == {"returned": [a1], "lost": []}
    other = one.pull()
    assert attempts(other) == [(b1, 1)], "the topic waits for what waits"
    assert one.figures()["waiting"] == 2
    later = one.pull(wait=20)
    assert attempts(later) == [(a1, 2), (a2, 1)], "what follows it went back too, and that was no attempt"


def test_what_always_fails_is_a_dead_letter(one: Subscription) -> None:
    one.put(max_attempts=2)
    first, second = one.publish("a", "a")
    for attempt, error in ((1, "no"), (2, "still not")):
        taken = one.pull(max=1)
        assert attempts(taken) == [(first, attempt)]
        one.post("/nack", lease=taken["lease"], seqs=[first], error=error)
    (dead,) = one.send("get", "/dead-letters").json()
    assert dead.pop("at")
    assert dead == {"seq": first, "topic": f"{one.name}/a", "attempts": 2, "error": "still not"}
    assert attempts(one.pull()) == [(second, 1)]
    assert one.figures()["dead_letters"] == one.figures()["since_start"]["dead"] == 1


def test_dead_letters_are_paged_replayed_and_dropped(one: Subscription) -> None:
    one.put(max_attempts=1)
    published = one.publish(*"aaaaa")
    for seq in published:
        taken = one.pull(max=1)
        one.post("/nack", lease=taken["lease"], seqs=[seq], error=f"no {seq}")
    path = f"/subscriptions/{one.name}/dead-letters"
    pages = list(one.http.pages(path, limit=2))
    assert [[dead["seq"] for dead in page] for page in pages if page] == [published[:2], published[2:4], published[4:]]
    problem(one.send("get", "/dead-letters", None, limit=0), 422, "invalid-query")
    problem(one.send("get", "/dead-letters", None, cursor="x"), 422, "invalid-query")
    assert one.post("/dead-letters/replay", seqs=[published[1], 10**9]) == {"replayed": [published[1]], "more": False}
    taken = one.pull()
    assert attempts(taken) == [(published[1], 1)], "as if it were new"
    one.post("/ack", lease=taken["lease"], seqs=[published[1]])
    assert one.send("post", "/dead-letters/drop", {"seqs": [published[0]]}).status == 204
    assert [dead["seq"] for dead in one.send("get", "/dead-letters").json()] == published[2:]
    assert one.post("/dead-letters/replay", all=True)["replayed"] == published[2:]
    assert one.send("get", "/dead-letters").json() == []
    assert seqs(one.pull()) == published[2:]
    assert one.send("post", "/dead-letters/drop", {"all": True}).status == 204


def test_a_cursor_is_good_for_its_own_list_only(one: Subscription) -> None:
    one.put(max_attempts=1)
    for seq in one.publish("a", "a"):
        one.post("/nack", lease=one.pull(max=1)["lease"], seqs=[seq])
    following = one.http.get(f"/subscriptions/{one.name}/dead-letters", limit=1).next
    assert following is not None
    cursor = following.partition("cursor=")[2].partition("&")[0]
    problem(one.http.get(f"/subscriptions?cursor={cursor}"), 422, "invalid-query")


def test_a_paused_one_gives_nothing_and_takes_acknowledgements(one: Subscription) -> None:
    one.put()
    (seq, _) = one.publish("a", "b")
    taken = one.pull()
    one.put(paused=True)
    assert seqs(one.pull()) == []
    assert one.post("/ack", lease=taken["lease"], seqs=[seq])["acknowledged"] == [seq]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.pull, wait=20)
        one.put(paused=False)
        assert len(waiting.result()["events"]) == 1


def test_seek_replays_and_skips_and_voids_leases(one: Subscription) -> None:
    one.put()
    published = one.publish("a", "a", "a")
    taken = one.pull()
    one.post("/ack", lease=taken["lease"], seqs=published[:2])
    assert one.post("/seek", seq=published[1]) == {"next_seq": published[1]}
    assert one.post("/ack", lease=taken["lease"], seqs=[published[2]])["lost"] == [published[2]]
    taken = one.pull()
    assert attempts(taken) == [(seq, 1) for seq in published[1:]]
    (later,) = one.publish("a")
    at = one.http.events(topic=f"{one.name}/a", after=published[2])[0]["processed_at"]
    assert one.post("/seek", time=at) == {"next_seq": later}
    assert seqs(one.pull()) == [later]
    problem(one.send("post", "/seek", {"seq": later + 10**6}), 410, "position-gone")
    one.post("/seek", time="2261-01-01T00:00:00Z")
    assert one.figures()["lag"] == 0


def test_what_only_push_may_is_refused(one: Subscription) -> None:
    secret = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
    made = one.put(delivery="push", url="https://example.com/hook", secret=secret, paused=True)
    assert made.status == 201 and secret not in made.data.decode() and made.json()["url"] == "https://example.com/hook"
    problem(one.send("post", "/pull", {}), 409, "subscription-differs")
    assert one.send("delete").status == 204


# Who waits.


def test_a_commit_wakes_who_waits(one: Subscription) -> None:
    one.put()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.pull, wait=20)
        (seq,) = one.publish("new/topic")
        assert seqs(waiting.result()) == [seq]


def test_who_leaves_while_waiting_takes_nothing_along(one: Subscription, server: ServerProcess) -> None:
    one.put(lease_seconds=600)
    one.publish("before")
    connections = one.http.metric("sekali_connections")
    with RawConnection(server.port) as leaving:
        body = b'{"wait": 30}'
        head = f"POST /subscriptions/{one.name}/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        leaving.send(head.encode() + body)
        assert b'"attempt":1' in leaving.receive_answer()
        leaving.send(head.encode() + body)  # there is nothing left, so that this one waits
        assert [one.figures()["in_flight"] for _ in range(3)] == [1, 1, 1]  # and its turn has come
        wait_until(lambda: one.http.metric("sekali_connections") > connections, "it has come")
    # Long before its time to wait is over.
    wait_until(lambda: one.http.metric("sekali_connections") <= connections, "it has gone", timeout_s=15)
    (seq,) = one.publish("a")
    assert seqs(one.pull(wait=20)) == [seq]


def test_a_server_that_stops_answers_who_waits(launch: Launch) -> None:
    server = launch()
    waiter = Subscription(server.http, Contract(server.http), "s")
    waiter.put()
    answered: list[Any] = []
    waiting = threading.Thread(target=lambda: answered.append(waiter.pull(wait=30)))
    connections = server.http.metric("sekali_connections")
    waiting.start()
    wait_until(lambda: server.http.metric("sekali_connections") > connections, "it waits")
    assert server.terminate() == 0
    waiting.join()
    assert answered == [{"lease": None, "expires_at": None, "events": []}]


@pytest.mark.parametrize(("faults", "is_settled"), [("failing", False), ("failing-after-commit", True)])
def test_an_acknowledgement_that_failed_is_503_and_what_is_stored_counts(
    launch: Launch, faults: str, is_settled: bool
) -> None:
    server = launch(faults=faults)
    one = Subscription(server.http, Contract(server.http), "s")
    one.put()
    first, second = one.publish("a", "b")
    taken = one.pull(topics=2)
    server.fault_file.touch()
    answer = one.send("post", "/ack", {"lease": taken["lease"], "seqs": [first]})
    assert problem(answer, 503, "unavailable") and answer.headers["Retry-After"]
    for method, rest, body in (ROUTES["seek"], ROUTES["drop"], ROUTES["DELETE"]):
        problem(one.send(method, rest, body), 503, "unavailable")
    server.fault_file.unlink()
    wait_until(lambda: server.http.get("/healthz").status == 200, "it works again")
    again = one.post("/ack", lease=taken["lease"], seqs=[first, second])
    assert again["lost"] == ([second] if is_settled else [first, second]), "the lease is void"
    assert attempts(one.pull(topics=2)) == [(seq, 1) for seq in again["lost"]]


# Who may.


@pytest.fixture
def guarded(tmp_path: Path, launch: Launch) -> Iterator[tuple[ServerProcess, dict[str, Client]]]:
    """A server that asks for keys, and a client for each of some scopes."""
    db_path = tmp_path / "data" / "store.db"
    keys = {
        name: KeyFile(db_path).create(name, scopes, NOW)[1]
        for name, scopes in {
            "shop": ["read:shop/**"],
            "one": ["read:shop/a"],
            "publisher": ["publish:**"],
            "reader": ["read:**"],
        }.items()
    }
    server = launch(db_path=db_path, BOOTSTRAP_KEY=BOOTSTRAP)
    clients = {name: Client(server.url, key=key) for name, key in keys.items()}
    server.http = clients["admin"] = Client(server.url, key=BOOTSTRAP)
    yield server, clients


def test_who_may_not_read_all_of_it_does_not_see_it(guarded: tuple[ServerProcess, dict[str, Client]]) -> None:
    server, clients = guarded
    contract = Contract(server.http)
    assert server.http.publish([event("shop/a", "1"), event("other", "1")]).status == 200
    for name, topic in (("all", "**"), ("shop", "shop/**"), ("a", "shop/a"), ("other", "other")):
        assert Subscription(server.http, contract, name).put(topic=topic).status == 201
    visible = {"one": ["a"], "shop": ["a", "shop"], "reader": ["a", "all", "other", "shop"]}
    for key, names in visible.items():
        listed = clients[key].get("/subscriptions")
        contract.check(listed, "get", "/subscriptions")
        assert [one["name"] for one in listed.json()] == names
        paged = [one["name"] for page in clients[key].pages("/subscriptions", limit=1) for one in page]
        assert paged == names
        for name in ("all", "shop", "a", "other"):
            seen = Subscription(clients[key], contract, name)
            for route, (method, rest, body) in ROUTES.items():
                if route in {"PUT", "DELETE"}:
                    continue
                answer = seen.send(method, rest, body)
                if name not in names:
                    problem(answer, 404, "not-found")
                else:
                    assert answer.status in {200, 204, 410}, (key, name, route, answer)
    stranger = Subscription(Client(server.url), contract, "a")
    for method, rest, body in ROUTES.values():
        problem(stranger.send(method, rest, body), 401, "no-key")
    publisher = Subscription(clients["publisher"], contract, "a")
    for method, rest, body in ROUTES.values():
        document = problem(publisher.send(method, rest, body), 403, "forbidden")
        assert document["missing_scopes"] == ["read:<topic or pattern>"]
    problem(clients["publisher"].get("/subscriptions"), 403, "forbidden")


def test_who_may_make_and_delete_one(guarded: tuple[ServerProcess, dict[str, Client]]) -> None:
    server, clients = guarded
    contract = Contract(server.http)
    mine = Subscription(clients["shop"], contract, "mine")
    assert problem(mine.put(topic="**"), 403, "forbidden")["missing_scopes"] == ["read:**"]
    assert mine.put(topic="shop/*").status == 201
    push = {"delivery": "push", "url": "https://example.com", "secret": "whsec_" + "A" * 40, "paused": True}
    assert problem(Subscription(clients["reader"], contract, "p").put(**push), 403, "forbidden")["missing_scopes"] == [
        "admin"
    ]
    pushed = Subscription(server.http, contract, "p")
    assert pushed.put(topic="shop/a", **push).status == 201
    seen = Subscription(clients["shop"], contract, "p")
    for method, rest, body in (ROUTES["seek"], ROUTES["replay"], ROUTES["drop"], ROUTES["DELETE"]):
        problem(seen.send(method, rest, body), 403, "forbidden")
    assert seen.send("get").status == 200
    problem(Subscription(clients["one"], contract, "mine").send("delete"), 404, "not-found")
    # Whose key does not cover what is there cannot take the name either, nor learn what it is.
    problem(Subscription(clients["one"], contract, "mine").put(topic="shop/a"), 409, "subscription-differs")
    assert mine.send("delete").status == 204


def test_a_key_that_is_revoked_waits_no_longer(guarded: tuple[ServerProcess, dict[str, Client]]) -> None:
    server, _ = guarded
    contract = Contract(server.http)
    assert Subscription(server.http, contract, "s").put(topic="shop/**").status == 201
    key = KeyFile(server.db_path).create("guest", ["read:shop/**"], NOW)[1]
    asking, waiter = Client(server.url, key=key), Client(server.url, key=key)
    wait_until(lambda: asking.get("/subscriptions/s").status == 200, "the new key counts")
    asking.close()
    wait_until(lambda: server.http.metric("sekali_connections") == 1, "its connection is closed")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Subscription(waiter, contract, "s").send, "post", "/pull", {"wait": 25})
        wait_until(lambda: server.http.metric("sekali_connections") == 2, "it waits")
        KeyFile(server.db_path).revoke(key.partition(".")[0])
        problem(waiting.result(), 401, "no-key")


# Figures.


def test_the_figures_are_in_the_list_and_in_the_metrics(one: Subscription, contract: Contract) -> None:
    one.put(max_attempts=1)
    a1, a2, b1 = one.publish("a", "a", "b")
    one.post("/nack", lease=one.pull(max=1)["lease"], seqs=[a1])
    taken = one.pull(max=1)
    assert seqs(taken) == [b1]
    (listed,) = [
        each for page in one.http.pages("/subscriptions", limit=1000) for each in page if each["name"] == one.name
    ]
    assert (listed["lag"], listed["in_flight"], listed["dead_letters"]) == (2, 1, 1)
    assert listed["since_start"] == {
        "delivered": 2,
        "redelivered": 0,
        "acknowledged": 0,
        "returned": 1,
        "expired": 0,
        "dead": 1,
    }
    metrics = one.http.get("/metrics").data.decode().splitlines()
    label = f'{{subscription="{one.name}"}}'
    found = {line.split(label)[0]: float(line.split()[-1]) for line in metrics if label in line}
    oldest = found.pop("sekali_subscription_oldest_unacknowledged_seconds")
    assert oldest > 0
    assert found == {
        "sekali_subscription_lag_events": 2,
        "sekali_subscription_paused": 0,
        "sekali_subscription_in_flight_events": 1,
        "sekali_subscription_waiting_events": 0,
        "sekali_subscription_dead_letters": 1,
        "sekali_subscription_delivered_events_total": 2,
        "sekali_subscription_redelivered_events_total": 0,
        "sekali_subscription_acknowledged_events_total": 0,
        "sekali_subscription_expired_events_total": 0,
        "sekali_subscription_dead_events_total": 1,
    }
    assert one.http.metric("sekali_subscriptions") >= 1
    assert a2 in seqs(one.pull())
