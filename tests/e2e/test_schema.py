"""Bad input: the right status, the field named, the valid neighbours stored, and nothing else."""

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from e2e.inputs import BAD_DOCUMENTS, BAD_FIELDS, ENDLESS_DOCUMENTS, GOOD_FIELDS, NO_EVENTS, NOT_JSON, Case
from e2e.server import NDJSON, Client, RawConnection, Response, ServerProcess, event, ndjson, wait_until

_numbers = count(1)


@pytest.fixture
def topic() -> str:
    """A topic that no other test has."""
    return f"schema/{next(_numbers)}"


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with limits that a test can reach."""
    with ServerProcess(
        tmp_path_factory.mktemp("tight") / "store.db",
        BODY_TIMEOUT_S=0.5,
        HEADER_TIMEOUT_S=0.5,
        TOPICS_MAX=3,
        BATCH_EVENTS_MAX=10,
        BODY_BYTES_MAX=20_000,
        EVENT_BYTES_MAX=5_000,
    ) as process:
        yield process


def _raw(topic: str, event_id: str, field: str | None = None, text: bytes = b"") -> bytes:
    """Return an event as JSON text on one line, with one field's value written as given."""
    fields = {name: json.dumps(value).encode() for name, value in event(topic, event_id).items()}
    if field is not None:
        fields[field] = text
    return b"{" + b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in fields.items()) + b"}"


def _stored_total(http: Client) -> int:
    return int(http.stats()["lifetime"]["stored"])


def _assert_problem(answer: Response, status: int, kind: str | None = None) -> dict[str, Any]:
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status and problem["title"] and problem["detail"]
    assert re.fullmatch(r"urn:sekali:problem:[a-z-]+", problem["type"])
    assert kind is None or problem["type"].endswith(f":{kind}"), problem
    return problem


def _assert_only_neighbours(http: Client, topic: str, stored_before: int, *event_ids: str) -> None:
    assert [one["event_id"] for one in http.events(topic=topic)] == list(event_ids)
    assert [json.loads(line)["event_id"] for line in http.export(topic=topic).splitlines()] == list(event_ids)
    assert _stored_total(http) - stored_before == len(event_ids), "something else was stored"


def _name(case: Case) -> str:
    return f"{case.field}: {case.name}"


@pytest.mark.parametrize("case", BAD_FIELDS, ids=_name)
def test_bad_field_is_named_and_its_neighbours_are_stored(http: Client, topic: str, case: Case) -> None:
    before = _stored_total(http)
    bad = _raw(topic, "bad", case.field, case.text)

    single = http.publish(bad)
    problem = _assert_problem(single, 422, "invalid-event")
    [place] = problem["errors"]
    assert place["pointer"] == f"#/{case.field}" and place["detail"]
    assert (problem["received"], problem["invalid"]) == (0, 1)
    [result] = problem["results"]
    assert result["outcome"] == "invalid" and result["error"].startswith(f"{case.field}: ")

    strict = http.publish(b"[%b,%b]" % (_raw(topic, "1"), bad), prefer="handling=strict")
    assert [place["pointer"] for place in _assert_problem(strict, 422)["errors"]] == [f"#/1/{case.field}"]
    _assert_only_neighbours(http, topic, before)

    batch = http.publish(b"[%b,%b,%b]" % (_raw(topic, "1"), bad, _raw(topic, "2")))
    assert batch.status == 200 and batch.outcomes == ["stored", "invalid", "stored"]
    assert batch.json()["results"][1]["error"].startswith(f"{case.field}: ")
    assert (batch.json()["received"], batch.json()["stored"], batch.json()["invalid"]) == (2, 2, 1)

    lines = http.publish_ndjson(b"\n".join([_raw(topic, "2"), bad, _raw(topic, "3")]))
    assert lines.status == 200 and lines.outcomes == ["duplicate", "invalid", "stored"]
    assert lines.json()["results"][1]["error"].startswith(f"{case.field}: ")
    _assert_only_neighbours(http, topic, before, "1", "2", "3")


@pytest.mark.parametrize("case", GOOD_FIELDS, ids=_name)
def test_good_field_is_stored_and_read_back(http: Client, case: Case) -> None:
    """On the good side of each limit; what comes back is JSON, as sent, and the same event."""
    topic = f"good/{next(_numbers)}"
    text = _raw(topic, "1", case.field, case.text)
    sent = json.loads(text)
    answer = http.publish(text)
    assert answer.status == 200 and answer.outcomes == ["stored"], answer
    page = http.get("/events", topic=sent["topic"], after=answer.json()["results"][0]["seq"] - 1)
    [read] = page.json()
    out = case.text if case.out is None else case.out
    assert read[case.field] == json.loads(out)
    if case.field == "payload":
        assert b'"payload":%b,"processed_at"' % out in page.data, page.data
    assert http.export(topic=sent["topic"], after=read["seq"] - 1) == page.data[1:-1] + b"\n"
    again = http.publish_ndjson(page.data[1:-1])
    assert again.outcomes == ["duplicate"], "what was read can be published again"
    found = http.events(topic=sent["topic"], event_id=read["event_id"])
    assert [one["seq"] for one in found] == [read["seq"]]


@pytest.mark.parametrize("missing", ["topic", "event_id", "timestamp", "payload"])
def test_missing_field_is_named(http: Client, topic: str, missing: str) -> None:
    bad = {name: value for name, value in event(topic, "bad").items() if name != missing}
    [place] = _assert_problem(http.publish(bad), 422)["errors"]
    assert place["pointer"] == f"#/{missing}"
    answer = http.publish([event(topic, "1"), bad])
    assert answer.outcomes == ["stored", "invalid"] and answer.json()["results"][1]["error"].startswith(f"{missing}: ")
    assert len(http.events(topic=topic)) == 1


@pytest.mark.parametrize("name", ["source", "source_seq"])
def test_optional_field_may_be_absent(http: Client, topic: str, name: str) -> None:
    sent = event(topic, "1", source_seq=7)
    del sent[name]
    assert http.publish(sent).outcomes == ["stored"]
    [read] = http.events(topic=topic)
    assert read.get("source") == sent.get("source", "") and read.get("source_seq") == sent.get("source_seq")


@pytest.mark.parametrize("name", ["id", "Topic", "topic ", "level", "a/b~c", "payload2", "", "ключ"])
def test_unknown_field_makes_the_item_invalid(http: Client, topic: str, name: str) -> None:
    bad = event(topic, "bad") | {name: 1}
    [place] = _assert_problem(http.publish(bad), 422)["errors"]
    assert place["pointer"] == "#/" + name.replace("~", "~0").replace("/", "~1")
    assert "unknown" in place["detail"]
    assert http.publish([bad, event(topic, "1")]).outcomes == ["invalid", "stored"]
    assert len(http.events(topic=topic)) == 1


def test_server_fields_are_ignored_on_the_way_in(http: Client, topic: str) -> None:
    theirs = {"seq": 10**9, "processed_at": "yesterday", "duplicates": [1], "last_duplicate_at": None}
    answer = http.publish(event(topic, "1") | theirs)
    assert answer.outcomes == ["stored"] and answer.seqs != [10**9]
    [read] = http.events(topic=topic)
    assert (read["seq"], read.get("duplicates")) == (answer.seqs[0], None) and read["processed_at"] != "yesterday"


def test_an_export_can_be_published_again(http: Client, topic: str) -> None:
    events = [event(topic, f"{number}", payload={"n": number}, source_seq=number) for number in range(50)]
    http.publish(events)
    http.publish(events[:10])
    export = http.export(topic=topic)
    lines = [json.loads(line) for line in export.splitlines()]
    assert [line.get("duplicates", 0) for line in lines] == [1] * 10 + [0] * 40
    assert http.publish_ndjson(export).outcomes == ["duplicate"] * 50
    assert http.publish(http.get("/events", topic=topic).data).outcomes == ["duplicate"] * 50
    assert len(http.events(topic=topic)) == 50


@pytest.mark.parametrize("text", NOT_JSON, ids=repr)
def test_what_is_not_json_is_400_and_in_ndjson_that_line_alone_is_invalid(
    http: Client, topic: str, text: bytes
) -> None:
    before = _stored_total(http)
    bad = _raw(topic, "bad", "payload", text)
    _assert_problem(http.publish(bad), 400, "not-json")
    _assert_problem(http.publish(b"[%b,%b,%b]" % (_raw(topic, "1"), bad, _raw(topic, "2"))), 400, "not-json")
    _assert_only_neighbours(http, topic, before)
    lines = http.publish_ndjson(b"\n".join([_raw(topic, "1"), bad, _raw(topic, "2")]))
    assert lines.status == 200 and lines.outcomes == ["stored", "invalid", "stored"]
    assert lines.json()["results"][1]["error"]
    _assert_only_neighbours(http, topic, before, "1", "2")


@pytest.mark.parametrize("body", BAD_DOCUMENTS, ids=lambda body: repr(body[:20]))
def test_document_that_is_not_json_is_400(http: Client, body: bytes) -> None:
    _assert_problem(http.publish(body), 400, "not-json")


@pytest.mark.parametrize("body", ENDLESS_DOCUMENTS, ids=lambda body: repr(body[:20]))
def test_document_without_an_end_and_too_deep_is_refused(http: Client, body: bytes) -> None:
    assert http.publish(body).status in {400, 422}


@pytest.mark.parametrize("body", NO_EVENTS, ids=lambda body: repr(body[:20]))
def test_json_without_a_valid_event_is_422(http: Client, body: bytes) -> None:
    document = json.loads(body)
    items = len(document) if isinstance(document, list) else 1
    problem = _assert_problem(http.publish(body), 422, "invalid-event")
    assert (problem["received"], problem["invalid"], len(problem["results"])) == (0, items, items)
    if not body.startswith(b"["):
        _assert_problem(http.publish_ndjson(body), 422, "invalid-event")


@pytest.mark.parametrize("body", [b"[]", b" [ ]\n"])
def test_empty_array_is_200_with_zeros(http: Client, body: bytes) -> None:
    answer = http.publish(body)
    zeros = dict.fromkeys(("received", "stored", "duplicate", "conflict", "invalid"), 0)
    assert answer.status == 200 and answer.json() == zeros | {"results": []}
    assert http.publish_ndjson(b"\n\n").json() == zeros | {"results": []}


@pytest.mark.parametrize(
    "ending", [b"\n", b"\r\n", b"\n\n", b"\n \t\r\n"], ids=["line feed", "CRLF", "empty line", "blank line"]
)
def test_ndjson_lines(http: Client, topic: str, ending: bytes) -> None:
    lines = [_raw(topic, f"{number}") for number in range(3)]
    assert http.publish_ndjson(ending.join(lines)).outcomes == ["stored"] * 3, "no end of the last line"
    assert http.publish_ndjson(ending + ending.join(lines) + ending).outcomes == ["duplicate"] * 3


def test_ndjson_counts_items_that_are_no_json_among_the_others(http: Client, topic: str) -> None:
    body = b"\n".join(
        [b"{", _raw(topic, "1"), b"", b"[]", _raw(topic, "2", "topic", b'"/"'), b"\xff", _raw(topic, "2")]
    )
    answer = http.publish_ndjson(body)
    assert answer.outcomes == ["invalid", "stored", "invalid", "invalid", "invalid", "stored"]
    errors = [result.get("error", "") for result in answer.json()["results"]]
    assert errors[3].startswith("topic: ") and all(errors[place] for place in (0, 2, 4))


def test_array_form_and_pretty_printed_form(http: Client, topic: str) -> None:
    pretty = json.dumps([event(topic, "1", payload={"a": [1, {"b": "x\ny"}]})], indent=4).replace("\n", "\r\n")
    assert http.publish(pretty.encode()).outcomes == ["stored"]
    [line] = http.export(topic=topic).splitlines()
    assert json.loads(line)["payload"] == {"a": [1, {"b": "x\ny"}]}, "one event is one line"


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(b'"schema/dup/a"', b'"schema/dup/b"', "schema/dup/b"), (b'"schema/dup/d"', b'"schema/dup/c"', "schema/dup/c")],
)
def test_last_of_duplicate_keys_wins(http: Client, first: bytes, second: bytes, kept: str) -> None:
    text = _raw("x", "1", "topic", first)[:-1] + b', "topic": %b}' % second
    assert http.publish(text).outcomes == ["stored"]
    assert len(http.events(topic=kept)) == 1
    assert http.events(topic=json.loads(first)) == []


# Preferences.


def test_return_minimal_gives_counts_only(http: Client, topic: str) -> None:
    answer = http.publish([event(topic, "1"), event(topic, "1"), {}], prefer="return=minimal")
    assert answer.status == 200 and answer.headers["Preference-Applied"] == "return=minimal"
    assert answer.json() == {"received": 2, "stored": 1, "duplicate": 1, "conflict": 0, "invalid": 1}


def test_handling_strict_stores_all_or_nothing(http: Client, topic: str) -> None:
    before = _stored_total(http)
    items = [event(topic, "1"), event(topic, "2", timestamp="?"), event(topic, "3"), {}]
    refused = http.publish(items, prefer="handling=strict")
    problem = _assert_problem(refused, 422, "invalid-event")
    assert [place["pointer"] for place in problem["errors"]] == ["#/1/timestamp", "#/3/topic"]
    assert (problem["received"], problem["stored"], problem["invalid"]) == (0, 0, 2)
    _assert_problem(http.publish_ndjson(ndjson(items), prefer="handling=strict"), 422)
    _assert_only_neighbours(http, topic, before)
    answer = http.publish([items[0], items[2]], prefer="handling=strict")
    assert answer.status == 200 and answer.outcomes == ["stored", "stored"]
    assert answer.headers["Preference-Applied"] == "handling=strict"
    conflict = http.publish([event(topic, "1", payload=0), event(topic, "4")], prefer="handling=strict")
    assert conflict.status == 200 and conflict.outcomes == ["conflict", "stored"], "a conflict is no invalid item"


def test_respond_async_answers_202_and_stores(http: Client, topic: str) -> None:
    answer = http.publish([event(topic, "1"), event(topic, "2"), {}], prefer="respond-async")
    assert answer.status == 202 and answer.headers["Preference-Applied"] == "respond-async"
    assert answer.json() == {"received": 2, "accepted": 2, "invalid": 1}
    wait_until(lambda: len(http.events(topic=topic)) == 2, "the events are stored")
    single = http.publish(event(topic, "3"), prefer="respond-async")
    assert single.status == 202
    wait_until(lambda: len(http.events(topic=topic)) == 3, "the event is stored")
    _assert_problem(http.publish([{}], prefer="respond-async"), 422)
    _assert_problem(http.publish(b"{", prefer="respond-async"), 400)


@pytest.mark.parametrize(
    ("prefer", "status", "applied"),
    [
        ("return=minimal, handling=strict", 200, {"return=minimal", "handling=strict"}),
        ('Return="minimal"', 200, {"return=minimal"}),
        ("respond-async; wait=10, handling=strict", 202, {"respond-async", "handling=strict"}),
        ("return=representation, handling=lenient, wait=5, odd", 200, set()),
        ("", 200, set()),
        (",;=,", 200, set()),
    ],
)
def test_preferences_together_and_unknown_ones(
    http: Client, topic: str, prefer: str, status: int, applied: set[str]
) -> None:
    answer = http.publish([event(topic, "1")], prefer=prefer)
    assert answer.status == status
    header = answer.headers.get("Preference-Applied", "")
    assert {name.strip() for name in header.split(",") if name.strip()} == applied


def test_strict_and_async_refuse_before_they_accept(http: Client, topic: str) -> None:
    _assert_problem(http.publish([event(topic, "1"), {}], prefer="respond-async, handling=strict"), 422)
    assert http.events(topic=topic) == []


# Statuses.

READ_ROUTES = ["/events", "/subscribe", "/stats", "/healthz", "/topics", "/sources", "/conflicts", "/metrics"]


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, path) for path in READ_ROUTES for method in ("POST", "PUT", "DELETE")]
    + [(method, path) for path in ("/publish", "/exists") for method in ("GET", "PUT", "DELETE", "PATCH")],
)
def test_wrong_method_is_405_and_names_the_right_one(http: Client, method: str, path: str) -> None:
    answer = http.request(method, path, body=b"{}" if method != "GET" else None)
    _assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] in ({"GET", "GET, HEAD"} if path in READ_ROUTES else {"POST"})


@pytest.mark.parametrize("path", ["/", "/publish/", "/nothing", "/events/1"])
def test_unknown_path_is_404_and_never_a_redirect(http: Client, path: str) -> None:
    _assert_problem(http.request("POST", path, body=b"{}"), 404)


def _post_head(length: str, extra: str = "") -> bytes:
    return f"POST /publish HTTP/1.1\r\nHost: localhost\r\n{extra}{length}\r\n\r\n".encode()


def test_slow_body_is_408(tight: ServerProcess) -> None:
    with RawConnection(tight.port) as connection:
        connection.send(_post_head("Content-Length: 100") + b"[")
        answer = connection.receive_all()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head.lower()
    assert json.loads(body)["type"].endswith(":too-slow") and b"BODY_TIMEOUT_S" in body


@pytest.mark.parametrize("sent", [b"", b"POST /publish HTTP/1.1\r\nHost:"], ids=["nothing", "half a header"])
def test_slow_header_ends_the_connection(tight: ServerProcess, sent: bytes) -> None:
    with RawConnection(tight.port) as connection:
        connection.send(sent)
        answer = connection.receive_all()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_slow_body_in_drips_is_408(tight: ServerProcess) -> None:
    """The time is for the whole body: a byte now and then does not extend it."""
    with RawConnection(tight.port) as connection:
        connection.send(_post_head("Content-Length: 1000000").replace(b"1000000", b"19000"))
        connection.socket.settimeout(0.02)
        answer = b""
        for _ in range(10_000):
            try:
                answer = connection.socket.recv(65536)
                break
            except TimeoutError:
                connection.send(b" ")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_too_many_items_is_413(tight: ServerProcess) -> None:
    batch = [event("limits", f"{number}", payload=0) for number in range(11)]
    for answer in (tight.http.publish(batch), tight.http.publish_ndjson(ndjson(batch))):
        problem = _assert_problem(answer, 413, "too-large")
        assert "BATCH_EVENTS_MAX" in problem["detail"] and "10" in problem["detail"]
    bad = _assert_problem(tight.http.publish([{}] * 11), 413)
    assert "BATCH_EVENTS_MAX" in bad["detail"], "items that are not valid count too"
    assert tight.http.events(topic="limits") == []
    assert set(tight.http.publish(batch[:10]).outcomes) == {"stored"}


def test_too_large_body_is_413(tight: ServerProcess) -> None:
    text = _raw("limits", "large")
    assert tight.http.publish(text + b" " * (20_000 - len(text))).status == 200
    problem = _assert_problem(tight.http.publish(text + b" " * (20_001 - len(text))), 413, "too-large")
    assert "BODY_BYTES_MAX" in problem["detail"] and "20000" in problem["detail"]


def test_too_large_body_is_413_before_it_is_sent(tight: ServerProcess) -> None:
    with RawConnection(tight.port) as connection:
        connection.send(_post_head("Content-Length: 1000000000000"))
        assert connection.receive_answer().startswith(b"HTTP/1.1 413 ")


def test_too_large_body_in_chunks_is_413(tight: ServerProcess) -> None:
    with RawConnection(tight.port) as connection:
        connection.send(_post_head("Transfer-Encoding: chunked") + b"5000\r\n" + b" " * 0x5000 + b"\r\n")
        answer = connection.receive_answer()
    assert answer.startswith(b"HTTP/1.1 413 ") and b"BODY_BYTES_MAX" in answer


def test_body_in_chunks_is_read(http: Client, server: ServerProcess, topic: str) -> None:
    text = _raw(topic, "1")
    with RawConnection(server.port) as connection:
        connection.send(_post_head("Transfer-Encoding: chunked", "Connection: close\r\n"))
        for start in range(0, len(text), 40):
            piece = text[start : start + 40]
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n")
        assert b'"stored":1' in connection.receive_all()


@pytest.mark.parametrize("ending", [b"[", b"5\r\n[{}", b"zz\r\n"], ids=["cut", "cut in a chunk", "no chunk"])
def test_connection_that_ends_inside_the_body_stores_nothing(
    http: Client, server: ServerProcess, ending: bytes
) -> None:
    before = _stored_total(http)
    with RawConnection(server.port) as connection:
        kind = "Content-Length: 1000" if ending == b"[" else "Transfer-Encoding: chunked"
        connection.send(_post_head(kind) + ending)
    assert _stored_total(http) == before and http.get("/healthz").status == 200


def test_one_item_too_large_is_invalid_alone(tight: ServerProcess) -> None:
    values = len("limits") + len("too large") + len(event("", "")["timestamp"]) + len("test")
    fits = event("limits", "just fits", payload="x" * (5_000 - values - 2))
    large = event("limits", "too large", payload="x" * (5_000 - values - 1))
    answer = tight.http.publish([fits, large, event("limits", "small")])
    assert answer.outcomes == ["stored", "invalid", "stored"]
    assert "EVENT_BYTES_MAX" in answer.json()["results"][1]["error"]
    problem = _assert_problem(tight.http.publish(large), 422)
    assert "EVENT_BYTES_MAX" in problem["errors"][0]["detail"]


def test_topics_max_reached(launch: Any) -> None:
    """One topic more than the store takes is invalid; those it has go on, and strict requests store nothing."""
    server = launch(TOPICS_MAX=3)
    http: Client = server.http
    answer = http.publish([event(f"t/{number}", "1") for number in (1, 2, 3, 4, 1)])
    assert answer.outcomes == ["stored", "stored", "stored", "invalid", "duplicate"]
    assert answer.json()["results"][3]["error"].startswith("topic: ")
    assert "TOPICS_MAX" in answer.json()["results"][3]["error"]
    assert (answer.json()["received"], answer.json()["invalid"]) == (4, 1)
    single = http.publish(event("t/5", "1"))
    assert _assert_problem(single, 422, "invalid-event")["errors"][0]["pointer"] == "#/topic"
    strict = http.publish([event("t/1", "2"), event("t/5", "1")], prefer="handling=strict")
    assert "#/1/topic" in [place["pointer"] for place in _assert_problem(strict, 422)["errors"]]
    assert http.publish([event("t/1", "3"), event("t/2", "3")]).outcomes == ["stored", "stored"]
    stats = http.stats()
    assert (stats["topics"], stats["topics_count"]) == (["t/1", "t/2", "t/3"], 3)
    assert stats["lifetime"] == {"received": 6, "stored": 5, "duplicate": 1, "conflict": 0}
    server.restart()
    assert server.http.publish([event("t/4", "1"), event("t/3", "9")]).outcomes == ["invalid", "stored"]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "json",
        "application/json; charset=utf-16",
        "application/x-ndjson; charset=latin-1",
    ],
)
def test_unknown_content_type_is_415_with_a_hint(http: Client, topic: str, content_type: str) -> None:
    answer = http.request("POST", "/publish", body=_raw(topic, "1"), headers={"Content-Type": content_type})
    problem = _assert_problem(answer, 415, "unsupported-media")
    hint = "UTF-8" if "charset" in content_type else "application/json"
    assert hint in problem["detail"], problem
    assert http.events(topic=topic) == []


@pytest.mark.parametrize("encoding", ["deflate", "zstd", "br", "gzip, identity", "gzip, gzip", "odd"])
def test_unknown_content_encoding_is_415_with_a_hint(http: Client, topic: str, encoding: str) -> None:
    answer = http.request("POST", "/publish", body=_raw(topic, "1"), headers={"Content-Encoding": encoding})
    problem = _assert_problem(answer, 415, "unsupported-media")
    assert "uncompressed" in problem["detail"] and answer.headers["Accept-Encoding"] == "gzip, identity"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json"},
        {"Content-Type": 'Application/JSON; Charset="UTF-8"'},
        {"Content-Type": NDJSON},
        {"Content-Type": "application/x-ndjson; charset=utf-8"},
        {"Content-Encoding": "identity"},
    ],
    ids=str,
)
def test_known_content_types(http: Client, topic: str, headers: dict[str, str]) -> None:
    answer = http.request("POST", "/publish", body=_raw(topic, "1"), headers=headers)
    assert answer.status == 200 and answer.json()["stored"] == 1


@pytest.mark.parametrize(
    "head",
    [
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: 1\r\n" * 5000 + b"\r\n",
        b"GET /events?topic=" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["one large", "many", "address"],
)
def test_too_large_header_is_431(server: ServerProcess, head: bytes) -> None:
    with RawConnection(server.port) as connection:
        connection.send(head)
        answer = connection.receive_answer()
    assert answer.startswith(b"HTTP/1.1 431 ") and b":headers-too-large" in answer


@pytest.mark.parametrize(
    "head",
    [b"POST /publish HTTP/1.1\r\nHost: localhost\r\nX-Endless: ", b"GET /", b"GET / HTTP/1.1\r\nX-Endless"],
    ids=["value", "address", "name"],
)
def test_header_without_an_end_is_431_and_is_not_collected(server: ServerProcess, head: bytes) -> None:
    """The limit counts what arrives, not what is complete: else a header takes the memory of the server."""
    pieces = 0
    with RawConnection(server.port) as connection:
        try:
            connection.send(head)
            while pieces < 800:
                connection.send(b"x" * 65536)
                pieces += 1
        except OSError:  # the server has ended the connection
            pass
    assert pieces < 800, "the server read 50 MB of one header"
    with RawConnection(server.port) as connection:
        connection.send(head + b"x" * 50_000)
        assert connection.receive_answer().startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
    ],
    ids=["nonsense", "length no number", "negative length", "two lengths", "length and chunks"],
)
def test_what_is_not_http_is_400(server: ServerProcess, request_bytes: bytes) -> None:
    with RawConnection(server.port) as connection:
        connection.send(request_bytes)
        assert connection.receive_all().startswith(b"HTTP/1.1 400 ")


# Bodies that are meant to hurt. The server's limits are the default ones: 10 MiB and 10,000 items.

MEMORY_BYTES_MAX = 512 * 1024 * 1024

HOSTILE = [
    ("millions of numbers", b"[" + b"0," * 5_000_000 + b"0]", 413),
    ("millions of objects", b"[" + b"{}," * 3_000_000 + b"{}]", 413),
    ("millions of empty items", b"[" + b"," * 10_000_000 + b"]", 400),
    ("millions of brackets", b"[" * 10_000_000, 400),
    ("millions of closed brackets", b"[" * 5_000_000 + b"]" * 5_000_000, 422),
    ("millions of keys", b'{"a":{' + b'"":0,' * 2_000_000 + b'"":0}}', 422),
    ("a string without an end", b'["' + b"\\" * 10_000_000, 400),
    ("quotes without an end", b"[" + b'"",' * 3_000_000 + b'"', 413),
    ("a number of millions of digits", b"[" + b"9" * 10_000_000 + b"]", 422),
]


@pytest.mark.parametrize(("body", "status"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_body_is_refused_and_the_server_goes_on(
    http: Client, server: ServerProcess, topic: str, body: bytes, status: int
) -> None:
    answer = http.publish(body)
    problem = _assert_problem(answer, status)
    assert status != 413 or "BATCH_EVENTS_MAX" in problem["detail"]
    assert http.publish(event(topic, "1")).status == 200
    assert server.resident_bytes_peak < MEMORY_BYTES_MAX, "the limits do not bound the memory"


def test_payloads_of_tiny_elements_stay_within_the_memory(http: Client, server: ServerProcess, topic: str) -> None:
    """Valid payloads whose elements take forty times their length in memory once they are looked at."""
    element = b'{"":0}'
    payload = b"[" + (element + b",") * (1_000_000 // (len(element) + 1)) + b"0]"
    answer = http.publish(b"[%b]" % b",".join(_raw(topic, f"{number}", "payload", payload) for number in range(10)))
    assert answer.outcomes == ["stored"] * 10
    peak = server.resident_bytes_peak
    assert peak < MEMORY_BYTES_MAX, f"{peak:,} bytes"


@pytest.mark.parametrize("line", [b"\n", b"0\n", b"{}\n", b"[" * 100 + b"\n"], ids=repr)
def test_hostile_ndjson_is_refused_and_the_server_goes_on(http: Client, topic: str, line: bytes) -> None:
    answer = http.publish_ndjson(line * (10 * 1024 * 1024 // len(line)))
    assert "BATCH_EVENTS_MAX" in _assert_problem(answer, 413)["detail"]
    assert http.publish(event(topic, "1")).status == 200


def test_other_publishers_are_served_while_a_hostile_body_is_read(
    http: Client, server: ServerProcess, topic: str
) -> None:
    body = b"[" + b"[0]," * 9_999 + b"[" + b"{}," * 3_000_000 + b"{}]]"
    with RawConnection(server.port) as connection:
        connection.send(_post_head(f"Content-Length: {len(body)}") + body)
        connection.socket.setblocking(False)
        assert http.publish(event(topic, "1")).status == 200
        connection.socket.setblocking(True)
        assert connection.receive_answer().startswith(b"HTTP/1.1 422 ")
