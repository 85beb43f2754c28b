"""The server over HTTP: publishes and reads, and sends again what may succeed later."""

import json
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import urllib3

from sekali.client.backoff import Patience, parse_retry_after
from sekali.client.errors import ClientError, Gone, NotSekali, Refused, StreamCut, TooLarge, Unreachable

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
GIVE_UP_AFTER_S = 60.0
RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
NDJSON = "application/x-ndjson"
_STREAM_CHUNK_BYTES = 64 * 1024
_COUNTS = ("received", "stored", "duplicate", "conflict", "invalid")
_NEXT_LINK = re.compile(r"<([^>]*)>\s*;[^,]*\brel=\"?next\"?")

Params = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said about one request.

    ``results`` are the verdicts in the order sent: ``{"outcome", "seq"}`` or ``{"outcome": "invalid", "error"}``.
    ``latency_s`` is how long the attempt took that was answered.
    """

    received: int
    stored: int
    duplicate: int
    conflict: int
    invalid: int
    results: list[dict[str, Any]]
    latency_s: float


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a GET: its text, and the parameters that lead to the next page, if there may be one."""

    text: str
    next: str | None


class Server:
    """A Sekali server at a base URL. Safe to use from as many threads as it has connections.

    Args:
        url: ``http://`` or ``https://``, a path before the routes is allowed.
        api_key: ``id.secret``; without it, a server that asks for keys refuses.
        ca_file: certificates (PEM) to trust for https instead of the system's.
        give_up_after_s: how long one request is tried; 0 tries once, ``math.inf`` for ever.
        connections_max: connections kept open.
        on_wait: told why and how many attempts failed so far, before each wait for another one.
        clock: monotonic seconds.
        sleep: waits for so many seconds.
        random_share: random numbers in [0, 1).

    Raises:
        ValueError: the URL is not one of a server, or the key or the file of certificates is not what it should be.

    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: str | None = None,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        connections_max: int = 1,
        on_wait: Callable[[str, int], None] = lambda reason, failures: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not the URL of a server; write one such as http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._give_up_after_s = give_up_after_s
        self._on_wait = on_wait
        self._clock = clock
        self._sleep = sleep
        self._random_share = random_share
        # Not given to the pool, whose headers count only for a request that has none of its own.
        self._headers = {"User-Agent": "sekali-client", **_authorization(api_key)}
        # A single attempt gets the whole time-out; otherwise none may last much beyond the moment to give up.
        timeout_s = min(REQUEST_TIMEOUT_S, max(1.0, give_up_after_s)) if give_up_after_s else REQUEST_TIMEOUT_S
        self._pool = urllib3.connection_from_url(
            url,
            maxsize=connections_max,
            retries=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s),
            **_trust(parts.scheme, ca_file),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def publish(self, events: Sequence[bytes]) -> Answer:
        """Publish events in order, in one request, and return what became of each.

        Each event is a JSON object on one line (see ``encode_event``). A request that got no answer is sent again as
        it is; the server knows what it has.

        Raises:
            Unreachable: gave up. Some of the events may be stored; sending them again is safe.
            TooLarge: send fewer at once.
            Refused, NotSekali: sending it again would not help.

        """
        headers = {"Content-Type": NDJSON, "Accept": "application/json"}
        response, latency_s = self._exchange("POST", "/publish", headers=headers, body=b"\n".join(events))
        document = _json_object(response.data)
        # Nothing valid is a 422 and still has a verdict for every item.
        if response.status in {200, 422} and document is not None and _is_answer(document, len(events)):
            counts = {name: document[name] for name in _COUNTS}
            return Answer(**counts, results=document["results"], latency_s=latency_s)
        raise self._failure(response)

    def get(self, path: str, params: Params | str | None = None) -> Page:
        """Return a document. ``params`` are a mapping (None values are left out) or ``next`` of the page before.

        Raises:
            Unreachable, Refused, NotSekali: see ``publish``.
            Gone: a position in the parameters is not one of this log.

        """
        response, _ = self._exchange("GET", path, params=params, headers={"Accept": "application/json"})
        if response.status != 200:
            raise self._failure(response)
        try:
            text = response.data.decode()
        except UnicodeDecodeError:
            raise self._not_sekali("the answer is not UTF-8") from None
        return Page(text, _next_params(response.headers.get("Link", "")))

    def get_object(self, path: str) -> dict[str, Any]:
        """Return a document that is a JSON object. Raises as ``get`` does."""
        document = _json_object(self.get(path).text)
        if document is None:
            raise self._not_sekali(f"{path} is not a JSON object")
        return document

    def send(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        """Send a JSON document, and return the object that is the answer; empty where the answer is.

        Only for what may be sent twice: a request that got no answer is sent again. Raises as ``get`` does.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        body = None if document is None else json.dumps(document).encode()
        response, _ = self._exchange(method, path, headers=headers, body=body)
        if response.status == 204:
            return {}
        answer = _json_object(response.data)
        if response.status not in {200, 201} or answer is None:
            raise self._failure(response)
        return answer

    def stream(self, path: str, params: Params | None = None) -> Iterator[bytes]:
        """Yield the lines of an NDJSON stream, without line ends, as they come.

        Raises:
            StreamCut: it ended early; what was yielded is good.
            Unreachable, Refused, NotSekali, Gone: see ``get``.

        """
        rest = b""
        for piece in self.pieces(path, params, NDJSON):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def pieces(
        self,
        path: str,
        params: Params | None,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        on_open: Callable[[Callable[[], None]], object] = lambda hang_up: None,
        **options: Any,
    ) -> Iterator[bytes]:
        """Yield the body of an answer in pieces, as they come. ``options`` are further ones of urllib3's ``urlopen``.

        ``on_open`` is given what ends the wait for the next piece, from any thread, as if the stream had been cut.

        Raises:
            StreamCut: it ended early; what was yielded is good.
            Unreachable, Refused, NotSekali, Gone: see ``get``.

        """
        asked = {"Accept": media_type, **(headers or {})}
        response, _ = self._exchange("GET", path, params=params, headers=asked, preload_content=False, **options)
        complete = False
        try:
            if response.status != 200:
                raise self._failure(response)
            if not (found := response.headers.get("Content-Type", media_type)).startswith(media_type):
                raise self._not_sekali(f"content type {found}")
            on_open(partial(_hang_up, response))
            while piece := response.read1(_STREAM_CHUNK_BYTES, decode_content=False):
                yield piece
            complete = True
        except urllib3.exceptions.HTTPError as error:
            raise StreamCut(f"{self.url} cut the stream short: {_reason(error)}") from error
        finally:
            if complete:
                response.release_conn()
            else:  # whatever is left on this connection is of no use to another request
                response.close()

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Params | str | None = None,
        body: bytes | None = None,
        **options: Any,
    ) -> tuple[urllib3.BaseHTTPResponse, float]:
        """Send a request until the answer is final; return that, and the seconds the last attempt took."""
        patience = Patience(self._give_up_after_s, self._clock, self._random_share)
        target = self._prefix + path + _query(params)
        headers = {**self._headers, **headers}
        while True:
            retry_after_s, hint = 0.0, "Check that the server runs and that the URL is right"
            started_s = self._clock()
            try:
                response = self._pool.urlopen(
                    method,
                    target,
                    body=body,
                    headers=headers,
                    redirect=False,
                    **options,
                )
                if response.status not in RETRIED_STATUSES:
                    return response, self._clock() - started_s
                reason, hint = _problem(response), "Look at the server's log and /healthz, and try again"
                retry_after_s = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            except urllib3.exceptions.HTTPError as error:
                if isinstance(error, urllib3.exceptions.SSLError) and not _hung_up(error):
                    raise NotSekali(
                        f"{self.url}: no secure connection ({_reason(error)}). Check the name in the URL and "
                        "the server's certificate; if a CA of your own has signed it, name that: SEKALI_CA_FILE or "
                        "--ca-file"
                    ) from error
                reason = _reason(error)
            wait_s = patience.next_wait_s(retry_after_s)
            if wait_s is None:
                attempts = f" (attempts: {patience.failures})" if patience.failures > 1 else ""
                raise Unreachable(f"{self.url}: {reason}{attempts}. {hint}", retry_after_s)
            self._on_wait(reason, patience.failures)
            self._sleep(wait_s)

    def _failure(self, response: urllib3.BaseHTTPResponse) -> ClientError:
        message = f"{self.url}: {_problem(response)}"
        if response.status == 413:
            return TooLarge(413, message)
        if response.status == 410:
            return Gone(410, message)
        if response.status == 401:
            return Refused(401, f"{message}. Give a key of this server: SEKALI_API_KEY or --api-key-file")
        if response.status == 403 and "missing_scopes" in (_json_object(response.data) or {}):
            return Refused(403, f"{message}. Use a key with that scope; on the server, sekali keys create makes one")
        if 200 <= response.status < 400:
            return self._not_sekali(f"status {response.status}")
        return Refused(response.status, message)

    def _not_sekali(self, finding: str) -> NotSekali:
        return NotSekali(f"{self.url} did not answer as a Sekali server does ({finding}). Check the URL")


def _authorization(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not re.fullmatch(r"[!-~]+\.[!-~]+", api_key, re.ASCII):  # and never say what it is
        raise ValueError("the key is not one: it has the form id.secret, without blanks")
    return {"Authorization": f"Bearer {api_key}"}


def _trust(scheme: str, ca_file: str | None) -> dict[str, Any]:
    if ca_file is None or scheme != "https":
        return {}
    try:
        return {"ssl_context": ssl.create_default_context(cafile=ca_file)}
    except OSError as error:  # an SSLError is one, too
        raise ValueError(f"the file of certificates {ca_file} cannot be used: {error.strerror or error}") from None


def _query(params: Params | str | None) -> str:
    if isinstance(params, str):
        return "?" + params
    given = {name: value for name, value in (params or {}).items() if value is not None}
    return "?" + urlencode(given) if given else ""


def _next_params(link: str) -> str | None:
    """Return the query of the next page's address.

    Only the query is taken: the page is one of the same route, and a server behind a proxy does not know its address.
    """
    match = _NEXT_LINK.search(link)
    return urlsplit(match[1]).query if match else None


def _json_object(body: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that a body holds, None if it holds none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _is_answer(document: dict[str, Any], events: int) -> bool:
    if not isinstance(document.get("results"), list) or len(document["results"]) != events:
        return False
    return all(
        isinstance(document.get(name), int) for name in ("received", "stored", "duplicate", "conflict", "invalid")
    )


def _problem(response: urllib3.BaseHTTPResponse) -> str:
    """Say in one line what a problem document says, or what status it was."""
    document = _json_object(response.data)
    if document is None or "title" not in document:
        return f"answered {response.status} {response.reason or ''}".rstrip()
    detail = document.get("detail")
    return f"{document['title']}: {detail}" if detail else str(document["title"])


def _hang_up(response: urllib3.BaseHTTPResponse) -> None:
    with suppress(OSError, ValueError):  # it may have ended
        response.shutdown()


def _hung_up(error: urllib3.exceptions.SSLError) -> bool:
    """Tell a connection that ended while it was being secured, as when a server restarts, from one that is refused."""
    return isinstance(error.args[0], ssl.SSLEOFError | ssl.SSLZeroReturnError)


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """Say in a few words what kept a connection from working."""
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "the host name is not known"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError) and not isinstance(
        error, urllib3.exceptions.NewConnectionError
    ):
        return "no connection within the time-out"
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no answer within the time-out"
    cause = error.__cause__
    return (isinstance(cause, OSError) and cause.strerror) or str(error).rpartition(": ")[2] or type(error).__name__
