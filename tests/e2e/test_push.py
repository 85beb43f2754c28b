"""Delivery by push from a real server to a real receiver: failures, restarts, kills, and addresses that are refused."""

import json
import random
import ssl
import threading
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from rich.console import Console

from e2e.conftest import Launch
from e2e.server import Client, ServerProcess, event, run_sekali, verify, wait_until
from receiver import SECRET, Received, Receiver, Says, receiver
from sekali.keyfile import KeyFile

LOOPBACK = {"PUSH_ALLOWED_NETWORKS": "127.0.0.1"}
TOPICS = 10
POISONED = 3


def put(http: Client, url: str, name: str = "hook", **fields: Any) -> None:
    definition = {"topic": "t/**", "start": "earliest", "delivery": "push", "url": url, "secret": SECRET} | fields
    answer = http.request("PUT", f"/subscriptions/{name}", body=json.dumps(definition).encode())
    assert answer.status in {200, 201}, answer


def shown(http: Client, name: str = "hook") -> dict[str, Any]:
    found: dict[str, Any] = http.get_json(f"/subscriptions/{name}")
    return found


def dead_letters(http: Client, name: str = "hook") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get_json(f"/subscriptions/{name}/dead-letters?limit=1000")
    return found


def publish(http: Client, topics: list[str], first: int = 0) -> None:
    events = [event(topic, str(first + number)) for number, topic in enumerate(topics)]
    assert http.publish(events).json()["stored"] == len(events)


def wait_until_settled(http: Client, name: str = "hook") -> None:
    wait_until(lambda: shown(http, name)["lag"] == 0, "everything is settled")


class Moody:
    """Fails half of its calls, each event a few times or not at all, and some always."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._left: dict[int, int] = {}
        self.poisoned: set[int] = set()
        self.failed = 0

    def __call__(self, received: Received) -> Says | int:
        with self._lock:
            if received.seq not in self._left:
                # Twice nothing, one, two or three failures: as many of its calls fail as do not.
                self._left[received.seq] = self._chance.choice((0, 0, 0, 1, 1, 1, 2, 3))
            if received.seq not in self.poisoned and not self._left[received.seq]:
                return 204
            self._left[received.seq] -= 1
            self.failed += 1
            return 500 if received.seq in self.poisoned else self._chance.choice((500, 404, 503, 302, 0))


def test_a_receiver_that_fails_half_of_its_calls_and_restarts(launch: Launch) -> None:
    """Every event arrives, what always fails is a dead letter, order holds for each topic, a replay empties them."""
    seed = random.randrange(2**32)
    Console().print(f"seed {seed}")
    chance, moody = random.Random(seed), Moody(seed)
    server = launch(**LOOPBACK)
    with receiver(moody) as hook:
        topics = [f"t/{number % TOPICS}" for number in range(TOPICS * 6)]
        moody.poisoned = set(chance.sample(range(1, len(topics) - TOPICS), POISONED))
        publish(server.http, topics)
        put(server.http, hook.url, max_attempts=5)
        good = set(range(1, len(topics) + 1)) - moody.poisoned
        hook.wait_for(lambda: {one.seq for one in hook.acknowledged} >= good, "all but the poisoned arrive")
        wait_until_settled(server.http)
        dead = dead_letters(server.http)
        assert {one["seq"] for one in dead} == moody.poisoned
        assert {(one["attempts"], one["error"]) for one in dead} == {(5, "answered 500 Internal Server Error")}
        assert moody.failed > len(topics) / 2 and shown(server.http)["since_start"]["dead"] == POISONED

        moody._left = defaultdict(int)  # from here on it does not fail; it is not there
        for restart in range(2):
            seen = len(hook.acknowledged)
            publish(server.http, [f"t/{number}" for number in range(TOPICS)] * 6, first=1000 * (restart + 1))
            hook.wait_for(lambda seen=seen: len(hook.acknowledged) >= seen + TOPICS * 2, "some arrive")  # type: ignore[misc]
            hook.stop()
            wait_until(lambda: shown(server.http)["endpoint"]["failures"] > 0, "it is missed")
            hook.start()
            hook.wait_for(lambda seen=seen: len(hook.acknowledged) >= seen + TOPICS * 6, "the others arrive, too")  # type: ignore[misc]
        wait_until_settled(server.http)
        assert {one["seq"] for one in dead_letters(server.http)} == moody.poisoned, "no innocent event died"

        poisoned, moody.poisoned = moody.poisoned, set()
        answer = server.http.request("POST", "/subscriptions/hook/dead-letters/replay", body=b'{"all": true}')
        assert sorted(answer.json()["replayed"]) == sorted(poisoned)
        wait_until_settled(server.http)
        assert dead_letters(server.http) == []
        in_order(hook, poisoned)
        stored = server.http.get_json("/stats")["unique_processed"]
        assert {one.seq for one in hook.acknowledged} == set(range(1, stored + 1))
    ids = {(one.event["topic"], one.event["event_id"]): one.webhook_id for one in hook.received}
    assert all(ids[one.event["topic"], one.event["event_id"]] == one.webhook_id for one in hook.received)
    assert len(set(ids.values())) == len(ids), "an id for each event, the same at every attempt"
    assert len({one.body for one in hook.received}) == len(ids), "and so is the body"


def in_order(hook: Receiver, replayed: set[int]) -> None:
    """Events of a topic came in order, each first time, and none before the one before it was acknowledged."""
    topics: defaultdict[str, list[int]] = defaultdict(list)
    for one in hook.acknowledged:
        if one.seq not in replayed:
            topics[one.event["topic"]].append(one.seq)
    for topic, seqs in topics.items():
        assert list(dict.fromkeys(seqs)) == sorted(set(seqs)), topic


def test_a_server_that_is_killed_goes_on_with_what_was_not_acknowledged(launch: Launch) -> None:
    """And never sends what was, but for the one whose acknowledgement was on its way to the disk."""
    kills, events = 5, 200
    server = launch(**LOOPBACK)
    with receiver() as hook:
        put(server.http, hook.url)
        publish(server.http, ["t/a"] * events)
        for kill in range(1, kills + 1):
            hook.wait_for(lambda kill=kill: len(hook.acknowledged) >= kill * 30, "some arrive")  # type: ignore[misc]
            server.kill()
            server.start()
        hook.wait_for(lambda: {one.seq for one in hook.acknowledged} >= set(range(1, events + 1)), "all arrive")
        wait_until_settled(server.http)
        seqs = [one.seq for one in hook.acknowledged]
        assert server.terminate() == 0
    repeated = [seq for seq, count in Counter(seqs).items() if count > 1]
    assert len(seqs) - events == len(repeated) <= kills
    for seq in repeated:
        assert seqs[seqs.index(seq) + 1] == seq, "only the last one of before"
    assert list(dict.fromkeys(seqs)) == list(range(1, events + 1)), "and in order"
    assert verify(server.db_path)["events"] == events


def test_one_that_never_answers_holds_nothing_else_up_and_not_the_end_either(launch: Launch) -> None:
    server = launch(**LOOPBACK)
    over = threading.Event()

    def never(_: Received) -> int:
        over.wait(120)
        return 0

    with receiver(never) as stuck, receiver() as hook:
        try:
            for number in range(3):
                put(server.http, stuck.url, f"stuck-{number}", lease_seconds=60, order="none")
            put(server.http, hook.url)
            publish(server.http, ["t/a", "t/b"] * 50)
            hook.wait_for(lambda: len(hook.acknowledged) == 100, "all arrive at the other")
            wait_until_settled(server.http)
            assert len(stuck.received) == 3, "one request each"
            assert server.terminate() == 0, "what does not end is given back"
            server.start()
            stuck.wait_for(lambda: len(stuck.received) == 6, "they come again")
            answer = server.http.request("POST", "/subscriptions/stuck-0/pull", body=b"{}")
            assert answer.status == 409, "only push takes them"
            assert shown(server.http, "stuck-0")["since_start"]["redelivered"] == 0, "that was no failed attempt"
        finally:
            over.set()


def test_an_address_that_is_not_public_is_refused_unless_it_is_allowed(launch: Launch) -> None:
    server = launch()
    with receiver() as hook:
        publish(server.http, ["t/a"])
        put(server.http, hook.url.replace("127.0.0.1", "localhost"))
        wait_until(lambda: shown(server.http)["endpoint"]["last_error"] is not None, "it is refused")
        assert (
            "which is loopback: not sent to unless PUSH_ALLOWED_NETWORKS"
            in shown(server.http)["endpoint"]["last_error"]
        )
        assert server.terminate() == 0
        assert hook.received == []
        server.settings |= {"PUSH_ALLOWED_NETWORKS": "127.0.0.1, ::1"}
        server.start()
        hook.wait_for(lambda: len(hook.acknowledged) == 1, "it is allowed")


def test_over_tls_the_certificate_has_to_be_good(launch: Launch, tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = launch(**LOOPBACK)
    with receiver(tls=tls) as hook:
        publish(server.http, ["t/a"])
        put(server.http, hook.url)
        wait_until(lambda: shown(server.http)["endpoint"]["last_error"] is not None, "it is refused")
        assert shown(server.http)["endpoint"]["last_error"].startswith("the certificate of 127.0.0.1 port")
        assert server.terminate() == 0 and hook.received == []
        server.environment = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        server.start()
        hook.wait_for(lambda: len(hook.acknowledged) == 1, "it is trusted")


def test_one_that_is_down_for_long_is_paused_and_says_so_everywhere(launch: Launch) -> None:
    server = launch(PUSH_PAUSE_AFTER_S=0.05, **LOOPBACK)
    with Receiver() as hook:
        hook.stop()
        publish(server.http, [f"t/{number}" for number in range(20)])
        put(server.http, hook.url)
        assert server.wait_for_log("the endpoint is down")["level"] == "warning"
        paused = server.wait_for_log("paused: PUT it with paused false when it is mended")
        assert paused["level"] == "warning" and paused["subscription"] == "hook"
        wait_until(lambda: shown(server.http)["paused"] is True, "it is paused")
        server.restart()
        found = shown(server.http)
        assert found["paused"] and found["paused_reason"] == paused["reason"] and "refused" in found["paused_reason"]
        assert found["paused_at"] >= found["created_at"] and found["dead_letters"] == 0 and found["lag"] == 20
        metrics = server.http.request("GET", "/metrics").data.decode()
        assert 'sekali_subscription_paused{subscription="hook"} 1.0' in metrics
        listed = run_sekali("subscriptions", "list", AGGREGATOR_URL=server.url, COLUMNS=200)
        assert "hook (paused)" in listed.stdout
        listed = run_sekali("subscriptions", "show", "hook", AGGREGATOR_URL=server.url)
        assert "paused_reason" in listed.stdout and "refused" in listed.stdout
        hook.start()
        put(server.http, hook.url, paused=False)
        hook.wait_for(lambda: len(hook.acknowledged) == 20, "it goes on")
        wait_until_settled(server.http)
        found = shown(server.http)
        assert not found["paused"] and found["paused_reason"] is None and found["dead_letters"] == 0
        endpoint = found["endpoint"]
        assert endpoint["failures"] == 0 and endpoint["last_error"] is None and endpoint["last_success_at"] is not None


def test_gone_pauses_at_once_and_deleting_seeking_and_pausing_count_at_once(launch: Launch) -> None:
    server = launch(**LOOPBACK)
    with receiver() as hook:
        put(server.http, hook.url, paused=True)
        publish(server.http, ["t/a", "t/b"])
        put(server.http, hook.url)
        hook.wait_for(lambda: len(hook.acknowledged) == 2, "resumed, it begins")
        wait_until_settled(server.http)
        assert server.http.request("POST", "/subscriptions/hook/seek", body=b'{"seq": 2}').status == 200
        hook.wait_for(lambda: [one.seq for one in hook.acknowledged[2:]] == [2], "sought, it goes there")
        wait_until_settled(server.http)
        hook.decide = lambda _: 410
        publish(server.http, ["t/c"], first=100)
        wait_until(lambda: shown(server.http)["paused"] is True, "it is gone")
        assert shown(server.http)["paused_reason"].startswith("the endpoint answered 410 Gone")
        hook.decide = lambda _: 204
        assert server.http.request("DELETE", "/subscriptions/hook").status == 204
        put(server.http, hook.url, topic="t/c")
        hook.wait_for(lambda: hook.acknowledged[-1].event["topic"] == "t/c", "made anew, it begins anew")
        wait_until_settled(server.http)
        assert time.time() - int(hook.received[-1].headers["webhook-timestamp"]) < 60


def test_only_an_administrator_makes_the_server_send(launch: Launch) -> None:
    server = launch(BOOTSTRAP_KEY="boot." + "b" * 43)
    reader = Client(server.url, key=KeyFile(server.db_path).create("reader", ["read:t/**"], datetime.now(UTC))[1])
    definition = {"topic": "t/**", "delivery": "push", "url": "https://example.com/", "secret": SECRET, "paused": True}

    def asked() -> int:
        return reader.request("PUT", "/subscriptions/hook", body=json.dumps(definition).encode()).status

    wait_until(lambda: asked() != 401, "the key counts")
    assert asked() == 403
    admin = Client(server.url, key="boot." + "b" * 43)
    answer = admin.request("PUT", "/subscriptions/hook", body=json.dumps(definition).encode())
    assert answer.status == 201 and SECRET not in str(answer.data)
    assert reader.request("DELETE", "/subscriptions/hook").status == 403
    assert SECRET not in str(reader.request("GET", "/subscriptions/hook").data)
    reader.close()
    admin.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://example.com/"),
        ("url", "https://user:pw@example.com/"),
        ("url", "https://example.com/#x"),
        ("url", "https://example.com/\r\nx: y"),
        ("url", None),
        ("secret", "whsec_c2hvcnQ="),
        ("secret", None),
        ("lease_seconds", 61),
    ],
)
def test_what_cannot_be_pushed_is_refused_and_names_the_field(server: ServerProcess, field: str, value: Any) -> None:
    definition = {"topic": "t/**", "delivery": "push", "url": "https://example.com/", "secret": SECRET} | {field: value}
    answer = server.http.request("PUT", "/subscriptions/bad", body=json.dumps(definition).encode())
    assert answer.status == 422 and answer.json()["errors"][0]["parameter"] == field
