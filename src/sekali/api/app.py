"""The ASGI application: everything but ``/publish``, and the OpenAPI document of both."""

from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from sekali import __version__
from sekali.api import models, models_subscriptions
from sekali.api.access import REFUSALS, Access
from sekali.api.body import Disconnected, Receive, Scope, Send
from sekali.api.headers import secured
from sekali.api.parameters import GRANT
from sekali.api.problems import Answer, Kind, Problem, problem_of
from sekali.api.read import StreamCut
from sekali.errors import SekaliError

_DESCRIPTION = "Publish the same event as often as you like: it is stored once, and you are told so."

# Without a key: what an orchestrator asks, and what is the same for everybody.
OPEN_PATHS = frozenset({"/healthz", "/openapi.json", "/docs"})

log = structlog.get_logger("sekali.api")


class Api:
    """The ASGI application. It is true to its OpenAPI document for every route."""

    def __init__(self, routers: Sequence[APIRouter], access: Access) -> None:
        self._access = access
        self._app = _app(routers, access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        send = secured(send, path)
        try:
            if path in OPEN_PATHS or path.startswith("/docs/"):
                scope[GRANT] = self._access.look_at(scope["headers"])
            else:
                scope[GRANT] = self._access.admit(scope["headers"])
        except Problem as problem:
            _note(self._access, problem, scope)
            await _response(problem.answer())(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except StreamCut as error:
            log.info("stream cut", reason=str(error))
            raise
        except Disconnected:
            log.info("the client left", path=scope["path"])


def _note(access: Access, problem: Problem, scope: Scope) -> None:
    if problem.kind in REFUSALS:
        access.note(problem, scope["path"], scope["headers"], scope["client"], scope.get(GRANT))


def _app(routers: Sequence[APIRouter], access: Access) -> FastAPI:
    app = FastAPIOffline(
        title="Sekali",
        version=__version__,
        description=_DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
        static_url="/docs/static",
    )
    for router in routers:
        app.include_router(router)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            document["paths"] = {"/publish": models.publish_path(), **document["paths"]}
            models.add_problems_of_connections(document["paths"])
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; ours are problem documents
                schemas.pop(name, None)
            schemas.update(models.extra_schemas(models_subscriptions.BODIES))
            document["components"]["securitySchemes"] = models.SECURITY_SCHEMES
            document["security"] = models.SECURITY
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.exception_handler(SekaliError)
    async def ours(request: Request, error: SekaliError) -> Response:
        problem = problem_of(error)
        _note(access, problem, request.scope)
        return _response(problem.answer())

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, error: RequestValidationError) -> Response:
        places = [{"parameter": str(found["loc"][-1]), "detail": str(found["msg"])} for found in error.errors()]
        detail = "; ".join(f"{place['parameter']}: {place['detail']}" for place in places)
        return _response(Problem(Kind.INVALID_QUERY, detail, errors=places).answer())

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        kind = Kind.METHOD if error.status_code == 405 else Kind.NOT_FOUND
        headers = [(b"allow", ", ".join(_methods(routes, request)).encode())] if kind is Kind.METHOD else []
        return _response(Problem(kind, f"{request.method} {request.url.path}", headers=headers).answer())

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> Response:
        return _response(Problem(Kind.INTERNAL, repr(error)).answer())

    return app


def _methods(routes: Iterable[BaseRoute], request: Request) -> list[str]:
    """Return what the path of a request takes: of all its routes, where Starlette names the first one's."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, {name.decode(): value.decode() for name, value in answer.headers})
