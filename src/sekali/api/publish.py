"""``POST /publish`` as plain ASGI: the hot path."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import msgspec
import structlog

from sekali.api.body import BodyReader, ByteBudget, Disconnected, Receive, Scope, Send, header
from sekali.api.problems import Answer, Kind, Problem, json_answer, problem_of
from sekali.consumer import Consumer
from sekali.decode import Decoded, Limits, NeedsCare, decode_json, decode_ndjson
from sekali.errors import SekaliError
from sekali.event import Outcome, Verdict, count_outcomes
from sekali.metrics import Metrics
from sekali.settings import ServerSettings

ERRORS_LISTED_MAX = 100
_JSON_TYPES = {"", "application/json"}
_NDJSON_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl"}

log = structlog.get_logger("sekali.publish")


class _Preferences(msgspec.Struct, frozen=True):
    """What a ``Prefer`` header asks for (RFC 7240). Preferences that are not known are ignored, as it says."""

    minimal: bool = False
    strict: bool = False
    later: bool = False

    @property
    def applied(self) -> list[tuple[bytes, bytes]]:
        """The header that tells which were followed."""
        names = [
            name
            for name, is_set in (
                (b"return=minimal", self.minimal),
                (b"handling=strict", self.strict),
                (b"respond-async", self.later),
            )
            if is_set
        ]
        return [(b"preference-applied", b", ".join(names))] if names else []


class Publish:
    """The ASGI application behind ``/publish``. ``careful`` runs decoding that may take long."""

    def __init__(
        self,
        consumer: Consumer,
        metrics: Metrics,
        budget: ByteBudget,
        careful: Executor,
        clock_s: Callable[[], float],
        settings: ServerSettings,
    ) -> None:
        self._consumer = consumer
        self._metrics = metrics
        self._budget = budget
        self._careful = careful
        self._clock_s = clock_s
        self._body_bytes_max = settings.body_bytes_max
        self._body_timeout_s = settings.body_timeout_s
        self._limits = Limits(settings.batch_events_max, settings.event_bytes_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = BodyReader(self._budget, bytes_max=self._body_bytes_max, timeout_s=self._body_timeout_s)
        with body:
            try:
                answer = await self._answer(scope, receive, body)
            except Disconnected:
                return
            except SekaliError as error:
                answer = problem_of(error).answer()
            except Exception as error:
                log.exception("publish failed")
                answer = Problem(Kind.INTERNAL, repr(error)).answer()
            self._metrics.count_response(answer.status)
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive, body: BodyReader) -> Answer:
        if scope["method"] != "POST":
            raise Problem(Kind.METHOD, "publish with POST", headers=[(b"allow", b"POST")])
        is_ndjson = _is_ndjson(scope)
        preferences = _preferences(header(scope, b"prefer"))
        decoded = await self._decode(await body.read(scope, receive), is_ndjson=is_ndjson)
        accepted_at_s = self._clock_s()
        if decoded.faults and (preferences.strict or not decoded.batch):
            self._metrics.count_invalid(len(decoded.faults))
            raise _refusal(decoded, preferences)
        if preferences.later:
            self._consumer.publish_later(decoded.batch, accepted_at_s, body.reservation.release)
            body.hand_over()
            self._metrics.count_invalid(len(decoded.faults))
            counts = {"received": len(decoded.batch), "accepted": len(decoded.batch), "invalid": len(decoded.faults)}
            return json_answer(202, counts, headers=preferences.applied)
        decoded.batch.all_or_nothing = preferences.strict
        verdicts = await self._consumer.publish(decoded.batch, accepted_at_s) if decoded.batch else []
        self._metrics.count_invalid(len(decoded.faults))
        return _verdict_answer(decoded, verdicts, preferences)

    async def _decode(self, body: bytes, *, is_ndjson: bool) -> Decoded:
        decode = decode_ndjson if is_ndjson else decode_json
        try:
            return decode(body, self._limits, careful=False)
        except NeedsCare:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._careful, lambda: decode(body, self._limits, careful=True))


def _is_ndjson(scope: Scope) -> bool:
    """Tell how the body is written.

    Raises:
        Problem: 415, it is neither JSON nor NDJSON, or it is compressed.

    """
    encoding = header(scope, b"content-encoding").strip().lower()
    if encoding not in {"", "identity"}:
        raise Problem(
            Kind.MEDIA,
            f"content encoding {encoding} is not known; send the body uncompressed",
            headers=[(b"accept-encoding", b"identity")],
        )
    media_type, _, parameters = header(scope, b"content-type").partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.lower().replace('"', "").replace(" ", "").partition("charset=")[2].partition(";")[0]
    if charset not in {"", "utf-8", "utf8", "us-ascii"}:
        raise Problem(Kind.MEDIA, f"charset {charset} is not known; send UTF-8")
    if media_type in _NDJSON_TYPES:
        return True
    if media_type in _JSON_TYPES or (media_type.startswith("application/") and media_type.endswith("+json")):
        return False
    raise Problem(
        Kind.MEDIA,
        f"content type {media_type} is not known; send application/json (an event or an array of events) or "
        "application/x-ndjson (an event a line)",
        headers=[(b"accept-post", b"application/json, application/x-ndjson")],
    )


def _preferences(text: str) -> _Preferences:
    if not text:
        return _Preferences()
    wanted = {part.partition(";")[0].replace('"', "").replace(" ", "").lower() for part in text.split(",")}
    return _Preferences("return=minimal" in wanted, "handling=strict" in wanted, "respond-async" in wanted)


def _refusal(decoded: Decoded, preferences: _Preferences) -> Problem:
    """Nothing is stored: no item is valid, or one is not and the publisher asked to be strict."""
    invalid = [Verdict(Outcome.INVALID, error=decoded.faults[position]) for position in sorted(decoded.faults)]
    extra = _counts([], len(invalid))
    if not decoded.batch and not preferences.minimal:
        extra["results"] = invalid
    count = f"{len(invalid)} of {decoded.item_count} items are not valid" if not decoded.single else invalid[0].error
    return Problem(
        Kind.INVALID_EVENT,
        f"{count}; nothing was stored",
        errors=_places(decoded.faults, single=decoded.single),
        extra=extra,
        headers=preferences.applied,
    )


def _verdict_answer(decoded: Decoded, verdicts: list[Verdict], preferences: _Preferences) -> Answer:
    results = verdicts
    if decoded.faults:
        valid = iter(verdicts)
        results = [
            Verdict(Outcome.INVALID, error=decoded.faults[position]) if position in decoded.faults else next(valid)
            for position in range(decoded.item_count)
        ]
    document = _counts(verdicts, len(decoded.faults))
    if not preferences.minimal:
        document["results"] = results
    if results and document["invalid"] == len(results):
        refused_late = {position: verdict.error or "" for position, verdict in enumerate(results)}
        raise Problem(
            Kind.INVALID_EVENT,
            "no item is valid; nothing was stored",
            errors=_places(refused_late, single=decoded.single),
            extra=document,
            headers=preferences.applied,
        )
    if decoded.single and verdicts[0].outcome is Outcome.CONFLICT:
        raise Problem(
            Kind.CONFLICT,
            f"the event with seq {verdicts[0].seq} has this topic and event_id and another payload or source; "
            "it stays, and this variant is kept in /conflicts",
            extra=document,
            headers=preferences.applied,
        )
    return json_answer(200, document, headers=preferences.applied)


def _counts(verdicts: list[Verdict], invalid: int) -> dict[str, Any]:
    counts = count_outcomes(verdicts)
    stored, duplicate, conflict = counts[Outcome.STORED], counts[Outcome.DUPLICATE], counts[Outcome.CONFLICT]
    return {
        "received": stored + duplicate + conflict,
        "stored": stored,
        "duplicate": duplicate,
        "conflict": conflict,
        "invalid": invalid + counts[Outcome.INVALID],
    }


def _places(faults: dict[int, str], *, single: bool) -> list[dict[str, str]]:
    """Name the place of each fault as a JSON pointer into the request, for the first hundred."""
    places = []
    for position in sorted(faults)[:ERRORS_LISTED_MAX]:
        name, _, detail = faults[position].partition(": ")
        pointer = "" if name in {"event", "line"} else "/" + name.replace("~", "~0").replace("/", "~1")
        places.append({"pointer": f"#{pointer}" if single else f"#/{position}{pointer}", "detail": detail})
    return places
