"""What clients send, in the API's words.

Reference: https://platform.openai.com/docs/api-reference/completions and …/chat
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from pipeline.ship.openai_front.errors import Refusal, bad
from pipeline.ship.openai_front.messages import rendered

SAMPLING = {
    "top_p", "seed", "presence_penalty", "frequency_penalty",
    "top_k", "repetition_penalty", "ignore_eos",
}  # fmt: skip
"""Arguments that NAME_generate takes under the same name; the second line is not OpenAI's but vLLM's."""
HARMLESS = {
    "user", "metadata", "store", "service_tier",
    "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
}  # fmt: skip
"""Arguments of the API that change nothing here."""
MOST_PROMPTS, MOST_CHOICES, MOST_TOKENS, MOST_ALTERNATIVES = 64, 8, 65_536, 100_000
"""Of one request: prompts, choices of each, tokens of all choices, and alternatives of all those tokens."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextArguments(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 64)
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)

    @property
    def choices(self) -> int:
        """Choices of each prompt."""
        return self.n or 1

    def alternatives(self) -> int | None:
        """Alternatives of each token, with their log-probabilities; None where no such are wanted."""
        return None

    def fields(self, max_tokens: int, prompts: int) -> list[dict[str, Any]]:
        """The fields of NAME_generate for each choice of a prompt, but the prompt.

        The API's default temperature is 1. With a seed, choice k has seed + k: the choices differ, and the
        same request gives them again.

        Raises:
            Refusal: an argument is not supported here, or more is asked for than one request may.
        """
        for name, value in (self.model_extra or {}).items():
            if name not in HARMLESS and value not in (None, False, [], {}, {"type": "text"}):
                raise bad(f"the argument {name[:200]!r} is not supported here", name[:200])
        most = prompts * self.choices * max_tokens
        if most > MOST_TOKENS:
            raise bad(
                f"prompts × n × max_tokens is {prompts} × {self.choices} × {max_tokens} = {most:,} tokens; "
                f"one request may ask for {MOST_TOKENS:,}",
                "max_tokens",
            )
        if most * (self.alternatives() or 0) > MOST_ALTERNATIVES:
            raise bad(
                f"{most:,} tokens with {self.alternatives()} alternatives each; one request may ask for "
                f"{MOST_ALTERNATIVES:,} alternatives",
                "logprobs",
            )
        fields = self.model_dump(include=SAMPLING, exclude_none=True)
        fields["temperature"] = 1.0 if self.temperature is None else self.temperature
        fields["max_tokens"] = max_tokens
        if self.stop:
            fields["stop_words"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if self.alternatives() is not None:
            fields["logprobs"] = self.alternatives()
        seeds = [] if self.seed is None else [(self.seed + k) % (1 << 64) for k in range(self.choices)]
        return [{**fields, "seed": seed} for seed in seeds] or [fields] * self.choices


class CompletionRequest(TextArguments):
    """Body of /v1/completions."""

    prompt: str | list[str]
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    @field_validator("prompt", mode="before")
    @classmethod
    def _no_token_ids(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(isinstance(one, int | list) for one in prompt):
            raise PydanticCustomError("token_ids", "token ids are not supported here; send text")
        return prompt

    def alternatives(self) -> int | None:
        """Of each token; 0 gives the tokens' own log-probabilities alone."""
        return self.logprobs

    def inputs(self) -> list[dict[str, Any]]:
        """A request to NAME_generate for each choice, those of one prompt side by side.

        Raises:
            Refusal: see `fields`; or the prompts are none or too many.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts:
            raise bad("prompt is an empty list", "prompt")
        if len(prompts) > MOST_PROMPTS:
            raise bad(f"{len(prompts)} prompts; one request may have {MOST_PROMPTS}", "prompt")
        if self.best_of not in (None, self.choices):
            raise bad("best_of must equal n: every choice that is written is given", "best_of")
        if self.echo and self.logprobs is not None:
            raise bad("logprobs with echo are not supported: a prompt's tokens have none here", "logprobs")
        choices = self.fields(16 if self.max_tokens is None else self.max_tokens, len(prompts))
        echo = {"exclude_input_in_output": False} if self.echo else {}
        return [{"text_input": prompt, **fields, **echo} for prompt in prompts for fields in choices]


class ChatRequest(TextArguments):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: StrictBool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def alternatives(self) -> int | None:
        """Of each token.

        Raises:
            Refusal: `top_logprobs` without `logprobs`.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs needs logprobs: true", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def inputs(self) -> list[dict[str, Any]]:
        """A request to NAME_generate for each choice.

        The cache keeps room for the limit; where none is named: 256.

        Raises:
            Refusal: see `fields`; or the messages are not text.
        """
        limits = [limit for limit in (self.max_completion_tokens, self.max_tokens, 256) if limit is not None]
        messages = rendered(self.messages)
        return [{"messages": messages, **fields} for fields in self.fields(limits[0], 1)]


Body = TypeVar("Body", bound=BaseModel)


async def read(kind: type[Body], connection: Request) -> Body:
    """The body of a request, parsed strictly.

    pydantic's parser refuses what Python's takes or fails on: half surrogates, integers of thousands of
    digits, nesting without end.

    Raises:
        Refusal: it is no JSON, or has another form.
    """
    content = connection.headers.get("content-type", "")
    if content.partition(";")[0].strip().lower() != "application/json":  # what forms of web pages cannot send
        message = "the body must be JSON, with the header Content-Type: application/json"
        raise Refusal(415, message, "invalid_request_error")
    try:
        return kind.model_validate_json(await connection.body())
    except ValidationError as error:
        raise malformed(error) from None


def malformed(error: ValidationError) -> Refusal:
    """What is wrong first; of an argument that may have several forms, why it has none of them."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    param = str(errors[0]["loc"][0])[:200] if errors[0]["loc"] else None
    reasons = dict.fromkeys(one["msg"] for one in errors if one["loc"][:1] == errors[0]["loc"][:1])
    return bad(f"{param or 'the body'}: {', or '.join(reasons)}", param)
