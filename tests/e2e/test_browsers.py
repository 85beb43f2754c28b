"""What keeps other sites' pages out, headers on every answer, rates, and who the log says was refused."""

import base64
import hashlib
import re
from typing import Any

import pytest

from e2e.conftest import Launch
from e2e.server import NDJSON, Client, RawConnection, Response, ServerProcess, event, run_sekali

BOOTSTRAP = "boot." + "b" * 43
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
REQUESTS: list[tuple[str, str, bytes | None]] = [
    ("POST", "/publish", b'{"topic": "evil", "event_id": "1", "timestamp": "2026-11-23T10:00:00Z", "payload": 1}'),
    ("GET", "/events", None),
    ("GET", "/subscribe", None),
    ("GET", "/topics", None),
    ("GET", "/sources", None),
    ("GET", "/conflicts", None),
    ("POST", "/exists", b'{"topic": "a", "event_ids": ["1"]}'),
    ("GET", "/stats", None),
    ("GET", "/metrics", None),
    ("GET", "/healthz", None),
    ("GET", "/docs", None),
    ("GET", "/openapi.json", None),
    ("GET", "/subscriptions", None),
    ("PUT", "/subscriptions/evil", b'{"topic": "evil"}'),
    *(("GET", f"/subscriptions/evil{rest}", None) for rest in ("", "/dead-letters")),
    *(
        ("POST", f"/subscriptions/evil/{what}", b"{}")
        for what in ("pull", "ack", "nack", "extend", "seek", "dead-letters/replay", "dead-letters/drop")
    ),
    ("DELETE", "/subscriptions/evil", None),
    ("GET", "/nowhere", None),
    ("OPTIONS", "/publish", None),
    ("OPTIONS", "/events", None),
]


def ask(server: ServerProcess, request: tuple[str, str, bytes | None], **headers: str) -> Response:
    method, path, body = request
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.http.request(method, path, body=body, headers=named)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8080", "Origin": "http://evil.example:8080", "Sec_Fetch_Site": "same-origin"},
    ],
    ids=str,
)
def test_a_page_of_another_site_gets_nothing(server: ServerProcess, headers: dict[str, str]) -> None:
    for request in REQUESTS:
        answer = ask(server, request, **headers)
        assert answer.status == 403 and answer.json()["type"] == "urn:sekali:problem:foreign-page", request
    assert server.http.events(topic="evil") == [] and server.http.get("/subscriptions/evil").status == 404


def test_our_own_page_and_programs_get_answers(server: ServerProcess) -> None:
    own = server.url.removeprefix("http://")
    for headers in (
        {},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "same-origin", "Origin": server.url},
        {"Origin": server.url},
        {"Host": f"localhost:{server.port}"},
        {"Host": own, "Origin": f"http://{own}"},
    ):
        answer = ask(server, ("POST", "/publish", b"[]"), **headers)
        assert answer.status == 200, headers
        assert ask(server, ("GET", "/events", None), **headers).status == 200


def test_with_keys_too_other_sites_are_refused(launch: Launch) -> None:
    """A browser that was once given user and password for a server sends them with what any page asks of it."""
    server = launch(BOOTSTRAP_KEY=BOOTSTRAP)
    key_id, _, secret = BOOTSTRAP.partition(".")
    basic = "Basic " + base64.b64encode(f"{key_id}:{secret}".encode()).decode()
    for request in REQUESTS:
        assert ask(server, request, Authorization=basic, Sec_Fetch_Site="cross-site").status == 403
    assert ask(server, REQUESTS[0], Authorization=basic, Host="logs.example").status == 200


def test_no_other_site_may_read_an_answer(server: ServerProcess) -> None:
    """There is no CORS: no answer to anybody allows an origin, and no preflight is answered with leave."""
    for request in REQUESTS:
        for headers in ({}, {"Origin": server.url}, {"Origin": "https://evil.example"}):
            asked = headers | {
                "Access_Control_Request_Method": "POST",
                "Access_Control_Request_Headers": "authorization",
            }
            answer = ask(server, request, **asked)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")], request
            if request[0] == "OPTIONS":
                assert answer.status in {403, 405}


def assert_secured(answer: Any) -> None:
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.getlist(name) == [value], (answer, name)


def test_every_answer_has_the_security_headers(launch: Launch) -> None:
    server = launch(HEADER_TIMEOUT_S=0.2, BODY_BYTES_MAX=1000, EVENT_BYTES_MAX=1000)
    statuses = set()
    extra: list[tuple[str, str, bytes | None]] = [
        ("POST", "/publish", b"{"),
        ("POST", "/publish", b"{}"),
        ("POST", "/publish", b" " * 2000),
        ("GET", "/publish", None),
        ("POST", "/events", b""),
        ("GET", "/events?order=x", None),
        ("GET", "/events?after=9999", None),
        ("GET", "/docs/static/swagger-ui.css", None),
    ]
    for request in [*REQUESTS, *extra]:
        for headers in ({}, {"Origin": "null"}):
            answer = ask(server, request, **headers)
            statuses.add(answer.status)
            if request[1] != "/docs" or answer.status != 200:
                assert_secured(answer)
    for kind in (NDJSON, "application/json"):
        assert_secured(server.http.request("GET", "/events", headers={"Accept": kind}))
    assert {200, 400, 403, 404, 405, 410, 413, 422} <= statuses
    for sent in (
        b"GET /events HTTP/1.1\r\nHost",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 50_000 + b"\r\n\r\n",
    ):
        with RawConnection(server.port) as connection:  # answered by the connection itself
            connection.send(sent)
            head = connection.receive_all().partition(b"\r\n\r\n")[0].decode().lower()
        for name, value in SECURITY_HEADERS.items():
            assert f"\r\n{name.lower()}: {value}" in head, head


def test_with_keys_every_refusal_has_the_security_headers(launch: Launch) -> None:
    server = launch(BOOTSTRAP_KEY=BOOTSTRAP)
    for request in REQUESTS:
        answer = ask(server, request)
        assert answer.status in {200, 401}
        if request[1] != "/docs":
            assert_secured(answer)


def test_the_page_of_the_documentation_may_run_its_own_script_and_no_other(server: ServerProcess) -> None:
    page = server.http.get("/docs")
    (policy,) = page.headers.getlist("Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["frame-ancestors"] == "'none'"
    scripts = re.findall(rb"<script>(.*?)</script>", page.data, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts}
    assert len(hashes) == 1 and set(rules["script-src"].split()) == {"'self'", *hashes}
    loaded = re.findall(rb"<(?:script|link|img)[^>]*?(?:src|href)=\"([^\"]+)\"", page.data)
    assert loaded and all(one.startswith(b"/docs/static/") for one in loaded)
    assert rules["connect-src"] == "'self'", "it asks for /openapi.json, and whatever is tried out"
    for name in ("X-Content-Type-Options", "Cache-Control", "Referrer-Policy"):
        assert page.headers.getlist(name) == [SECURITY_HEADERS[name]]


# Rates.


def test_a_rate_holds_for_a_name_and_the_client_waits(launch: Launch, tmp_path: Any) -> None:
    created = [
        run_sekali("keys", "create", "--name", name, "--scope", "admin", "--db-path", tmp_path / "store.db")
        for name in ("one", "other", "one")
    ]
    one, other, one_again = (result.stdout.strip() for result in created)
    server = launch(RATE_LIMIT_PER_S=400)
    http = Client(server.url, key=one)
    assert http.publish([event("a", f"{number}") for number in range(1000)]).status == 200
    for asked in (http, Client(server.url, key=one_again)):
        for answer in (asked.publish(event("a", "x")), asked.get("/events")):
            assert answer.status == 429 and answer.json()["type"] == "urn:sekali:problem:rate-limited"
            assert 1 <= int(answer.headers["Retry-After"]) <= 5
        assert asked.get("/healthz").status == 200
    assert Client(server.url, key=other).publish(event("a", "x")).status == 200
    result = run_sekali(
        "publish",
        "--count",
        600,
        "--batch-size",
        300,
        "--connections",
        1,
        "--json",
        AGGREGATOR_URL=server.url,
        API_KEY=one,
    )
    assert result.returncode == 0, result.stderr
    assert '"sent": 600' in result.stdout and '"retries": 0' not in result.stdout


def test_without_keys_all_share_a_rate(launch: Launch) -> None:
    server = launch(RATE_LIMIT_PER_S=50)
    assert server.http.publish([event("a", f"{number}") for number in range(100)]).status == 200
    assert server.http.get("/events").status == 429
    assert server.http.publish([]).status == 429


# The log.


def test_the_log_says_who_was_refused(launch: Launch) -> None:
    server = launch(BOOTSTRAP_KEY=BOOTSTRAP, TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8")
    for method, path in (("POST", "/publish"), ("GET", "/events")):
        answer = server.http.request(method, path, headers={"X-Forwarded-For": "1.1.1.1, 203.0.113.9, 10.0.0.3"})
        assert answer.status == 401
        line = server.wait_for_log("refused")
        assert (line["status"], line["path"], line["client"], line["name"]) == (401, path, "203.0.113.9", None)
    metrics = Client(server.url, key=BOOTSTRAP).get("/metrics").data.decode()
    assert 'sekali_refusals_total{status="401"} 2.0' in metrics


def test_an_address_that_anybody_may_claim_is_not_believed(launch: Launch) -> None:
    server = launch(BOOTSTRAP_KEY=BOOTSTRAP)
    for method, path in (("POST", "/publish"), ("GET", "/events")):
        server.http.request(method, path, headers={"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"})
        assert server.wait_for_log("refused")["client"] == "127.0.0.1"


def test_a_refused_request_cannot_forge_a_line(launch: Launch) -> None:
    """What strangers send stands in the log: a path, and an address that a proxy passes on."""
    server = launch(BOOTSTRAP_KEY=BOOTSTRAP, TRUSTED_PROXIES="127.0.0.1")
    server.http.request(
        "GET", "/a%0A%7B%22event%22:%22forged%22%7D%1B%5B2J", headers={"X-Forwarded-For": "1.1.1.1\t, x y"}
    )
    line = server.wait_for_log("refused")
    assert line["path"] == '/a\n{"event":"forged"}\x1b[2J' and line["client"] == "127.0.0.1"
    assert not [entry for entry in server.log if entry["event"] == "forged"]
