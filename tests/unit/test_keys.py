"""Keys: what they may do, and how they are recognised."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekali.keyfile import new_key_text
from sekali.keys import ANYBODY, Grant, Key, Keyring, bootstrap_key, name_fault, scope_fault, secret_hash
from sekali.topics import compile_pattern

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
SECRET = "s" * 43


def key(key_id: str = "k1", *scopes: str, name: str = "shop", secret: str = SECRET) -> Key:
    return Key(key_id, name, secret_hash(secret.encode()), scopes or ("read:**",), NOW)


def bearer(text: str) -> bytes:
    return b"Bearer " + text.encode()


def basic(key_id: str, secret: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{key_id}:{secret}".encode())


@pytest.mark.parametrize("scope", ["admin", "read:**", "publish:shop/**", "read:a", "publish:*/b", "read:a:b"])
def test_good_scopes(scope: str) -> None:
    assert scope_fault(scope) is None


@pytest.mark.parametrize(
    "scope",
    ["", "admin:", "Admin", "read", "read:", "read:a b", "write:a", "publish:/a", "publish:a**", "read:é", ":a", "*"],
)
def test_bad_scopes(scope: str) -> None:
    assert scope_fault(scope) is not None


@pytest.mark.parametrize("name", ["shop", "a", "team-1@host.example:x", "0~_", "a" * 64])
def test_good_names(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize("name", ["", "a b", "-a", ".a", "a\n", "é", "a" * 65, "a/b", "anonymous", "bootstrap"])
def test_bad_names(name: str) -> None:
    assert name_fault(name) is not None


def test_what_a_grant_allows() -> None:
    grant = Grant("shop", ["publish:shop/**", "publish:log", "read:shop/*/paid"])
    assert grant.publishes and not grant.publishes_all
    assert [grant.may_publish(topic) for topic in ("shop", "shop/a/b", "log", "log/a", "shops", "a/shop")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert [grant.may_read(topic) for topic in ("shop/a/paid", "shop", "shop/a/b", "log")] == [
        True,
        False,
        False,
        False,
    ]
    assert grant.readable == ("shop/*/paid",)


def test_publishing_is_not_reading_nor_the_other_way_round() -> None:
    publisher, reader = Grant("p", ["publish:**"]), Grant("r", ["read:**"])
    assert publisher.publishes_all and publisher.readable == () and not publisher.may_read("a")
    assert reader.readable is None and not reader.publishes and not reader.may_publish("a")


def test_admin_includes_everything() -> None:
    for grant in (Grant("ops", ["admin"]), Grant("ops", ["read:a", "admin"]), ANYBODY):
        assert grant.publishes_all and grant.readable is None
        assert grant.may_publish("any/topic") and grant.may_read("any/topic")


def test_a_grant_keeps_its_patterns_whatever_strangers_ask_for() -> None:
    """Compiling is a hundred times as long as matching: a reader must not make publishers pay for it."""
    grant = Grant("shop", ["publish:shop/**"])
    before = compile_pattern.cache_info().misses
    for number in range(300):
        compile_pattern(f"x{number}/*").fullmatch("/x")
    assert compile_pattern.cache_info().misses >= before + 256
    misses = compile_pattern.cache_info().misses
    assert grant.may_publish("shop/a")
    assert compile_pattern.cache_info().misses == misses


def test_a_key_is_recognised_as_bearer_and_as_basic() -> None:
    ring = Keyring([key("k1", name="one"), key("k2", name="two", secret="t" * 43)])
    for header in (
        bearer(f"k2.{'t' * 43}"),
        basic("k2", "t" * 43),
        b"bearer  k2." + b"t" * 43,
        b"BASIC" + basic("k2", "t" * 43)[5:],
    ):
        grant = ring.grant(header)
        assert grant is not None and grant.name == "two", header


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer k1",
        b"Bearer k1.",
        b"Bearer ." + SECRET.encode(),
        b"Bearer k1." + SECRET[:-1].encode(),
        b"Bearer k1." + SECRET.encode() + b"x",
        b"Bearer k9." + SECRET.encode(),
        b"Bearer k1:" + SECRET.encode(),
        b"Bearer \xff\xfe.\xff",
        b"Bearer k1." + b"\xff" * 43,
        b"Bearer k1." + SECRET.encode() + b" " * 2000,
        b"Digest k1." + SECRET.encode(),
        b"k1." + SECRET.encode(),
        b"Basic !!!",
        b"Basic",
        b"Basic " + base64.b64encode(b"k1." + SECRET.encode()),
        b"Basic " + base64.b64encode(b"k1:" + SECRET[1:].encode()),
        b"Basic " + base64.b64encode(b"k1:" + SECRET.encode())[:-1] + b"%",
        b"Basic " + base64.b64encode(b"k1:" + SECRET.encode()).replace(b"z", b"!z", 1),
    ],
)
def test_what_is_no_key_is_not_recognised(header: bytes) -> None:
    ring = Keyring([key("k1")])
    assert ring.grant(bearer(f"k1.{SECRET}")) is not None
    assert ring.grant(header) is None


@given(st.binary(max_size=200))
def test_no_header_is_an_error(header: bytes) -> None:
    ring = Keyring([key("k1")])
    assert ring.grant(header) is None
    assert ring.grant(b"Bearer " + header) is None
    assert ring.grant(b"Basic " + base64.b64encode(header)) is None


def test_secrets_are_compared_as_hashes_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key that is not known too, so that the time does not tell which ids there are."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return hmac_compare(first, second)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = Keyring([key("k1")])
    for secret in (SECRET, "wrong"):
        for key_id in ("k1", "k9"):
            assert (ring.grant(bearer(f"{key_id}.{secret}")) is not None) == (key_id == "k1" and secret == SECRET)
    assert [given for given, _ in compared] == [
        hashlib.sha256(secret.encode()).digest() for secret in (SECRET,) * 2 + ("wrong",) * 2
    ]
    assert all(isinstance(part, bytes) and len(part) == 32 for pair in compared for part in pair)


def test_a_ring_holds_a_grant_only_while_the_key_is_the_same() -> None:
    first = Keyring([key("k1", "read:**"), key("k2")])
    grant = first.grant(bearer(f"k1.{SECRET}"))
    assert grant is not None
    assert first.holds(grant) and Keyring([key("k1", "read:**")]).holds(grant)
    assert not Keyring([key("k2", "read:**")]).holds(grant), "it was revoked"
    assert not Keyring([key("k1", "read:a")]).holds(grant), "it may do less"
    assert not Keyring([key("k1", "read:**", secret="other")]).holds(grant), "another key has its id"
    assert not Keyring([key("k1")]).holds(ANYBODY), "a key is asked for now"


def test_expiry() -> None:
    made = Key("k1", "shop", secret_hash(b"x"), ("read:**",), NOW, NOW + timedelta(days=1))
    assert made.is_live(NOW) and made.is_live(NOW + timedelta(hours=23, minutes=59))
    assert not made.is_live(NOW + timedelta(days=1))
    assert Grant(made.name, made.scopes, made).expires_at_s == (NOW + timedelta(days=1)).timestamp()
    assert key().is_live(NOW + timedelta(days=10_000))


def test_a_new_key_is_a_bootstrap_key_of_256_bits_that_are_not_repeated() -> None:
    texts = {new_key_text() for _ in range(100)}
    assert len(texts) == 100
    for text in texts:
        key_id, _, secret = text.partition(".")
        assert len(base64.urlsafe_b64decode(secret + "=")) == 32
        made = bootstrap_key(text, NOW)
        assert (made.id, made.name, made.scopes, made.expires_at) == (key_id, "bootstrap", ("admin",), None)
        assert secret not in repr(made) and made.sha256 == hashlib.sha256(secret.encode()).hexdigest()


@pytest.mark.parametrize(
    "text", ["", "x", "short.secret", f".{SECRET}", f"a b.{SECRET}", f"k.{'s' * 31}", f"k.{'s' * 40} x"]
)
def test_a_bad_bootstrap_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="sekali keys bootstrap") as refused:
        bootstrap_key(text, NOW)
    assert len(text) < 2 or text not in str(refused.value)
