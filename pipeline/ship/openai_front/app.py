"""The endpoints: /v1/models, /v1/completions, /v1/chat/completions, /health/ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from pipeline.ship.openai_front import errors
from pipeline.ship.openai_front.errors import Refusal, down
from pipeline.ship.openai_front.events import TextModels
from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest, read
from pipeline.ship.openai_front.responses import answer

PROBE = {"text_input": "a", "max_tokens": 1, "probe": True}
PATIENCE = 60.0
"""Seconds that a model may take for the probe; one that is busy says so at once."""


def application(models: TextModels) -> FastAPI:
    """The endpoints before these models."""
    app = _bare_application(models)

    @app.get("/v1/models")
    async def all_models() -> Any:
        return {"object": "list", "data": [models.described(name) for name in models.models]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> Any:
        return models.described(name)

    @app.get("/health/ready")
    async def ready() -> Response:
        for name in models.models:
            await _probe(models, name)
        return Response(status_code=200)

    @app.post("/v1/completions")
    async def completions(connection: Request) -> Any:
        return await answer(models, await read(CompletionRequest, connection), connection)

    @app.post("/v1/chat/completions")
    async def chat(connection: Request) -> Any:
        return await answer(models, await read(ChatRequest, connection), connection)

    return app


def _bare_application(models: TextModels) -> FastAPI:
    """No endpoint, not even the framework's own; every error in the API's form."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await models.close()

    no_pages: dict[str, Any] = dict.fromkeys(("docs_url", "redoc_url", "openapi_url"))
    app = FastAPI(title="skip-pipeline", redirect_slashes=False, lifespan=lifespan, **no_pages)
    errors.install(app)
    return app


async def _probe(models: TextModels, name: str) -> None:
    """Asks a model for a sign of life.

    Raises:
        Refusal: 503, it gives none.
    """
    if (reason := models.states.reason(models.models[name])) is not None:
        raise down(reason)
    try:
        async with asyncio.timeout(PATIENCE):
            async for _ in models.events(name, dict(PROBE)):
                pass
    except (Refusal, TimeoutError) as error:
        reason = str(error) or f"no token in {PATIENCE:.0f} s"
        raise down(f"{name} does not answer: {reason}") from None
