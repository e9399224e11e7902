"""The endpoints: /v1/models, /v1/completions, /v1/chat/completions, /health/ready."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from pipeline.ship.openai_front.events import TextModels
from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest, Refusal, bad
from pipeline.ship.openai_front.responses import answer


def application(models: TextModels) -> FastAPI:
    """The endpoints before these models."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if models.client is not None:
            await models.client.close()

    handlers: dict[Any, Any] = {Refusal: _refused, RequestValidationError: _malformed}
    app = FastAPI(
        title="skip-pipeline", docs_url=None, redoc_url=None, lifespan=lifespan, exception_handlers=handlers
    )

    @app.get("/v1/models")
    async def all_models() -> Any:
        return {"object": "list", "data": [models.described(name) for name in models.models]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> Any:
        return models.described(name)

    @app.get("/health/ready")
    async def ready() -> Response:
        for name in models.models:
            async for _ in models.events(name, {"text_input": "a", "max_tokens": 1}):
                pass
        return Response(status_code=200)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, connection: Request) -> Any:
        return await answer(models, body, connection)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, connection: Request) -> Any:
        return await answer(models, body, connection)

    return app


async def _refused(_: Request, error: Refusal) -> Response:
    return JSONResponse(error.body, error.status)


async def _malformed(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse(bad(f"{where or 'body'}: {first['msg']}", where or None).body, 400)
