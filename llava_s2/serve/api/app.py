"""The routes."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from llava_s2 import __version__
from llava_s2.serve.api import schema
from llava_s2.serve.api.access import Access
from llava_s2.serve.api.boundary import Boundary
from llava_s2.serve.api.chats import Chats
from llava_s2.serve.api.errors import ApiError
from llava_s2.serve.api.guard import Guard
from llava_s2.serve.api.service import Service

CHAT = "/v1/chat/completions"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorBody, "description": what}
    for status, what in {
        400: "The request is wrong",
        401: "No valid key",
        403: "Asked by a name that is not this machine's",
        404: "No such model or path",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "Not JSON",
        429: "The queue is full",
        503: "The server is stopping",
        504: "No answer in time",
    }.items()
}


def build_app(service: Service, keys: Sequence[bytes] = (), *, local_names_only: bool = False) -> ASGIApp:
    """The API behind what guards it.

    Args:
        service: what answers.
        keys, local_names_only: see ``Access``.
    """
    limits = service.limits
    guarded = Guard(
        _routes(service),
        max_body=limits.body,
        max_bodies=limits.bodies,
        body_seconds=limits.body_seconds,
        send_seconds=limits.send_seconds,
    )
    access = Access(guarded, keys, local_names_only)
    return Boundary(access, service.metrics, {CHAT, "/v1/models", "/health", "/metrics"})


def _routes(service: Service) -> FastAPI:
    app = FastAPI(title="LLaVA-S2", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    chats = Chats(service)

    @app.post(
        CHAT,
        response_model=schema.ChatCompletion,
        responses=_ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
            }
        },
        description="With stream: server-sent events of chat.completion.chunk objects, then [DONE].",
    )
    async def chat(request: Request) -> Response:
        return await chats.answer(request)

    @app.get("/v1/models", responses={key: _ERRORS[key] for key in (401, 403)})
    async def models() -> schema.ModelList:
        return schema.ModelList(data=[schema.ModelCard(id=service.model, created=service.created)])

    @app.get("/v1/models/{model:path}", responses={key: _ERRORS[key] for key in (401, 403, 404)})
    async def model(model: str) -> schema.ModelCard:
        service.check_model(model)
        return schema.ModelCard(id=service.model, created=service.created)

    @app.get("/health", responses={503: {"model": schema.Health}, 403: _ERRORS[403]})
    async def health() -> Response:
        status = schema.Health(status="draining" if service.draining else "ok")
        return JSONResponse(status.model_dump(), 503 if service.draining else 200)

    @app.get("/metrics", responses={key: _ERRORS[key] for key in (401, 403)}, response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own, with the request that is parsed here, and without the 422 that there never is."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, definitions = models_json_schema(
            [(schema.ChatRequest, "validation")], ref_template="#/components/schemas/{model}"
        )
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
    refusal = ApiError(error.status_code, str(error.detail))
    return JSONResponse(refusal.body(), error.status_code, error.headers)
