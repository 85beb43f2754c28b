"""Sends a request as bytes over one connection, and says what must come of it."""

import json
import zlib
from typing import Any

from e2e.openapi import Contract
from e2e.raw import HalfAnAnswer, answers, chunked, head
from e2e.server import RawConnection, ServerProcess, wait_until
from fuzz.bodies import BODY_BYTES_MAX, MEDIA_TYPES, Request
from fuzz.judge import Event, Judgement, NotJson, judge_json, judge_lines
from fuzz.log import Log

BATCH_EVENTS_MAX = 60


class Answer:
    """What came back, in the form that ``Contract`` checks."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


class Sender:
    """One publisher that knows the log, because nobody else writes to it."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.log = Log()
        self.invalid = 0
        self.sent = 0
        self.statuses: dict[int, int] = {}
        self._contract = Contract(server.http)
        self._connection: RawConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.socket.close()
            self._connection = None

    def publish(self, request: Request) -> list[Event]:
        """Send a request, check its answer, and return the events that it was about.

        Raises:
            AssertionError: the answer is wrong.
            CannotTell: nobody knows what it should be. Nothing was sent.

        """
        expected = expect(request)
        answer = self._exchange(request)
        self.sent += 1
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        self._contract.check(answer, "post", "/publish")
        if isinstance(expected, Judgement):
            return self._judged(request, expected, answer)
        assert answer.status in expected, answer.body
        return []

    def _judged(self, request: Request, judgement: Judgement, answer: Answer) -> list[Event]:
        items = judgement.items
        valid = [event for event in items if event is not None]
        invalid = len(items) - len(valid)
        if invalid and ("handling=strict" in request.preferences or not valid):
            assert answer.status == 422, answer.body
            assert answer.json()["invalid"] == invalid
            self.invalid += invalid
            return valid
        self.invalid += invalid
        found = [(("invalid", None) if event is None else self.log.publish(event)) for event in items]
        if "respond-async" in request.preferences:
            assert answer.status == 202, answer.body
            assert answer.json() == {"received": len(valid), "accepted": len(valid), "invalid": invalid}
            wait_until(lambda: self.server.http.stats()["queue_depth"] == 0, "what was accepted is committed")
            return valid
        is_conflict = judgement.single and found[0][0] == "conflict"
        assert answer.status == (409 if is_conflict else 200), answer.body
        document = answer.json()
        for outcome in ("stored", "duplicate", "conflict", "invalid"):
            assert document[outcome] == [one for one, _ in found].count(outcome), (outcome, answer.body)
        assert document["received"] == len(valid)
        assert ("results" in document) == ("return=minimal" not in request.preferences)
        for result, (outcome, seq) in zip(document.get("results", found), found, strict=True):
            if "results" in document:
                assert result["outcome"] == outcome and result.get("seq") == seq
                assert ("error" in result) == (outcome == "invalid")
        return valid

    def _exchange(self, request: Request) -> Answer:
        headers = [f"Content-Type: {request.content_type}"] if request.content_type else []
        headers += [f"Content-Encoding: {request.encoding}"] if request.encoding else []
        headers += [f"Prefer: {', '.join(request.preferences)}"] if request.preferences else []
        headers += ["Expect: 100-continue"] if request.expects else []
        body = request.body if request.sent is None else request.sent
        if request.pieces:
            data = head("POST", "/publish", *headers, "Transfer-Encoding: chunked") + chunked(
                _cut(body, request.pieces)
            )
        else:
            data = head("POST", "/publish", *headers, f"Content-Length: {len(body)}") + body
        if self._connection is None:
            self._connection = RawConnection(self.server.port)
        self._connection.send(data)
        return self._receive()

    def _receive(self) -> Answer:
        assert self._connection is not None
        data = b""
        while True:
            try:
                found = [answer for answer in answers(data) if answer[0] != 100]
            except HalfAnAnswer:
                found = []
            if found:
                break
            chunk = self._connection.socket.recv(65536)
            assert chunk, f"no answer: {data!r}"
            data += chunk
        [(status, body)] = found
        top = data[: len(data) - len(body)].rpartition(b"HTTP/1.1 ")[2].decode("latin-1")
        headers = dict(line.split(": ", 1) for line in top.strip().split("\r\n")[1:])
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, {name.title(): value for name, value in headers.items()}, body)


def expect(request: Request) -> Judgement | set[int]:
    """Say what a request is worth: a judgement on its items, or the statuses that its answer may have.

    Raises:
        CannotTell: that is not known.

    """
    lines = MEDIA_TYPES.get(request.content_type)
    body = undone(request)
    if lines is None or body is None:
        return {415}
    if isinstance(body, int):
        return {body}
    try:
        judgement = judge_lines(body) if lines else judge_json(body)
    except NotJson:
        # With too many items it may be refused for those, before its fault comes.
        return {400, 413} if body.count(b",") >= BATCH_EVENTS_MAX else {400}
    if len(judgement.items) > BATCH_EVENTS_MAX or (lines and body.count(b"\n") > 2 * BATCH_EVENTS_MAX):
        return {413}
    return judgement


def _cut(body: bytes, lengths: tuple[int, ...]) -> list[bytes]:
    pieces: list[bytes] = []
    place = 0
    while place < len(body):
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(body[place : place + length])
        place += length
    return pieces


def undone(request: Request) -> bytes | int | None:
    """Return the body without its compression; the status where it cannot be had; None for an unknown encoding."""
    if request.encoding == "":
        return request.body if len(request.body) <= BODY_BYTES_MAX else 413
    if request.sent is None:
        return None
    rest, undone = request.sent, b""
    while True:
        member = zlib.decompressobj(31)
        try:
            undone += member.decompress(rest, BODY_BYTES_MAX + 1 - len(undone))
        except zlib.error:
            return 400
        if len(undone) > BODY_BYTES_MAX:
            return 413
        if not member.eof:
            return 400
        rest = member.unused_data
        if not rest:
            return undone
