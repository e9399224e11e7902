"""The endpoints: /v1/models, /v1/completions, /v1/chat/completions, /health/ready."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from pipeline.ship.openai_front.answers import Writer
from pipeline.ship.openai_front.asked import AskedChat, AskedCompletion, Refusal, bad
from pipeline.ship.openai_front.pieces import Triton

CHAT_TOKENS = 256
"""New tokens of a chat where the client names no number; the cache keeps room for that many."""
COMPLETION_TOKENS = 16


def application(triton: Triton) -> FastAPI:
    """The endpoints."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if triton.client is not None:
            await triton.client.close()

    app = FastAPI(title="skip-pipeline", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse(bad(f"{where or 'body'}: {first['msg']}", where or None).body, 400)

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [_described(triton, name) for name in triton.models]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> Any:
        triton.model(name)
        return _described(triton, name)

    @app.get("/health/ready")
    async def ready() -> Response:
        for model in triton.models.values():
            async for _ in triton.pieces(model, {"text_input": "a", "max_tokens": 1}):
                pass
        return Response(status_code=200)

    @app.post("/v1/completions")
    async def completions(asked: AskedCompletion, request: Request) -> Any:
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        if not prompts:
            raise bad("prompt is an empty list", "prompt")
        fields = asked.fields(COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens)
        writer = Writer(triton, asked, "cmpl", request, prompts if asked.echo else None)
        return await writer.answer([{"text_input": prompt, **fields} for prompt in prompts])

    @app.post("/v1/chat/completions")
    async def chat(asked: AskedChat, request: Request) -> Any:
        named = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        fields = asked.fields(CHAT_TOKENS if named is None else named)
        return await Writer(triton, asked, "chatcmpl", request).answer(
            [{"messages": json.dumps(asked.plain()), **fields}]
        )

    return app


def _described(triton: Triton, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": triton.born, "owned_by": "skip-pipeline"}
