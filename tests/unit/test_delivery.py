"""What a subscription may be."""

import base64
from typing import Any

import msgspec
import pytest

from sekali.delivery import Definition, Delivery, Place, definition_fault, name_fault

SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()
PUSH: dict[str, Any] = {"topic": "t", "delivery": "push", "url": "https://example.com/hook", "secret": SECRET}


def decode(document: dict[str, Any]) -> Definition:
    return msgspec.json.decode(msgspec.json.encode(document), type=Definition)


def fault(document: dict[str, Any]) -> str | None:
    """Return the name of the field that is refused."""
    try:
        definition = decode(document)
    except msgspec.ValidationError as error:
        return str(error)
    found = definition_fault(definition)
    return None if found is None else found[0]


@pytest.mark.parametrize(
    "document",
    [
        {"topic": "t"},
        {"topic": "a/*/**", "start": "earliest", "order": "none", "max_attempts": 1, "lease_seconds": 0.1},
        {"topic": "t", "start": {"seq": 1}, "paused": True, "max_attempts": 1000, "lease_seconds": 43200},
        {"topic": "t", "start": {"time": "2026-01-01T00:00:00Z"}},
        PUSH,
        PUSH | {"secret": None},
        PUSH | {"url": "http://127.0.0.1:8080/x?y=z", "secret": "whsec_" + base64.b64encode(bytes(64)).decode()},
    ],
)
def test_good_definitions(document: dict[str, Any]) -> None:
    assert fault(document) is None


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "topic"),
        ({"topic": "a//b"}, "topic"),
        ({"topic": "t", "start": "first"}, "start"),
        ({"topic": "t", "start": {}}, "start"),
        ({"topic": "t", "start": {"seq": 1, "time": "2026-01-01T00:00:00Z"}}, "start"),
        ({"topic": "t", "start": {"seq": 0}}, "seq"),
        ({"topic": "t", "start": {"seq": 2**63}}, "seq"),
        ({"topic": "t", "order": "seq"}, "order"),
        ({"topic": "t", "delivery": "mail"}, "delivery"),
        ({"topic": "t", "max_attempts": 0}, "max_attempts"),
        ({"topic": "t", "max_attempts": 1001}, "max_attempts"),
        ({"topic": "t", "lease_seconds": 0}, "lease_seconds"),
        ({"topic": "t", "lease_seconds": 43201}, "lease_seconds"),
        ({"topic": "t", "lease": 5}, "lease"),
        ({"topic": "t", "url": "https://example.com"}, "url"),
        ({"topic": "t", "secret": SECRET}, "secret"),
        (PUSH | {"url": None}, "url"),
        (PUSH | {"url": "ftp://example.com"}, "url"),
        (PUSH | {"url": "https:///path"}, "url"),
        (PUSH | {"url": "https://user:password@example.com"}, "url"),
        (PUSH | {"url": "https://example.com/#part"}, "url"),
        (PUSH | {"url": "https://example.com/a b"}, "url"),
        (PUSH | {"url": "https://example.com/\n"}, "url"),
        (PUSH | {"url": "https://exämple.com/"}, "url"),
        (PUSH | {"url": "https://example.com:99999/"}, "url"),
        (PUSH | {"url": "https://example.com/" + "a" * 2048}, "url"),
        (PUSH | {"secret": SECRET.removeprefix("whsec_")}, "secret"),
        (PUSH | {"secret": "whsec_" + base64.b64encode(bytes(23)).decode()}, "secret"),
        (PUSH | {"secret": "whsec_" + base64.b64encode(bytes(65)).decode()}, "secret"),
        (PUSH | {"secret": SECRET + "!"}, "secret"),
    ],
)
def test_bad_definitions_name_the_field(document: dict[str, Any], field: str) -> None:
    found = fault(document)
    assert found is not None and field in found


def test_the_secret_is_not_shown() -> None:
    assert decode(PUSH).secret == SECRET
    shown = decode(PUSH).public()
    assert SECRET not in str(shown) and "secret" not in shown and shown["url"] == PUSH["url"]
    assert "url" not in Definition("t").public()


def test_what_is_stored_comes_back() -> None:
    for definition in (decode(PUSH), Definition("t"), Definition("t", Place(seq=5)), Definition("t", "earliest")):
        assert msgspec.json.decode(msgspec.json.encode(definition), type=Definition) == definition
    assert decode(PUSH).delivery is Delivery.PUSH


@pytest.mark.parametrize("name", ["a", "orders-billing.v2", "a" * 255, "A:b@c=d~e_f"])
def test_good_names(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "é", "a*", "a" * 256, "a\n", "a%2fb"])
def test_bad_names(name: str) -> None:
    assert name_fault(name) is not None
