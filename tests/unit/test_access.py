"""The door: pages of other sites, expiry, proxies, rates, and what is written down of those that were refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from batches import batch
from sekali.api.access import REFUSALS_LOGGED_A_SECOND, Access, missing_scope
from sekali.api.permitted import only_permitted
from sekali.api.problems import Kind, Problem
from sekali.api.proxies import Proxies
from sekali.api.ratelimit import RETRY_AFTER_S_MAX, RateLimit
from sekali.decode import Decoded
from sekali.keys import ANYBODY, Grant, Key, Keyring, secret_hash
from sekali.metrics import Metrics
from sekali.settings import networks

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
SECRET = b"s" * 43
KEY = Key("k1", "shop", secret_hash(SECRET), ("read:**",), NOW, NOW + timedelta(hours=1))
BEARER = (b"authorization", b"Bearer k1." + SECRET)
LOCAL = (b"host", b"localhost:8080")

Headers = list[tuple[bytes, bytes]]


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.s = NOW.timestamp()

    def __call__(self) -> float:
        return self.s


def door(
    *keys: Key, clock: Clock | None = None, only_this_machine: bool = True, rate: float = 0.0, proxies: str = ""
) -> Access:
    clock = clock or Clock()
    return Access(
        Keyring(keys) if keys else None,
        Metrics(clock),
        only_this_machine=only_this_machine,
        rate_limit_per_s=rate,
        proxies=Proxies(networks(proxies)),
        clock_s=clock,
        wall_clock_s=clock,
    )


def refused(access: Access, *headers: tuple[bytes, bytes]) -> Kind | None:
    """Return how a request is refused, None where it is let in; and see that open routes judge pages alike."""
    try:
        access.admit(headers)
    except Problem as problem:
        kind: Kind | None = problem.kind
    else:
        kind = None
    if kind is Kind.FOREIGN_PAGE:
        with pytest.raises(Problem):
            access.look_at(headers)
    else:
        assert (access.look_at(headers) is None) == (kind is Kind.NO_KEY)
    return kind


PAGES: list[tuple[Headers, bool]] = [
    ([], True),
    ([LOCAL], True),
    ([LOCAL, (b"sec-fetch-site", b"same-origin")], True),
    ([LOCAL, (b"sec-fetch-site", b"none")], True),
    ([LOCAL, (b"sec-fetch-site", b"same-origin"), (b"origin", b"http://localhost:8080")], True),
    ([LOCAL, (b"origin", b"http://localhost:8080")], True),
    ([LOCAL, (b"origin", b"https://LOCALHOST:8080")], True),
    ([LOCAL, (b"sec-fetch-site", b"cross-site")], False),
    ([LOCAL, (b"sec-fetch-site", b"same-site")], False),
    ([LOCAL, (b"sec-fetch-site", b"")], False),
    ([LOCAL, (b"sec-fetch-site", b"cross-site"), (b"origin", b"http://localhost:8080")], False),
    ([LOCAL, (b"origin", b"http://localhost:9090")], False),
    ([LOCAL, (b"origin", b"http://localhost")], False),
    ([LOCAL, (b"origin", b"https://evil.example")], False),
    ([LOCAL, (b"origin", b"null")], False),
    ([LOCAL, (b"origin", b"")], False),
    ([(b"origin", b"http://localhost:8080")], False),
]


@pytest.mark.parametrize(("headers", "let_in"), PAGES)
def test_pages_of_other_sites(headers: Headers, let_in: bool) -> None:
    """With keys too: a browser remembers the user and password of Basic, and sends them with whatever a page asks."""
    assert refused(door(), *headers) is (None if let_in else Kind.FOREIGN_PAGE)
    assert refused(door(KEY), *headers, BEARER) is (None if let_in else Kind.FOREIGN_PAGE)
    assert refused(door(only_this_machine=False), *headers) is (None if let_in else Kind.FOREIGN_PAGE)


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1",
        b"127.0.0.1:8080",
        b"[::1]:8080",
        b"[::1]",
        b"localhost",
        b"LocalHost:1",
        b"a.localhost:8080",
        b"10.1.2.3",
    ],
)
def test_hosts_that_are_this_machine(host: bytes) -> None:
    assert refused(door(), (b"host", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8080",
        b"localhost.evil.example",
        b"evillocalhost",
        b"x",
        b"127.0.0.1.evil.example",
        b"[::1",
        b"\xff",
    ],
)
def test_hosts_that_somebodys_dns_may_point_here(host: bytes) -> None:
    assert refused(door(), (b"host", host)) is Kind.FOREIGN_PAGE
    assert refused(door(), (b"host", host), (b"sec-fetch-site", b"same-origin")) is Kind.FOREIGN_PAGE
    assert refused(door(KEY), (b"host", host), BEARER) is None, "a page cannot know the key"
    assert refused(door(only_this_machine=False), (b"host", host)) is None, "the names of other machines are not known"


def test_without_keys_everybody_may_do_everything() -> None:
    assert door().admit([LOCAL]) is ANYBODY
    assert door().admit([LOCAL, BEARER]) is ANYBODY, "a client with a key works with an open server"


def test_the_first_key_closes_an_open_server_for_good() -> None:
    access = door()
    assert access.still_holds(ANYBODY)
    access.replace(Keyring([KEY]))
    assert refused(access, LOCAL) is Kind.NO_KEY and refused(access, LOCAL, BEARER) is None
    assert not access.still_holds(ANYBODY)
    access.replace(Keyring([]))
    assert refused(access, LOCAL) is Kind.NO_KEY and refused(access, LOCAL, BEARER) is Kind.NO_KEY


def test_a_key_works_until_it_expires() -> None:
    clock = Clock()
    access = door(KEY, clock=clock)
    grant = access.admit([BEARER])
    clock.s += 3599.9
    assert refused(access, BEARER) is None and access.still_holds(grant)
    clock.s += 0.1
    assert not access.still_holds(grant)
    with pytest.raises(Problem, match="expired") as expired:
        access.admit([BEARER])
    assert expired.value.kind is Kind.NO_KEY


def test_401_says_how_to_show_a_key() -> None:
    access = door(KEY)
    for headers, challenge in (
        ([], b'Bearer realm="sekali", Basic realm="sekali", charset="UTF-8"'),
        (
            [(b"authorization", b"Bearer k1.wrong")],
            b'Bearer realm="sekali", error="invalid_token", Basic realm="sekali", charset="UTF-8"',
        ),
    ):
        with pytest.raises(Problem) as problem:
            access.admit(headers)
        answer = problem.value.answer()
        assert answer.status == 401 and (b"www-authenticate", challenge) in answer.headers


def test_a_key_that_is_not_known_and_a_wrong_secret_are_told_alike() -> None:
    answers = set()
    for wrong in (b"Bearer k1.wrong", b"Bearer k9." + SECRET, b"Basic azE6eA=="):
        with pytest.raises(Problem) as problem:
            door(KEY).admit([(b"authorization", wrong)])
        answers.add((problem.value.answer().body, tuple(problem.value.answer().headers)))
    assert len(answers) == 1


# Rates.


def test_a_rate_is_one_second_of_requests_and_events_and_a_batch_may_go_into_debt() -> None:
    clock = Clock()
    rate = RateLimit(10, clock)
    assert [rate.take("a") for _ in range(12)] == [0] * 10 + [1, 1], "a second's worth at once"
    clock.s += 0.11
    assert [rate.take("a"), rate.take("a")] == [0, 1]
    assert rate.take("b") == 0, "each name has its own"
    clock.s += 1000
    assert rate.take("a") == 0
    rate.charge("a", 29)  # 10 - 1 - 29 = -20: 2.1 s until there is one again
    assert rate.take("a") == 3
    clock.s += 2.05
    assert rate.take("a") == 1
    clock.s += 0.06
    assert rate.take("a") == 0


def test_nobody_is_told_to_wait_for_long() -> None:
    clock = Clock()
    rate = RateLimit(0.5, clock)
    assert rate.take("a") == 0
    assert rate.take("a") == 2
    rate.charge("a", 1000)
    assert rate.take("a") == RETRY_AFTER_S_MAX
    clock.s += 2002.1
    assert rate.take("a") == 0


def test_429_names_the_setting_and_says_when_to_come_again() -> None:
    access = door(KEY, Key("k2", "other", secret_hash(b"t" * 43), ("read:**",), NOW), rate=1)
    grant = access.admit([BEARER])
    access.charge(grant, 2)
    with pytest.raises(Problem, match="RATE_LIMIT_PER_S") as problem:
        access.admit([BEARER])
    answer = problem.value.answer()
    assert answer.status == 429 and (b"retry-after", b"3") in answer.headers
    assert refused(access, (b"authorization", b"Bearer k2." + b"t" * 43)) is None
    assert access.look_at([BEARER]) is not None, "the open routes cost nothing"


def test_strangers_share_a_rate() -> None:
    access = door(rate=1)
    assert refused(access, LOCAL) is None
    assert refused(access, LOCAL) is Kind.RATE_LIMITED


# Whose request a proxy passes on.


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", [(b"x-forwarded-for", b"203.0.113.9")], "192.0.2.1"),
        ("192.0.2.1", [(b"forwarded", b"for=203.0.113.9")], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9:4711")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1, 203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1, 203.0.113.9, 10.9.9.9, 2001:db8::7")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"10.0.0.2, 10.0.0.3")], "10.0.0.2"),
        ("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1, nonsense\n")], "10.0.0.1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1, unknown, 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [(b"x-forwarded-for", b"")], "10.0.0.1"),
        ("10.0.0.1", [(b"forwarded", b"for=203.0.113.9;proto=https")], "203.0.113.9"),
        ("10.0.0.1", [(b"forwarded", b'for=1.1.1.1, FOR="[2001:db9::1]:80";by=x')], "2001:db9::1"),
        ("10.0.0.1", [(b"forwarded", b"for=_hidden")], "10.0.0.1"),
        ("10.0.0.1", [(b"forwarded", b"for=1.1.1.1"), (b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("2001:db8::1", [(b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("::ffff:10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("::ffff:192.0.2.1", [(b"x-forwarded-for", b"203.0.113.9")], "::ffff:192.0.2.1"),
        ("not an address", [(b"x-forwarded-for", b"203.0.113.9")], "not an address"),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, headers: Headers, client: str) -> None:
    proxies = Proxies(networks("10.0.0.0/8, 2001:db8::/32"))
    assert proxies.client((peer, 4711), headers) == client
    assert Proxies(()).client((peer, 4711), headers) == peer
    assert proxies.client(None, headers) == "unknown"


@pytest.mark.parametrize("text", ["10.0.0.0/33", "nginx", "10.0.0.1;10.0.0.2"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        networks(text)


# What is written down.


def noted(access: Access, problem: Problem, times: int) -> list[Any]:
    with structlog.testing.capture_logs() as lines:
        for _ in range(times):
            access.note(
                problem, "/events", [(b"x-forwarded-for", b"203.0.113.9")], ("10.0.0.1", 4711), Grant("shop", [])
            )
    return lines


def test_a_refusal_is_logged_with_whose_it_was() -> None:
    clock = Clock()
    (line,) = noted(door(clock=clock, proxies="10.0.0.1"), missing_scope("read:a"), 1)
    assert line == {
        "event": "refused",
        "log_level": "info",
        "status": 403,
        "reason": "the key may not do this; it needs the scope read:a",
        "path": "/events",
        "client": "203.0.113.9",
        "name": "shop",
    }


def test_of_many_refusals_in_a_second_the_rest_is_counted() -> None:
    clock = Clock()
    access = door(clock=clock)
    assert len(noted(access, missing_scope("read:a"), 1000)) == REFUSALS_LOGGED_A_SECOND
    clock.s += 1
    first, second = noted(access, missing_scope("read:a"), 2)
    assert first["not_logged_before"] == 1000 - REFUSALS_LOGGED_A_SECOND and "not_logged_before" not in second


# What of a request may be published.


def test_what_may_not_be_published_is_invalid_where_it_stands() -> None:
    events = batch(("shop/a", "1"), ("log", "2"), ("shop/b", "3"), ("log", "4"), ("other", "5"))
    events.all_or_nothing = True
    sent = Decoded(events, {1: "timestamp: not one", 4: "line: not JSON"}, single=False)
    permitted = only_permitted(sent, Grant("shop", ["publish:shop/**"]))
    assert permitted.batch == sent.batch.chosen([0, 2]) and permitted.batch.event_ids == ["1", "3"]
    assert permitted.batch.all_or_nothing and permitted.item_count == 7
    # Items 0, 2, 3, 5 and 6 were the valid ones.
    assert permitted.faults == sent.faults | {
        2: "topic: the key may not publish to it; that needs the scope publish:log",
        5: "topic: the key may not publish to it; that needs the scope publish:log",
        6: "topic: the key may not publish to it; that needs the scope publish:other",
    }
    assert permitted.forbidden == {"log", "other"}


def test_what_may_be_published_is_left_as_it_is() -> None:
    sent = Decoded(batch(("shop/a", "1")), {}, single=True)
    assert only_permitted(sent, Grant("shop", ["publish:shop/**"])) is sent
