"""The routes."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from llava_s2 import __version__
from llava_s2.serve.api import api_schema
from llava_s2.serve.api.access import LOCAL_NAMES, Access
from llava_s2.serve.api.api_errors import ApiError
from llava_s2.serve.api.bounds import Boundary, Bounds
from llava_s2.serve.api.chats import Chats
from llava_s2.serve.api.service import Service

CHAT = "/v1/chat/completions"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": api_schema.ErrorBody, "description": what}
    for status, what in {
        400: "The request is wrong",
        401: "No valid key",
        404: "No such model or path",
        405: "No such method",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "Not JSON",
        429: "The queue is full",
        503: "The server is stopping",
        504: "No answer in time",
    }.items()
}


def build_app(
    service: Service,
    keys: Sequence[bytes] = (),
    *,
    local_names_only: bool = False,
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """The API behind what guards it.

    Args:
        service: what answers.
        keys: see ``Access``.
        local_names_only: whether a request must name this machine by one of ``LOCAL_NAMES``.
        cors_origins: web pages whose scripts may ask; ``*`` is all of them.
    """
    limits = service.limits
    app: ASGIApp = Bounds(
        _routes(service),
        max_body=limits.body,
        max_bodies=limits.bodies,
        body_seconds=limits.body_seconds,
        send_seconds=limits.send_seconds,
    )
    app = Access(app, keys)
    if cors_origins:
        app = CORSMiddleware(
            app, cors_origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["x-request-id", "retry-after"]
        )
    if local_names_only:
        app = TrustedHostMiddleware(app, LOCAL_NAMES, www_redirect=False)
    return Boundary(app, service.metrics, {CHAT, "/v1/models", "/health", "/metrics", "/tokenize"})


def _routes(service: Service) -> FastAPI:
    app = FastAPI(title="LLaVA-S2", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    chats = Chats(service)

    @app.post(
        CHAT,
        response_model=api_schema.Completion,
        responses=_ERRORS,
        openapi_extra=_body("ChatRequest"),
        description="With stream: server-sent events of chat.completion.chunk objects, then [DONE].",
    )
    async def chat(request: Request) -> Response:
        return await chats.answer(request)

    @app.post("/tokenize", responses=_ERRORS, openapi_extra=_body("TokenizeRequest"))
    async def tokenize(request: Request) -> api_schema.TokenizeResponse:
        return await chats.tokenize(request)

    @app.get("/v1/models", responses={key: _ERRORS[key] for key in (401, 405)})
    async def models() -> api_schema.ModelList:
        return api_schema.ModelList(data=[service.card()])

    @app.get("/v1/models/{model:path}", responses={key: _ERRORS[key] for key in (401, 404, 405)})
    async def model(model: str) -> api_schema.ModelCard:
        service.check_model(model)
        return service.card()

    @app.get("/health", responses={503: {"model": api_schema.Health}, 405: _ERRORS[405]})
    async def health() -> Response:
        status = api_schema.Health(status="draining" if service.draining else "ok")
        return JSONResponse(status.model_dump(), 503 if service.draining else 200)

    @app.get("/metrics", responses={key: _ERRORS[key] for key in (401, 405)}, response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _body(name: str) -> dict[str, Any]:
    """A request body that is parsed here and not by FastAPI."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own, with the request that is parsed here, and without the 422 that there never is."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        requests: list[Any] = [
            (api_schema.ChatRequest, "validation"),
            (api_schema.TokenizeRequest, "validation"),
        ]
        _, definitions = models_json_schema(requests, ref_template="#/components/schemas/{model}")
        made["components"]["schemas"].update(definitions["$defs"])
        for operations in made["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = made
    return app.openapi_schema


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    served = f"no such path; POST {CHAT} answers a conversation, GET /openapi.json says what else is served"
    refusal = ApiError(error.status_code, served if error.status_code == 404 else str(error.detail))
    return JSONResponse(refusal.body(), error.status_code, error.headers)
