"""``POST /publish``, the hot path: from the bytes of a request to its verdicts, without a task or a future of its own.

It does not run as an ASGI application, whose overhead would be more than half of what a single event costs; the
connection (``protocol.py``) drives it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from sekali.api.access import REFUSALS, Access, Headers, Peer, missing_scope
from sekali.api.body import Body, ByteBudget
from sekali.api.negotiation import Negotiated, negotiate
from sekali.api.permitted import only_permitted
from sekali.api.problems import Answer, Kind, Problem, json_answer, problem_of
from sekali.api.verdicts import refusal, verdict_answer
from sekali.consumer import Consumer
from sekali.decode import Decoded, Limits, NeedsCare, decode_json, decode_ndjson
from sekali.errors import SekaliError, Unavailable
from sekali.event import Batch, Verdict
from sekali.keys import Grant
from sekali.metrics import Metrics
from sekali.settings import ServerSettings

log = structlog.get_logger("sekali.publish")


class Publish:
    """What all publish requests share. ``careful`` runs decoding that may take long."""

    def __init__(
        self,
        consumer: Consumer,
        metrics: Metrics,
        budget: ByteBudget,
        careful: Executor,
        clock_s: Callable[[], float],
        access: Access,
        settings: ServerSettings,
    ) -> None:
        self.consumer = consumer
        self.metrics = metrics
        self.budget = budget
        self.careful = careful
        self.clock_s = clock_s
        self.access = access
        self.body_bytes_max = settings.body_bytes_max
        self.limits = Limits(settings.batch_events_max, settings.event_bytes_max)
        self.loop = asyncio.get_running_loop()


class PublishRequest:
    """One request. ``begin``, ``feed`` and ``end`` come from the connection; ``respond`` is called once, some time.

    The body's bytes are reserved before they are read, and given back once the request needs them no more: after the
    commit, even if the client has left.
    """

    def __init__(self, publish: Publish, respond: Callable[[Answer], None]) -> None:
        self._publish = publish
        self._respond = respond
        self._body = Body(publish.budget, publish.body_bytes_max)
        self._reading = True
        self._undoing = False
        self._grant: Grant | None = None
        self._headers: Headers = ()
        self._peer: Peer = None
        self._negotiated: Negotiated
        self._decoded = _NOTHING
        self._accepted_at_s = 0.0

    @property
    def reading(self) -> bool:
        """Whether more of the body is wanted."""
        return self._reading

    def begin(self, method: bytes, headers: Headers, peer: Peer) -> None:
        """Look at the head of the request."""
        self._headers, self._peer = headers, peer
        try:
            self._grant = self._publish.access.admit(headers)
            if not self._grant.publishes:
                raise missing_scope("publish:<topic or pattern>")
            if method != b"POST":
                raise Problem(Kind.METHOD, "publish with POST", headers=[(b"allow", b"POST")])
            self._negotiated = negotiate(headers)
            self._body.begin(self._negotiated.length, gzip=self._negotiated.is_gzip)
        except SekaliError as error:
            self._fail(error)

    def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        if not self._reading:
            return
        try:
            self._body.feed(data)
        except SekaliError as error:
            self._fail(error)
        else:
            if self._negotiated.is_gzip and not self._undoing:
                self._undoing = True
                self._undo()

    def end(self) -> None:
        """The body is complete: decode it and hand it on."""
        if not self._reading:
            return
        self._reading = False
        if not self._undoing:
            self._guarded(self._decode)

    def refuse(self, problem: Problem) -> None:
        """Answer with a problem of the connection's: the rest of the body will not come."""
        if self._reading:
            self._fail(problem)

    def abandon(self) -> None:
        """The client has left. What is accepted is committed all the same."""
        if self._reading:
            self._reading = self._undoing = False
            self._body.release()

    def _undo(self) -> None:
        if self._undoing:
            self._guarded(self._undo_piece)

    def _undo_piece(self) -> None:
        """Undo a piece of the body's compression, and the rest of it after what else is ready on the loop."""
        self._undoing = self._body.undo()
        if self._undoing:
            self._publish.loop.call_soon(self._undo)
        elif not self._reading:
            self._decode()

    def _decode(self) -> None:
        decode = decode_ndjson if self._negotiated.is_ndjson else decode_json
        limits = self._publish.limits
        try:
            body = self._body.whole()
            decoded = decode(body, limits, careful=False)
        except NeedsCare:
            future = self._publish.careful.submit(decode, body, limits, careful=True)
            future.add_done_callback(
                lambda done: self._publish.loop.call_soon_threadsafe(self._guarded, lambda: self._accept(done.result()))
            )
        else:
            self._accept(decoded)

    def _accept(self, decoded: Decoded) -> None:
        publish, preferences = self._publish, self._negotiated.preferences
        assert self._grant is not None, "it was let in"
        publish.access.charge(self._grant, decoded.item_count)
        if not self._grant.publishes_all:
            decoded = only_permitted(decoded, self._grant)
        self._accepted_at_s = publish.clock_s()
        self._decoded = decoded
        if decoded.faults and (preferences.strict or not decoded.batch):
            publish.metrics.count_invalid(len(decoded.faults))
            raise refusal(decoded, preferences)
        if preferences.later:
            publish.consumer.submit(decoded.batch, self._accepted_at_s, self._release, keep=True)
            publish.metrics.count_invalid(len(decoded.faults))
            counts = {"received": len(decoded.batch), "accepted": len(decoded.batch), "invalid": len(decoded.faults)}
            self._answer(json_answer(202, counts, headers=preferences.applied))
        elif decoded.batch:
            decoded.batch.all_or_nothing = preferences.strict
            publish.consumer.submit(decoded.batch, self._accepted_at_s, self._committed)
        else:
            self._committed([], None)

    def _release(self, _: list[Verdict], __: SekaliError | None) -> None:
        self._body.release()

    def _committed(self, verdicts: list[Verdict], failure: SekaliError | None) -> None:
        if failure is not None:
            self._fail(failure)
        else:
            self._guarded(lambda: self._tell(verdicts))

    def _tell(self, verdicts: list[Verdict]) -> None:
        self._publish.metrics.count_invalid(len(self._decoded.faults))
        answer = verdict_answer(self._decoded, verdicts, self._negotiated.preferences)
        self._body.release()
        self._answer(answer)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step; whatever it raises is the answer."""
        try:
            step()
        except SekaliError as error:
            self._fail(error)
        except MemoryError:
            log.error("no memory for a request")
            self._fail(Unavailable("the server is out of memory; send the request again"))
        except Exception as error:
            log.exception("publish failed")
            self._fail(Problem(Kind.INTERNAL, repr(error)))

    def _fail(self, error: SekaliError) -> None:
        self._reading = self._undoing = False
        self._body.release()
        problem = problem_of(error)
        if problem.kind in REFUSALS:
            self._publish.access.note(problem, "/publish", self._headers, self._peer, self._grant)
        self._answer(problem.answer())

    def _answer(self, answer: Answer) -> None:
        self._publish.metrics.count_response(answer.status)
        # Let go of the events and of the connection, which holds this request: nothing should wait for the collector
        # of reference cycles.
        respond, self._respond = self._respond, _answered
        self._decoded = _NOTHING
        respond(answer)


_NOTHING = Decoded(Batch(), {}, single=False)


def _answered(_: Answer) -> None:
    raise AssertionError("a request was answered twice")
