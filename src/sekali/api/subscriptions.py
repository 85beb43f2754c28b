"""The routes of durable subscriptions: what they are, and how their events are taken."""

import asyncio
import re
from concurrent.futures import Executor
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from msgspec import Meta

from sekali.api import models_subscriptions as models
from sekali.api import subscription_documents as documents
from sekali.api import wire
from sekali.api.access import Access, missing_scope
from sekali.api.body import Body, ByteBudget, Disconnected, header, read_whole
from sekali.api.negotiation import is_ndjson
from sekali.api.paging import page_response
from sekali.api.parameters import GRANT, Cursor, reader_of
from sekali.api.problems import Kind, Problem
from sekali.api.read import CONNECTION, json_response
from sekali.delivery import (
    DELAY_S_MAX,
    ERROR_CHARS_MAX,
    Definition,
    Delivery,
    LeaseSeconds,
    Place,
    Seq,
    Subscription,
    definition_fault,
    name_fault,
    place_fault,
)
from sekali.errors import InvalidQuery, NoSuchSubscription, StoreBroken, SubscriptionDiffers
from sekali.keys import Grant
from sekali.ports import PAGE_EVENTS_MAX, EventStore, Summary
from sekali.push.pushing import Pushing
from sekali.settings import ServerSettings
from sekali.subscriptions.manager import LAG_MAX, Subscriptions
from sekali.subscriptions.surroundings import Ask, Delivered
from sekali.timestamps import format_timestamp

PULL_EVENTS_MAX = 1000
PULL_TOPICS_MAX = 100
WAIT_S_MAX = 30.0
LAG_LISTED_MAX = 10_000  # of each in a list
LISTED_MAX = 1000

_Form = TypeVar("_Form")

_Seqs = Annotated[list[Seq], Meta(max_length=PAGE_EVENTS_MAX)]


class _Pull(msgspec.Struct, forbid_unknown_fields=True):
    max: Annotated[int, Meta(ge=1, le=PULL_EVENTS_MAX)] = 100
    wait: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = 0.0
    lease_seconds: LeaseSeconds | None = None
    topics: Annotated[int, Meta(ge=1, le=PULL_TOPICS_MAX)] = 1


class _Ack(msgspec.Struct, forbid_unknown_fields=True):
    lease: str
    seqs: _Seqs


class _Nack(msgspec.Struct, forbid_unknown_fields=True):
    lease: str
    seqs: _Seqs
    delay: Annotated[float, Meta(ge=0, le=DELAY_S_MAX)] = 0.0
    error: Annotated[str, Meta(max_length=ERROR_CHARS_MAX)] = ""


class _Extend(msgspec.Struct, forbid_unknown_fields=True):
    lease: str
    lease_seconds: LeaseSeconds | None = None


class _Release(msgspec.Struct, forbid_unknown_fields=True):
    lease: str


class _Chosen(msgspec.Struct, forbid_unknown_fields=True):
    seqs: _Seqs | None = None
    all: bool = False


class SubscriptionRoutes:
    """The routes over the subscriptions of one store. Answers that may be large are encoded on ``readers``."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        pushing: Pushing,
        store: EventStore,
        budget: ByteBudget,
        readers: Executor,
        access: Access,
        settings: ServerSettings,
    ) -> None:
        self._subscriptions = subscriptions
        self._pushing = pushing
        self._store = store
        self._budget = budget
        self._readers = readers
        self._access = access
        self._body_bytes_max = settings.body_bytes_max
        self.router = APIRouter()
        one = "/subscriptions/{name}"
        for method, path, endpoint, extra in (
            ("GET", "/subscriptions", self.all, models.ALL),
            ("PUT", one, self.put, models.PUT),
            ("GET", one, self.get, models.GET),
            ("DELETE", one, self.delete, models.DELETE),
            ("POST", f"{one}/pull", self.pull, models.PULL),
            ("POST", f"{one}/ack", self.ack, models.ACK),
            ("POST", f"{one}/nack", self.nack, models.NACK),
            ("POST", f"{one}/extend", self.extend, models.EXTEND),
            ("POST", f"{one}/release", self.release, models.RELEASE),
            ("POST", f"{one}/seek", self.seek, models.SEEK),
            ("GET", f"{one}/dead-letters", self.dead_letters, models.DEAD_LETTERS),
            ("POST", f"{one}/dead-letters/replay", self.replay, models.REPLAY),
            ("POST", f"{one}/dead-letters/drop", self.drop, models.DROP),
        ):
            self.router.add_api_route(path, endpoint, methods=[method], **extra)

    # What they are.

    async def all(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=LISTED_MAX, description="Subscriptions in one page.")] = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Subscriptions by name, with their figures: those of which the key may read every topic."""
        grant = reader_of(request)
        summary = await self._summary()
        after = "" if cursor is None else wire.open_cursor(cursor, "subscriptions", (str,), summary).position[0]
        visible = [
            one
            for one in await self._subscriptions.all()
            if one.name > str(after) and grant.may_read_all_of(one.definition.topic)
        ]
        shown = visible[:limit]
        found = [
            documents.whole(
                one, await self._subscriptions.status(one.name, LAG_LISTED_MAX), self._pushing.health(one.name)
            )
            for one in shown
        ]
        following = wire.cursor(summary, "subscriptions", shown[-1].name) if len(visible) > limit else None
        return page_response(request, msgspec.json.encode(found), following)

    async def put(self, request: Request, name: str) -> Response:
        """Make a subscription, or change what may change of it: the same again changes nothing."""
        grant = reader_of(request)
        definition = await self._read(request, Definition)
        if (fault := name_fault(name)) is not None:
            raise InvalidQuery("name", fault)
        if (found := definition_fault(definition)) is not None:
            raise InvalidQuery(*found)
        if not grant.may_read_all_of(definition.topic):
            raise missing_scope(f"read:{definition.topic}")
        _require_may_change(grant, definition)
        is_new = await self._subscriptions.put(name, definition)
        return json_response(documents.definition(await self._subscriptions.get(name)), 201 if is_new else 200)

    async def get(self, request: Request, name: str) -> Response:
        """What a subscription is, and its figures."""
        subscription = await self._visible(request, name)
        return json_response(
            documents.whole(subscription, await self._subscriptions.status(name, LAG_MAX), self._pushing.health(name))
        )

    async def delete(self, request: Request, name: str) -> Response:
        """Delete a subscription, with its place in the log and its dead letters."""
        _require_may_change(_grant(request), (await self._visible(request, name, damaged=True)).definition)
        await self._subscriptions.delete(name)
        return Response(status_code=204)

    async def seek(self, request: Request, name: str) -> Response:
        """Go on from another place in the log: what comes after it is delivered, again or for the first time."""
        await self._changeable(request, name)
        place = await self._read(request, Place)
        if (fault := place_fault(place)) is not None:
            raise InvalidQuery("seq", fault)
        return json_response({"next_seq": await self._subscriptions.seek(name, place) + 1})

    # How events are taken.

    async def pull(self, request: Request, name: str) -> Response:
        """Lease events. Nobody else gets them until they are acknowledged, given back, or it runs out."""
        if (await self._visible(request, name)).definition.delivery is not Delivery.PULL:
            raise SubscriptionDiffers(f"the subscription {name} delivers by push: its events cannot be pulled")
        form = await self._read(request, _Pull)
        grant = _grant(request)

        def still_wanted() -> None:
            if not self._access.still_holds(grant):
                raise Problem(Kind.NO_KEY, "the key was revoked or has expired")

        until_s = asyncio.get_running_loop().time() + form.wait
        ask = Ask(form.max, until_s, form.lease_seconds, form.topics, still_wanted)
        delivered = (
            await self._pull_while_there(request, name, ask) if form.wait else await self._subscriptions.pull(name, ask)
        )
        if delivered is None:
            return _json_bytes(wire.delivered_json(None, 0, []))
        try:
            body = await asyncio.get_running_loop().run_in_executor(self._readers, _encode, delivered)
        except BaseException:
            self._subscriptions.release(name, delivered.lease_id)
            raise
        return _json_bytes(body)

    async def _pull_while_there(self, request: Request, name: str, ask: Ask) -> Delivered | None:
        """Wait for events as long as the client does. Who sends no more has left, though it might still read."""
        connection = request.scope["state"][CONNECTION]
        connection.is_endless = True
        pulling = asyncio.create_task(self._subscriptions.pull(name, ask))
        leaving = asyncio.ensure_future(request.receive())  # all of the request has come
        try:
            await asyncio.wait({pulling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and pulling.done() and pulling.exception() is None:
                if (delivered := pulling.result()) is not None:
                    self._subscriptions.release(name, delivered.lease_id)
                raise Disconnected
            if not pulling.done():
                raise Disconnected
            return pulling.result()
        finally:
            connection.is_endless = False
            pulling.cancel()
            leaving.cancel()

    async def ack(self, request: Request, name: str) -> Response:
        """Acknowledge events: they are settled, durably, and are not delivered again."""
        await self._visible(request, name)
        form = await self._read(request, _Ack)
        lost = await self._subscriptions.acknowledge(name, form.lease, form.seqs)
        return json_response({"acknowledged": _others(form.seqs, lost), "lost": lost})

    async def nack(self, request: Request, name: str) -> Response:
        """Give events back, because they could not be processed: they come again after the delay."""
        await self._visible(request, name)
        form = await self._read(request, _Nack)
        lost = await self._subscriptions.give_back(name, form.lease, form.seqs, form.delay, form.error)
        return json_response({"returned": _others(form.seqs, lost), "lost": lost})

    async def extend(self, request: Request, name: str) -> Response:
        """Let a lease run out later than it would: so many seconds from now."""
        await self._visible(request, name)
        form = await self._read(request, _Extend)
        expires_at_ns, held = await self._subscriptions.extend(name, form.lease, form.lease_seconds)
        return json_response({"lease": form.lease, "expires_at": format_timestamp(expires_at_ns), "held": held})

    async def release(self, request: Request, name: str) -> Response:
        """Give back what a lease still holds as if it had not been given, because the consumer stops: no attempt."""
        await self._visible(request, name)
        self._subscriptions.release(name, (await self._read(request, _Release)).lease)
        return Response(status_code=204)

    # What was given up.

    async def dead_letters(
        self,
        request: Request,
        name: str,
        limit: Annotated[int, Query(ge=1, le=LISTED_MAX, description="Dead letters in one page.")] = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Events that failed at every attempt, in the order they were given up; `/events` has what they hold."""
        await self._visible(request, name)
        summary = await self._summary()
        listing = f"dead letters of {name}"
        after = 0 if cursor is None else int(wire.open_cursor(cursor, listing, (int,), summary).position[0])
        found = await self._subscriptions.dead_letters(name, after, limit)
        documents = [
            {
                "seq": one.seq,
                "topic": one.topic,
                "attempts": one.attempts,
                "error": one.error,
                "at": format_timestamp(one.at_ns),
            }
            for one in found
        ]
        following = wire.cursor(summary, listing, found[-1].number) if len(found) == limit else None
        return page_response(request, msgspec.json.encode(documents), following)

    async def replay(self, request: Request, name: str) -> Response:
        """Deliver dead letters again, as if they were new. They come after events that came after them."""
        await self._changeable(request, name)
        seqs = _chosen(await self._read(request, _Chosen))
        replayed, is_more = await self._subscriptions.replay(name, seqs)
        return json_response({"replayed": replayed, "more": is_more})

    async def drop(self, request: Request, name: str) -> Response:
        """Forget dead letters. The events stay in the log."""
        await self._changeable(request, name)
        await self._subscriptions.drop(name, _chosen(await self._read(request, _Chosen)))
        return Response(status_code=204)

    # Inside.

    async def _summary(self) -> Summary:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._store.summary)

    async def _visible(self, request: Request, name: str, *, damaged: bool = False) -> Subscription:
        """Return a subscription; for who may not read all its topics there is none of that name.

        Of one that is damaged nobody knows them, so that it is there only for who may read everything.
        """
        grant = reader_of(request)
        subscription = await self._subscriptions.find(name)
        if not grant.may_read_all_of(subscription.definition.topic):
            raise NoSuchSubscription(f"there is no subscription {name}")
        if subscription.fault is not None and not damaged:
            raise StoreBroken(subscription.fault)
        return subscription

    async def _changeable(self, request: Request, name: str) -> None:
        _require_may_change(_grant(request), (await self._visible(request, name)).definition)

    async def _read(self, request: Request, form: type[_Form]) -> _Form:
        """Read the body of a request, which is a JSON object of that form; no body is an empty one."""
        if is_ndjson(header(request.scope, b"content-type")):
            raise Problem(Kind.MEDIA, "send application/json, one document in a request")
        with Body(self._budget, self._body_bytes_max) as body:
            text = await read_whole(body, request.scope, request.receive)
            try:
                return msgspec.json.decode(text or b"{}", type=form)
            except msgspec.ValidationError as error:
                raise Problem(Kind.INVALID_QUERY, str(error), errors=[_place(str(error))]) from None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise Problem(Kind.NOT_JSON, f"the document is not JSON: {error}") from None


def _place(fault: str) -> dict[str, str]:
    """Return the place in the document of a fault that msgspec found, and what it is."""
    detail, _, place = fault.partition(" - at `$")
    names = re.findall(r"\.(\w+)", place) + re.findall("field `(.*)`", detail)
    return {
        "pointer": "#" + "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in names),
        "detail": detail,
    }


def _grant(request: Request) -> Grant:
    grant: Grant = request.scope[GRANT]
    return grant


def _require_may_change(grant: Grant, definition: Definition) -> None:
    """A push subscription makes the server send requests: only an administrator may say where to.

    Raises:
        Problem: 403.

    """
    if definition.delivery is Delivery.PUSH and not grant.is_admin:
        raise missing_scope("admin")


def _chosen(form: _Chosen) -> list[int] | None:
    if (form.seqs is None) != form.all:
        raise InvalidQuery("seqs", 'give the seqs of some, or "all": true')
    return form.seqs


def _others(seqs: list[int], lost: list[int]) -> list[int]:
    away = set(lost)
    return [seq for seq in dict.fromkeys(seqs) if seq not in away]


def _encode(delivered: Delivered) -> bytes:
    return wire.delivered_json(delivered.lease_id, delivered.expires_at_ns, delivered.events)


def _json_bytes(body: bytes) -> Response:
    return Response(body, media_type="application/json")
