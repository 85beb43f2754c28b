"""Keys, over real sockets: every route with every kind of key; what a key may not read does not exist for it."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from e2e.conftest import Launch
from e2e.openapi import Contract
from e2e.server import NDJSON, Client, RawConnection, Response, ServerProcess, event, ndjson, run_sekali, wait_until
from sekali.keyfile import KeyFile
from sekali.settings import ServerSettings

BOOTSTRAP = "boot." + "b" * 43
ASK = json.dumps({"topic": "shop/a", "event_ids": ["1", "nowhere"]}).encode()


def create(db_path: Path, name: str, *scopes: str) -> str:
    """Make a key and return its text."""
    return KeyFile(db_path).create(name, scopes, datetime.now(UTC))[1]


def revoke(db_path: Path, key: str) -> None:
    KeyFile(db_path).revoke(key.partition(".")[0])


@dataclass
class Guarded:
    """A server that asks for keys, with events in topics of three owners."""

    server: ServerProcess
    keys: dict[str, str]

    def __call__(self, name: str) -> Client:
        """Return a client that shows the key of a name."""
        return Client(self.server.url, key=self.keys[name])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    db_path = tmp_path_factory.mktemp("guarded") / "data" / "store.db"
    keys = {
        "shop": create(db_path, "shop", "publish:shop/**", "read:shop/**"),
        "one topic": create(db_path, "one", "publish:shop/a", "read:shop/a"),
        "publisher": create(db_path, "publisher", "publish:shop/**"),
        "reader": create(db_path, "reader", "read:**"),
        "elsewhere": create(db_path, "elsewhere", "publish:other/**", "read:other/**"),
        "admin": create(db_path, "ops", "admin"),
        "bootstrap": BOOTSTRAP,
    }
    day = timedelta(days=1)
    _, keys["expired"] = KeyFile(db_path).create("old", ["admin"], datetime.now(UTC) - 2 * day, datetime.now(UTC) - day)
    with ServerProcess(db_path, BOOTSTRAP_KEY=BOOTSTRAP) as server:
        server.http = Client(server.url, key=BOOTSTRAP)
        for number in range(4):
            events = [event(topic, f"{number}", source_seq=number) for topic in ("hidden/x", "shop/a", "shop/b", "log")]
            assert server.http.publish(events).status == 200
        server.http.publish([event("hidden/x", "1", payload="other"), event("shop/b", "1", payload="other")])
        server.http.publish([event("hidden/x", "2"), event("shop/a", "2")])
        yield Guarded(server, keys)
        assert server.running, server.log[-20:]
        assert not any(key.partition(".")[2] in str(server.log) for key in keys.values()), "a secret is in the log"


Ask = Callable[[Client], Response]
ROUTES: dict[str, Ask] = {
    "publish": lambda http: http.publish(event("shop/a", "1")),
    "publish ndjson": lambda http: http.publish_ndjson(ndjson([event("shop/a", "1")])),
    "publish async": lambda http: http.publish(event("shop/a", "1"), prefer="respond-async"),
    "events": lambda http: http.get("/events"),
    "events of a topic": lambda http: http.get("/events", topic="shop/a"),
    "events of a pattern": lambda http: http.get("/events", topic="shop/*"),
    "stream": lambda http: http.request("GET", "/events", headers={"Accept": NDJSON}),
    "subscribe": lambda http: http.get("/subscribe"),
    "subscribe to a topic": lambda http: http.get("/subscribe", topic="shop/a"),
    "topics": lambda http: http.get("/topics"),
    "sources": lambda http: http.get("/sources"),
    "sources of a topic": lambda http: http.get("/sources", topic="shop/a"),
    "conflicts": lambda http: http.get("/conflicts"),
    "exists": lambda http: http.request("POST", "/exists", body=ASK),
    "stats": lambda http: http.get("/stats"),
    "metrics": lambda http: http.get("/metrics"),
    "subscriptions": lambda http: http.get("/subscriptions"),
    "nowhere": lambda http: http.get("/nowhere"),
}
PUBLISHING = {name for name in ROUTES if name.startswith("publish")}


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(key.replace(".", ":", 1).encode()).decode()}


class Showing(Client):
    """A client that sends some headers with everything."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        super().__init__(url)
        self._headers = headers


def bad_credentials(keys: dict[str, str]) -> dict[str, dict[str, str]]:
    shop_id, _, shop_secret = keys["shop"].partition(".")
    return {
        "no key": {},
        "empty": {"Authorization": ""},
        "unknown id": bearer(f"nobody.{shop_secret}"),
        "wrong secret": bearer(f"{shop_id}.{'x' * 43}"),
        "secret of another": bearer(f"{shop_id}.{keys['admin'].partition('.')[2]}"),
        "half a secret": bearer(keys["shop"][:-1]),
        "only the id": bearer(shop_id),
        "expired": bearer(keys["expired"]),
        "basic, wrong": basic(keys["shop"] + "x"),
        "basic, no base64": {"Authorization": "Basic %%%"},
        "another scheme": {"Authorization": f"Digest {keys['shop']}"},
        "not ASCII": {"Authorization": "Bearer \xe9.\xe9"},
        "hash of the secret": bearer(f"{shop_id}.{_stored_hash(shop_id)}"),
    }


_hashes: dict[str, str] = {}


def _stored_hash(key_id: str) -> str:
    return _hashes.get(key_id, "0" * 64)


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_good_key_every_route_is_401_and_alike(guarded: Guarded, route: str) -> None:
    _hashes.update({key.id: key.sha256 for key in KeyFile(guarded.server.db_path).read() or []})
    before = guarded.server.http.stats()["received"]
    bodies = set()
    for name, headers in bad_credentials(guarded.keys).items():
        answer = ROUTES[route](Showing(guarded.server.url, headers))
        assert answer.status == 401, (name, answer)
        assert answer.headers["Content-Type"] == "application/problem+json"
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith('Bearer realm="sekali"') and 'Basic realm="sekali"' in challenge
        bodies.add(answer.data)
        document = answer.json()
        assert set(document) == {"type", "title", "status", "detail"} and document["type"].endswith(":no-key")
    assert len(bodies) == 3, "no key; no good one; one that was good"
    assert guarded.server.http.stats()["received"] == before


# By key: which routes it gets, and which are 403 for want of which scope.
ALL = set(ROUTES) - {"nowhere"}
READING = ALL - PUBLISHING - {"metrics"}
ALLOWED: dict[str, set[str]] = {
    "shop": PUBLISHING | READING,
    "one topic": PUBLISHING | READING,
    "publisher": PUBLISHING,
    "reader": READING | {"metrics"},
    "elsewhere": READING - {"events of a topic", "subscribe to a topic", "sources of a topic", "exists"},
    "admin": ALL,
    "bootstrap": ALL,
}
MISSING = {
    "metrics": "read:**",
    "events of a topic": "read:shop/a",
    "subscribe to a topic": "read:shop/a",
    "sources of a topic": "read:shop/a",
    "exists": "read:shop/a",
}


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("show", [bearer, basic])
def test_a_key_gets_what_its_scopes_say_and_403_names_what_is_missing(
    guarded: Guarded, name: str, show: Callable[[str], dict[str, str]]
) -> None:
    http = Showing(guarded.server.url, show(guarded.keys[name]))
    for route, ask in ROUTES.items():
        answer = ask(http)
        if route == "nowhere":
            assert answer.status == 404
        elif route in ALLOWED[name]:
            assert answer.status in {200, 202}, (route, answer)
        else:
            assert answer.status == 403, (route, answer)
            document = answer.json()
            assert document["type"] == "urn:sekali:problem:forbidden"
            if route in PUBLISHING:
                expected = "publish:shop/a" if name == "elsewhere" else "publish:<topic or pattern>"
            else:
                expected = MISSING[route] if name not in {"publisher"} else "read:<topic or pattern>"
                expected = "read:**" if route == "metrics" else expected
            assert document["missing_scopes"] == [expected] and expected in document["detail"], (route, document)


def test_a_refusal_comes_before_the_body(guarded: Guarded) -> None:
    """Nobody is asked to send what is not wanted, and nothing of it is kept."""
    for key, status in ((None, b"401"), (guarded.keys["reader"], b"403")):
        for expect in ("", "Expect: 100-continue\r\n"):
            authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
            for path in ("/publish", "/exists") if key is None else ("/publish",):
                with RawConnection(guarded.server.port) as connection:
                    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{expect}{authorization}Content-Length: 9000000\r\n\r\n"
                    connection.send(head.encode())
                    assert connection.receive_answer().startswith(b"HTTP/1.1 " + status)


def test_health_is_open_and_without_a_key_bare(guarded: Guarded) -> None:
    assert Client(guarded.server.url).get_json("/healthz") == {"ok": True}
    assert Client(guarded.server.url, key=guarded.keys["expired"]).get_json("/healthz") == {"ok": True}
    for name in ("publisher", "admin"):
        assert set(guarded(name).get_json("/healthz")) == {"ok", "uptime_seconds"}


def test_health_gives_no_reason_to_strangers(launch: Launch) -> None:
    server = launch(faults="failing", BOOTSTRAP_KEY=BOOTSTRAP)
    known, stranger = Client(server.url, key=BOOTSTRAP), Client(server.url)
    server.fault_file.touch()
    assert known.publish(event("a", "1")).status == 503
    wait_until(lambda: known.get("/healthz").status == 503, "it is not healthy")
    assert "injected" in known.get("/healthz").json()["detail"]
    answer = stranger.get("/healthz")
    assert answer.status == 503 and answer.json()["ok"] is False and "injected" not in answer.data.decode()


def test_the_documentation_is_open(guarded: Guarded) -> None:
    http = Client(guarded.server.url)
    assert http.get("/docs").status == 200 and http.get("/openapi.json").status == 200
    assert http.get("/docs/static/swagger-ui.css").status == 200


def test_the_openapi_document_is_true_of_answers_to_every_key(guarded: Guarded) -> None:
    contract = Contract(Client(guarded.server.url))
    assert set(contract.document["components"]["securitySchemes"]) == {"bearer", "basic"}
    paths = {"publish": "/publish", "exists": "/exists", "stream": "/events"}
    clients = [Client(guarded.server.url), *map(guarded, ALLOWED)]
    statuses = set()
    for http in clients:
        contract.check(http.get("/healthz"), "get", "/healthz")
        for route, ask in ROUTES.items():
            if route != "nowhere":
                path = paths.get(route) or "/" + route.partition(" ")[0]
                answer = ask(http)
                contract.check(answer, "post" if path in {"/publish", "/exists"} else "get", path)
                statuses.add(answer.status)
    assert statuses == {200, 202, 401, 403}


# What may not be read does not exist.


def topics_of(http: Client) -> list[str]:
    return [line["topic"] for line in http.get_json("/topics")]


def test_only_what_may_be_read_is_there(guarded: Guarded) -> None:
    http, admin = guarded("shop"), guarded.server.http
    mine = [one for one in admin.events() if one["topic"].startswith("shop/")]
    assert 0 < len(mine) < len(admin.events())
    assert http.events() == mine
    for params in ({"order": "-timestamp"}, {"topic": "**"}, {"topic": "*/a"}, {"source": "test"}, {"after": 5}):
        hidden = [one for one in admin.events(**params) if not one["topic"].startswith("shop/")]
        assert http.events(**params) == [one for one in admin.events(**params) if one not in hidden], params
    assert http.events(topic="hidden/*") == http.events(topic="nothing/*") == []
    for limit in (1, 3):
        pages = list(http.pages("/events", limit=limit))
        assert [one for page in pages for one in page] == mine
    assert [json.loads(line) for line in http.export().splitlines()] == mine
    assert topics_of(http) == ["shop/a", "shop/b"]
    assert [line["topic"] for page in http.pages("/topics", limit=1) for line in page] == ["shop/a", "shop/b"]
    assert [(one["topic"], one["event_id"]) for one in http.get_json("/conflicts")] == [("shop/b", "1")]
    assert [one["topic"] for page in http.pages("/conflicts", limit=1) for one in page] == ["shop/b"]
    numbered = [one for one in admin.get_json("/sources") if one["topic"].startswith("shop/")]
    assert http.get_json("/sources") == numbered and 0 < len(numbered) < len(admin.get_json("/sources"))
    assert [one for page in http.pages("/sources", limit=1) for one in page] == numbered
    assert http.get_json("/sources", topic="hidden/*") == []
    assert topics_of(guarded("one topic")) == ["shop/a"]
    assert topics_of(guarded("reader")) == topics_of(admin)


def test_the_figures_are_those_of_what_may_be_read(guarded: Guarded) -> None:
    figures = guarded("shop").stats()
    topics = guarded("shop").get_json("/topics")
    log_id = guarded.server.http.stats()["log_id"]
    stored, duplicate, conflict = (sum(line[name] for line in topics) for name in ("stored", "duplicates", "conflicts"))
    assert stored and duplicate and conflict
    assert figures == {
        "unique_processed": stored,
        "topics": ["shop/a", "shop/b"],
        "topics_count": 2,
        "log_id": log_id,
        "lifetime": {
            "received": stored + duplicate + conflict,
            "stored": stored,
            "duplicate": duplicate,
            "conflict": conflict,
        },
    }
    assert guarded("elsewhere").stats()["lifetime"] == dict.fromkeys(("received", "stored", "duplicate", "conflict"), 0)
    assert {"received", "db_path", "queue_depth", *figures} < set(guarded("reader").stats())


def test_a_topic_that_is_hidden_and_one_that_is_not_there_are_answered_alike(guarded: Guarded) -> None:
    http = guarded("shop")

    def asked(topic: str) -> list[Any]:
        answers = [
            http.get("/events", topic=topic),
            http.get("/events", topic=topic, event_id="1"),
            http.get("/events", topic=topic, after=10**15),
            http.get("/events", topic=topic, cursor="x"),
            http.request("GET", "/events", params={"topic": topic}, headers={"Accept": NDJSON}),
            http.get("/subscribe", topic=topic),
            http.get("/subscribe", topic=topic, after=10**15),
            http.request("POST", "/exists", body=json.dumps({"topic": topic, "event_ids": ["1"]}).encode()),
            http.publish(event(topic, "1")),
            http.publish([event(topic, "1"), event(topic, "never")]),
            http.publish(event(topic, "1", payload="a conflict if it were looked up")),
            http.publish([event("shop/a", "0"), event(topic, "1")]),
        ]
        assert [answer.status for answer in answers] == [403] * 11 + [200]
        return [(answer.status, answer.data.decode().replace(topic, "TOPIC")) for answer in answers]

    before = guarded.server.http.topic("hidden/x")
    assert asked("hidden/x") == asked("never/x")
    assert guarded.server.http.topic("hidden/x") == before, "nothing was counted as a duplicate or a conflict"


def test_positions_tell_nothing_of_what_is_hidden(guarded: Guarded) -> None:
    """The head that a reader sees, and above which a position is refused, is that of what it may read."""
    http, admin = guarded("one topic"), guarded.server.http
    own_head = max(one["seq"] for one in http.events())
    assert admin.events(order="-seq", limit=1)[0]["seq"] > own_head
    assert http.get("/events", after=own_head).json() == []
    for path in ("/events", "/subscribe"):
        refused = http.get(path, after=own_head + 1)
        assert refused.status == 410 and f"newest event, {own_head}," in refused.json()["detail"]
    link = http.get("/events", limit=1).next
    assert link is not None
    token = link.partition("cursor=")[2]
    cursor = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    assert own_head in cursor and admin.events(order="-seq", limit=1)[0]["seq"] not in cursor


def test_a_cursor_of_another_key_shows_no_more(guarded: Guarded) -> None:
    link = guarded.server.http.get("/events", limit=1).next
    assert link is not None
    answer = guarded("shop").get(link)
    if answer.status == 200:
        assert all(one["topic"].startswith("shop/") for one in answer.json())
    else:
        assert answer.status == 410


# Publishing.


def test_what_a_key_may_not_publish_is_invalid_and_its_neighbours_are_stored(guarded: Guarded) -> None:
    http = guarded("one topic")
    sent = [event("shop/b", "n1"), event("shop/a", "n1"), {"no": "event"}, event("log", "n1"), event("shop/a", "n1")]
    for prefer in (None, "return=minimal"):
        answer = http.publish(sent, prefer=prefer)
        document = answer.json()
        assert answer.status == 200 and (document["invalid"], document["received"]) == (3, 2)
    results = http.publish(sent).json()["results"]
    assert [result["outcome"] for result in results] == ["invalid", "duplicate", "invalid", "invalid", "duplicate"]
    assert "publish:shop/b" in results[0]["error"] and "publish:log" in results[3]["error"]
    assert "seq" not in results[0], "whether it is stored is not told"
    assert [one["topic"] for one in guarded.server.http.events() if one["event_id"] == "n1"] == ["shop/a"]


def test_ndjson_and_async_are_held_to_the_same(guarded: Guarded) -> None:
    http = guarded("one topic")
    body = ndjson([event("log", "n2")]) + b"nonsense\n" + ndjson([event("shop/a", "n2")])
    assert http.publish_ndjson(body).outcomes == ["invalid", "invalid", "stored"]
    answer = http.publish([event("log", "n3"), event("shop/a", "n3")], prefer="respond-async")
    assert answer.status == 202 and answer.json() == {"received": 1, "accepted": 1, "invalid": 1}
    wait_until(lambda: http.events(topic="shop/a", event_id="n3") != [], "it is committed")
    stored = {(one["topic"], one["event_id"]) for one in guarded.server.http.events()}
    assert not {("log", "n2"), ("log", "n3")} & stored


@pytest.mark.parametrize("prefer", [None, "return=minimal", "handling=strict", "respond-async"])
def test_nothing_that_may_be_published_is_403(guarded: Guarded, prefer: str | None) -> None:
    http = guarded("one topic")
    for sent, missing, invalid in (
        (event("log", "n4"), ["publish:log"], 1),
        ([event("log", "n4"), event("shop/b", "n4"), event("log", "n5")], ["publish:log", "publish:shop/b"], 3),
        ([event("log", "n4"), {"no": "event"}], ["publish:log"], 2),
    ):
        answer = http.publish(sent, prefer=prefer)
        document = answer.json()
        assert answer.status == 403 and document["type"] == "urn:sekali:problem:forbidden", answer
        assert document["missing_scopes"] == missing and missing[0] in document["detail"]
        assert (document["invalid"], document["received"]) == (invalid, 0)
        assert document["errors"][0]["pointer"].endswith("/topic")
        if prefer == "return=minimal":
            assert "results" not in document
        else:
            assert {result["outcome"] for result in document["results"]} == {"invalid"}


def test_a_strict_request_with_one_topic_too_many_is_403_and_nothing_is_stored(guarded: Guarded) -> None:
    http = guarded("one topic")
    answer = http.publish([event("shop/a", "strict"), event("log", "strict")], prefer="handling=strict")
    assert answer.status == 403 and answer.json()["missing_scopes"] == ["publish:log"]
    assert http.events(topic="shop/a", event_id="strict") == []
    assert http.publish([event("shop/a", "strict"), {}], prefer="handling=strict").status == 422


def test_a_publisher_gets_its_verdicts_and_reads_nothing(guarded: Guarded) -> None:
    http = guarded("publisher")
    first = http.publish([event("shop/v", "1")]).json()["results"][0]
    again = http.publish([event("shop/v", "1"), event("shop/v", "1", payload="x")]).json()["results"]
    assert first["outcome"] == "stored"
    assert again == [{"outcome": "duplicate", "seq": first["seq"]}, {"outcome": "conflict", "seq": first["seq"]}]
    assert http.get("/events", topic="shop/v").status == 403
    assert http.publish([]).status == 200


# Keys come and go while the server runs.


def test_a_key_counts_within_a_moment_and_a_revoked_one_does_not(guarded: Guarded) -> None:
    db_path = guarded.server.db_path
    key = create(db_path, "guest", "read:shop/**", "publish:shop/**")
    http = Client(guarded.server.url, key=key)
    wait_until(lambda: http.get("/events").status == 200, "the new key counts")
    keep_alive = RawConnection(guarded.server.port)
    request = f"GET /stats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    keep_alive.send(request)
    assert keep_alive.receive_answer().startswith(b"HTTP/1.1 200")
    revoke(db_path, key)
    wait_until(lambda: http.get("/events").status == 401, "the revoked key does not")
    for route, ask in ROUTES.items():
        assert ask(http).status == 401, route
    with keep_alive:
        try:
            keep_alive.send(request)
            answer = keep_alive.receive_answer()
        except (OSError, AssertionError):  # it was idle for so long that it was closed
            pass
        else:
            assert answer.startswith(b"HTTP/1.1 401"), "a connection remembers no key"


def test_one_key_follows_another_without_a_gap(guarded: Guarded) -> None:
    db_path = guarded.server.db_path

    def made(*arguments: str) -> str:
        result = run_sekali("keys", "create", "--name", "rotated", *arguments, "--db-path", db_path)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    old, new = made("--scope", "read:shop/**"), made()
    third = run_sekali("keys", "create", "--name", "rotated", "--db-path", db_path)
    assert third.returncode == 1 and "2 live keys" in third.stderr and not third.stdout
    wait_until(lambda: Client(guarded.server.url, key=new).get("/events").status == 200, "the second counts")
    assert Client(guarded.server.url, key=old).get("/events").status == 200
    assert run_sekali("keys", "revoke", old.partition(".")[0], "--db-path", db_path).returncode == 0
    wait_until(lambda: Client(guarded.server.url, key=old).get("/events").status == 401, "the first is gone")
    assert Client(guarded.server.url, key=new).get("/events").status == 200


def test_a_stream_ends_when_its_key_does(launch: Launch, tmp_path: Path) -> None:
    key = create(tmp_path / "store.db", "reader", "read:**")
    server = launch(BOOTSTRAP_KEY=BOOTSTRAP)
    admin = Client(server.url, key=BOOTSTRAP)
    for request in range(10):
        events = [event("large", f"{request}-{n}", payload="x" * 1000) for n in range(2000)]
        assert admin.publish(events).status == 200
    with RawConnection(server.port, receive_buffer_bytes=4096) as stream:
        stream.send(
            f"GET /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nAccept: {NDJSON}\r\n\r\n".encode()
        )
        start = stream.socket.recv(4096)
        assert start.startswith(b"HTTP/1.1 200")
        revoke(server.db_path, key)
        server.wait_for_log("the keys have changed")
        rest = stream.receive_all()
    assert not (start + rest).endswith(b"0\r\n\r\n"), "the final chunk was sent"
    assert server.wait_for_log("stream cut")["reason"] == "the key was revoked or has expired"
    assert admin.export(topic="large").count(b"\n") == 20_000


@pytest.mark.parametrize("damage", ["emptied", "deleted", "cut short", "writable for all"])
def test_no_harm_to_the_file_reopens_a_running_server(launch: Launch, tmp_path: Path, damage: str) -> None:
    """Without its keys nobody gets in; a file that cannot be believed changes nothing."""
    key = create(tmp_path / "store.db", "ops", "admin")
    server = launch()
    file = KeyFile(server.db_path).path
    good = file.read_bytes()
    http, stranger = Client(server.url, key=key), Client(server.url)
    assert (http.get("/stats").status, stranger.get("/stats").status) == (200, 401)
    if damage == "emptied":
        revoke(server.db_path, key)
    elif damage == "deleted":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(good[:-10])
    else:
        file.chmod(0o666)
    if damage in {"emptied", "deleted"}:
        assert server.wait_for_log("the keys have changed")["keys"] == 0
        assert (http.get("/stats").status, stranger.get("/stats").status) == (401, 401)
    else:
        line = server.wait_for_log("the keys stay as they were")
        assert line["level"] == "error" and str(file) in line["reason"]
        assert (http.get("/stats").status, stranger.get("/stats").status) == (200, 401)
        file.write_bytes(b"[]")
        file.chmod(0o600)
        server.wait_for_log("the keys have changed")
        assert (http.get("/stats").status, stranger.get("/stats").status) == (401, 401)


def test_the_first_key_closes_a_running_server(launch: Launch) -> None:
    server = launch()
    assert server.http.publish(event("a", "1")).status == 200
    key = create(server.db_path, "ops", "admin")
    server.wait_for_log("the keys have changed")
    assert server.http.publish(event("a", "1")).status == 401
    assert Client(server.url, key=key).publish(event("a", "1")).outcomes == ["duplicate"]
    revoke(server.db_path, key)
    server.wait_for_log("the keys have changed")
    assert server.http.get("/events").status == 401
    server.restart()
    assert server.http.get("/events").status == 401, "an empty file of keys is no open door"


# Starting.


@pytest.mark.parametrize("content", [b"", b"nonsense", b'[{"id": "a"}]'])
def test_a_damaged_file_of_keys_is_a_sentence(launch: Launch, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db.keys").write_bytes(content)
    server = launch(start=False)
    server.launch()
    assert server.wait() == 3
    (line,) = server.log
    assert "store.db.keys is damaged" in line["event"] and "Traceback" not in line["event"]


def test_a_bad_bootstrap_key_is_a_sentence_that_does_not_repeat_it(launch: Launch) -> None:
    server = launch(start=False, BOOTSTRAP_KEY="hunter2")
    server.launch()
    assert server.wait() == 3
    (line,) = server.log
    assert "BOOTSTRAP_KEY is not a key" in line["event"] and "hunter2" not in line["event"]


def test_without_keys_only_this_machine_is_listened_to(launch: Launch) -> None:
    server = launch(start=False, HOST="0.0.0.0")
    server.launch()
    assert server.wait() == 3
    (line,) = server.log
    for way_out in ("sekali keys create", "SEKALI_BOOTSTRAP_KEY", "SEKALI_ALLOW_ANONYMOUS=true"):
        assert way_out in line["event"]
    assert not server.db_path.exists(), "it was refused before anything was made"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.8.7"])
def test_this_machine_needs_no_keys(launch: Launch, host: str) -> None:
    server = launch(HOST=host)
    assert server.http.publish(event("a", "1")).status == 200
    assert [line["level"] for line in server.log if line["event"].startswith("no keys")] == ["warning"]


def test_other_machines_need_a_key_or_the_word_of_the_operator(launch: Launch, tmp_path: Path) -> None:
    key = create(tmp_path / "keys" / "store.db", "ops", "admin")
    for settings, shown in (
        ({"ALLOW_ANONYMOUS": "true"}, None),
        ({"BOOTSTRAP_KEY": BOOTSTRAP}, BOOTSTRAP),
        ({"db_path": tmp_path / "keys" / "store.db"}, key),
        ({"ALLOW_ANONYMOUS": "true", "BOOTSTRAP_KEY": BOOTSTRAP}, BOOTSTRAP),
    ):
        server = launch(HOST="0.0.0.0", **settings)
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert Client(url, key=shown).get("/events").status == 200
        assert Client(url).get("/events").status == (200 if shown is None else 401)
        server.terminate()


def test_the_command_line_says_what_to_do_without_a_key_and_without_a_scope(guarded: Guarded, tmp_path: Path) -> None:
    def sekali(*arguments: object, **settings: Any) -> tuple[int, str, str]:
        done = run_sekali(*arguments, AGGREGATOR_URL=guarded.server.url, **settings)
        assert "Traceback" not in done.stderr and not any(
            key.partition(".")[2] in done.stdout + done.stderr for key in guarded.keys.values()
        )
        return done.returncode, done.stdout, done.stderr

    for command in (["tail"], ["publish", "--count", 5]):
        code, _, said = sekali(*command)
        assert code == 1 and "SEKALI_API_KEY or --api-key-file" in said, (command, said)
    code, _, said = sekali("events", "--topic", "hidden/x", API_KEY=guarded.keys["shop"])
    assert code == 1 and "read:hidden/x" in said and "sekali keys create" in said
    code, _, said = sekali("publish", "--count", 5, "--topics", "log", API_KEY=guarded.keys["shop"])
    assert code == 1 and "publish:log" in said
    code, shown, _ = sekali("stats", "--json", API_KEY=guarded.keys["shop"])
    assert code == 0 and json.loads(shown)["topics"][:2] == ["shop/a", "shop/b"]
    key_file = tmp_path / "key"
    key_file.write_text(guarded.keys["shop"] + "\n")
    code, shown, _ = sekali("events", "--json", "--api-key-file", key_file, API_KEY="counts.less")
    assert code == 0 and {json.loads(line)["topic"] for line in shown.splitlines()} <= {"shop/a", "shop/b", "shop/v"}
    for bad in ({"API_KEY": "hunter2"}, {"API_KEY_FILE": tmp_path / "missing"}):
        code, _, said = sekali("stats", **bad)
        assert code == 2 and "hunter2" not in said


def test_no_error_of_the_settings_repeats_a_secret() -> None:
    wrongs: list[dict[str, Any]] = [{"PORT": "x"}, {"TLS_CERT_FILE": "only.pem"}, {"TRUSTED_PROXIES": "nonsense"}]
    for wrong in wrongs:
        refused = run_sekali("serve", BOOTSTRAP_KEY=BOOTSTRAP, **wrong)
        assert refused.returncode == 2 and BOOTSTRAP[5:] not in refused.stdout + refused.stderr
    assert BOOTSTRAP[5:] not in repr(ServerSettings(bootstrap_key=SecretStr(BOOTSTRAP)))


def test_secrets_are_no_flags_and_stand_in_no_help() -> None:
    for command in ("serve", "publish", "events", "tail", "stats"):
        text = run_sekali(command, "--help", COLUMNS=200).stdout
        assert "--bootstrap-key" not in text and "--api-key " not in text
    refused = run_sekali("serve", "--bootstrap-key", BOOTSTRAP)
    assert refused.returncode == 2
