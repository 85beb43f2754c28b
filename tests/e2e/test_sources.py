"""``GET /sources``: what a publisher that numbers its events learns of those that did not arrive."""

import random
from typing import Any

import pytest

from e2e.conftest import Launch
from e2e.server import Client, event


def numbered(topic: str, number: int, source: str = "pump", **fields: Any) -> dict[str, Any]:
    return event(topic, f"{source}-{number}", source=source, source_seq=number, **fields)


def sources(http: Client, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get_json("/sources", **query)
    return found


def test_a_publisher_that_loses_and_repeats_proves_that_all_arrived_once(http: Client) -> None:
    """Some requests never arrive and others arrive twice; the gaps say what to send again, until there are none."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    last = 500
    for start in range(1, last + 1, 5):
        for _ in range(rng.choice([0, 1, 1, 2])):
            http.publish([numbered("proof", number) for number in range(start, start + 5)])
    http.publish([numbered("proof", number) for number in (2, 2)])
    for _ in range(20):
        (found,) = sources(http, topic="proof", **{"from": 1, "to": last})
        if not found["missing"]:
            break
        assert found["completeness"] < 1
        gaps = [number for first, end in found["missing_ranges"] for number in range(first, end + 1)]
        http.publish([numbered("proof", number) for number in gaps if rng.random() < 0.7])
    assert found == {
        "topic": "proof",
        "source": "pump",
        "lowest": 1,
        "highest": last,
        "received": last,
        "missing": 0,
        "completeness": 1,
        "missing_ranges": [],
        "missing_ranges_count": 0,
        "repeated": 0,
        "unnumbered": 0,
    }
    topic = http.topic("proof")
    assert topic["stored"] == last and topic["duplicates"] > 0


def test_each_topic_and_source_counts_by_itself(http: Client) -> None:
    http.publish(
        [
            *(numbered("own/a", 1), numbered("own/a", 3), numbered("own/b", 7, "x"), numbered("own/b", 7, "y")),
            *(event("own/b", "none", source="x"), event("own/c", "none")),
        ]
    )
    found = sources(http, topic="own/*")
    assert [(one["topic"], one["source"], one["lowest"], one["highest"]) for one in found] == [
        ("own/a", "pump", 1, 3),
        ("own/b", "x", 7, 7),
        ("own/b", "y", 7, 7),
    ]
    assert [one["missing_ranges"] for one in found] == [[[2, 2]], [], []]
    assert [one["unnumbered"] for one in found] == [0, 1, 0]
    assert sources(http, topic="own/*", source="y") == found[2:]
    assert [one for page in http.pages("/sources", topic="own/*", limit=1) for one in page] == found


def test_what_is_asked_about_may_be_more_or_less_than_what_came(http: Client) -> None:
    http.publish([numbered("asked", number) for number in (10, 11, 14)])
    for query, missing, count, completeness in (
        ({}, [[12, 13]], 2, 0.6),
        ({"from": 10, "to": 11}, [], 0, 1),
        ({"from": 1}, [[1, 9], [12, 13]], 11, 0.214285),
        ({"to": 20}, [[12, 13], [15, 20]], 8, 0.272727),
        ({"from": 12, "to": 13}, [[12, 13]], 2, 0),
        ({"from": 30, "to": 31}, [[30, 31]], 2, 0),
        ({"from": -(2**63), "to": 2**63 - 1}, [[-(2**63), 9], [12, 13], [15, 2**63 - 1]], 2**64 - 3, 0),
    ):
        (found,) = sources(http, topic="asked", **query)
        assert (found["missing_ranges"], found["missing"], found["completeness"]) == (missing, count, completeness)


def test_of_many_gaps_the_first_hundred_are_listed_and_all_counted(http: Client) -> None:
    http.publish([numbered("holes", 2 * number) for number in range(1, 303)])
    (found,) = sources(http, topic="holes")
    assert found["missing_ranges_count"] == found["missing"] == 301
    assert found["missing_ranges"] == [[odd, odd] for odd in range(3, 203, 2)]
    assert found["completeness"] == 0.500829
    (rest,) = sources(http, topic="holes", **{"from": 203})
    assert rest["missing_ranges"][0] == [203, 203] and rest["missing_ranges_count"] == 201


def test_one_missing_of_very_many_is_not_complete(http: Client) -> None:
    http.publish([numbered("almost", number) for number in range(10_000)])
    (found,) = sources(http, topic="almost", to=10_000)
    assert found["missing"] == 1 and found["completeness"] == 0.9999


def test_a_number_that_is_used_twice_is_told(http: Client) -> None:
    http.publish([numbered("twice", 1), event("twice", "another", source="pump", source_seq=1)])
    (found,) = sources(http, topic="twice")
    assert (found["received"], found["repeated"], found["missing"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"from": 5, "to": 4}, "to"),
        ({"from": 2**63}, "from"),
        ({"to": -(2**63) - 1}, "to"),
        ({"from": "x"}, "from"),
        ({"from": "1.5"}, "from"),
        ({"topic": "a//b"}, "topic"),
        ({"limit": 0}, "limit"),
    ],
    ids=str,
)
def test_a_bad_parameter_is_422_and_named(http: Client, query: dict[str, Any], parameter: str) -> None:
    answer = http.get("/sources", **query)
    assert answer.status == 422 and parameter in answer.json()["detail"]


def test_figures_are_committed_with_the_events(launch: Launch) -> None:
    server = launch()
    for start in (1, 100, 50):
        server.http.publish([numbered("kept", number) for number in range(start, start + 10)])
    before = sources(server.http)
    server.kill()
    server.start()
    assert sources(server.http) == before
    assert before[0]["missing_ranges"] == [[11, 49], [60, 99]]
