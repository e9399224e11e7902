"""What OpenAI's own client gets from a server, whatever its model.

`python -m tests.ship.openai_front.client_checks URL MODEL [--api-key KEY]` asks a running
`pipeline serve FOLDER --openai`, prints a line for each check, and exits with 1 where one fails. URL is
that of the front, such as http://127.0.0.1:9000; the key is PIPELINE_API_KEY where none is named.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import openai

PROMPT, OTHER = "The capital of France is", "One, two, three,"
CHAT: Any = [{"role": "user", "content": "What is the time?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
DRAWN: dict[str, Any] = {"temperature": 1, "max_tokens": 12, "seed": 5}

Check = Callable[[openai.OpenAI, str], None]
CHECKS: dict[str, Check] = {}
"""What is checked → the check, which raises AssertionError or the client's error."""


def check(what: str) -> Callable[[Check], Check]:
    """Registers a check."""

    def register(function: Check) -> Check:
        CHECKS[what] = function
        return function

    return register


def completed(client: openai.OpenAI, model: str, /, **arguments: Any) -> Any:
    return client.completions.create(**{"model": model, "prompt": PROMPT, **GREEDY, **arguments})


def chatted(client: openai.OpenAI, model: str, /, **arguments: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": CHAT, **GREEDY, **arguments})


def error_of(asks: Callable[[], Any], what: str) -> openai.APIStatusError:
    """The error that a request ends with."""
    try:
        asks()
    except openai.APIStatusError as error:
        return error
    raise AssertionError(f"{what} was not refused")


def texts(answer: Any) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text if hasattr(choice, "text") else choice.message.content for choice in answer.choices]


@check("models are listed and found by name")
def _models(client: openai.OpenAI, model: str) -> None:
    assert model in [one.id for one in client.models.list()]
    assert client.models.retrieve(model).id == model


@check("a completion: text, reason, usage")
def _completion(client: openai.OpenAI, model: str) -> None:
    answer = completed(client, model)
    assert answer.object == "text_completion" and answer.model == model and answer.id.startswith("cmpl-")
    assert texts(answer)[0] and answer.choices[0].finish_reason in ("length", "stop")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert texts(completed(client, model)) == texts(answer)
    assert texts(completed(client, model, echo=True)) == [PROMPT + texts(answer)[0]]


@check("a streamed completion is the whole one, with its usage")
def _stream(client: openai.OpenAI, model: str) -> None:
    whole = completed(client, model)
    *chunks, last = completed(client, model, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts(whole)[0]
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not last.choices and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in completed(client, model, stream=True))


@check("a chat, whole and streamed")
def _chat(client: openai.OpenAI, model: str) -> None:
    whole = chatted(client, model)
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
    *chunks, last = chatted(client, model, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == texts(whole)[0]
    assert chunks[0].choices[0].delta.role == "assistant" and last.usage == whole.usage
    both = chatted(client, model, max_completion_tokens=3)
    assert both.usage.completion_tokens <= 3


@check("roles and contents of messages")
def _messages(client: openai.OpenAI, model: str) -> None:
    def said(*messages: dict[str, Any]) -> list[str]:
        return texts(chatted(client, model, messages=[*messages, *CHAT]))

    user: Any = {"role": "user", "content": "a b"}
    assert said({"role": "developer", "content": "x"}) == said({"role": "system", "content": "x"})
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert said({**user, "content": parts}, {"role": "assistant", "content": None}) == said(
        {**user, "name": "Ann"}, {"role": "assistant", "content": ""}
    )


@check("n choices, by prompt, and a prompt counts once")
def _choices(client: openai.OpenAI, model: str) -> None:
    one, other = completed(client, model), completed(client, model, prompt=OTHER)
    answer = completed(client, model, prompt=[PROMPT, OTHER], n=2)
    assert texts(answer) == [*texts(one) * 2, *texts(other) * 2]
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens + other.usage.prompt_tokens
    assert answer.usage.completion_tokens == 2 * (one.usage.completion_tokens + other.usage.completion_tokens)
    assert len(set(texts(chatted(client, model, n=8)))) == 1
    written = {0: "", 1: ""}
    for chunk in completed(client, model, n=2, stream=True):
        written[chunk.choices[0].index] += chunk.choices[0].text
    assert list(written.values()) == texts(one) * 2


@check("a seed gives the same text, and choice k that of seed + k")
def _seed(client: openai.OpenAI, model: str) -> None:
    first, second = (texts(completed(client, model, **DRAWN, n=2)) for _ in range(2))
    assert first == second
    alone = [texts(completed(client, model, **{**DRAWN, "seed": seed}))[0] for seed in (5, 6)]
    assert alone == first
    assert texts(chatted(client, model, **DRAWN)) == texts(chatted(client, model, **DRAWN))


@check("a stop string ends the text and does not appear")
def _stop(client: openai.OpenAI, model: str) -> None:
    whole = texts(completed(client, model))[0]
    stop = whole[len(whole) // 2 :][:3]
    cut = completed(client, model, stop=["never\n\nsaid", stop])
    assert texts(cut) == [whole[: whole.find(stop)]] and cut.choices[0].finish_reason == "stop"
    assert texts(completed(client, model, stop=stop, stream=False)) == texts(cut)


@check("log-probabilities of a completion line up with its text")
def _logprobs(client: openai.OpenAI, model: str) -> None:
    for count in (0, 3):
        answer = completed(client, model, logprobs=count)
        lists = answer.choices[0].logprobs
        _line_up(lists, answer.choices[0].text, count)
        chunks = [one.choices[0] for one in completed(client, model, logprobs=count, stream=True)]
        for name in ("tokens", "token_logprobs", "text_offset"):
            streamed = [one for chunk in chunks for one in getattr(chunk.logprobs, name)]
            assert streamed == getattr(lists, name) or name == "token_logprobs"
    assert completed(client, model).choices[0].logprobs is None


def _line_up(lists: Any, text: str, count: int) -> None:
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == len(lists.top_logprobs)
    assert lists.tokens and all(value <= 0 for value in lists.token_logprobs)
    assert lists.text_offset[0] == 0 and sorted(lists.text_offset) == lists.text_offset
    for token, offset in zip(lists.tokens, lists.text_offset, strict=True):
        assert text.startswith(token, offset) or token.startswith("bytes:") or token.startswith("<")
    for token, value, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
        assert top[token] == value and value == max(top.values())  # greedy: the likeliest
        assert 1 <= len(top) <= count + 1


@check("log-probabilities of a chat line up with its text")
def _chat_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = chatted(client, model, logprobs=True, top_logprobs=4)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes or []) for one in content) == texts(answer)[0].encode()
    for one in content:
        values = [top.logprob for top in one.top_logprobs]
        assert len(values) == 4 and values == sorted(values, reverse=True) and one.logprob == values[0]
        assert sum(map(math.exp, values)) <= 1 + 1e-6
    chunks = chatted(client, model, logprobs=True, stream=True)
    streamed = [one for chunk in chunks for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]
    assert all(one.top_logprobs == [] for one in streamed)
    assert chatted(client, model).choices[0].logprobs is None


REFUSED: tuple[tuple[dict[str, Any], type[openai.APIStatusError], str | None], ...] = (
    ({"model": "gpt-99"}, openai.NotFoundError, "model"),
    ({"prompt": ""}, openai.BadRequestError, "prompt"),
    ({"prompt": []}, openai.BadRequestError, "prompt"),
    ({"prompt": [1, 2]}, openai.BadRequestError, "prompt"),
    ({"prompt": ["a"] * 65}, openai.BadRequestError, "prompt"),
    ({"n": 9}, openai.BadRequestError, "n"),
    ({"n": 0}, openai.BadRequestError, "n"),
    ({"best_of": 3}, openai.BadRequestError, "best_of"),
    ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
    ({"max_tokens": 1 << 40}, openai.BadRequestError, "max_tokens"),
    ({"temperature": -1}, openai.BadRequestError, "temperature"),
    ({"top_p": 0}, openai.BadRequestError, "top_p"),
    ({"seed": -1}, openai.BadRequestError, "seed"),
    ({"stop": [""]}, openai.BadRequestError, "stop"),
    ({"stop": ["a"] * 17}, openai.BadRequestError, "stop"),
    ({"stop": "a" * 257}, openai.BadRequestError, "stop"),
    ({"logprobs": 6}, openai.BadRequestError, "logprobs"),
    ({"logprobs": 1, "echo": True}, openai.BadRequestError, "logprobs"),
    ({"suffix": "x"}, openai.BadRequestError, "suffix"),
    ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
)


@check("wrong requests are refused by class and argument, also where a stream was asked for")
def _refused(client: openai.OpenAI, model: str) -> None:
    for arguments, kind, param in REFUSED:
        for stream in (False, True):
            asks = partial(completed, client, model, stream=stream, **arguments)
            error = error_of(asks, str(arguments)[:80])
            assert (type(error), error.param) == (kind, param), (arguments, repr(error))
            assert error.type == "invalid_request_error" and error.body["message"]


@check("wrong chats are refused by class and argument")
def _refused_chats(client: openai.OpenAI, model: str) -> None:
    for arguments, param in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "pirate", "content": "a"}]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ):
        error = error_of(partial(chatted, client, model, **arguments), str(arguments))
        assert type(error) is openai.BadRequestError and error.param == param, (arguments, repr(error))


BODIES: tuple[tuple[bytes, str], ...] = (
    (b"", "no body"),
    (b"{", "half an object"),
    (b"\xff\xfe", "no UTF-8"),
    (b"[" * 50_000, "deep nesting"),
    (b'{"model": "MODEL", "prompt": "\\ud800"}', "half a surrogate"),
    (b'{"model": "MODEL", "prompt": "a", "stop": "\\udfff"}', "half a surrogate"),
    (b'{"model": "MODEL", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "5,000 digits"),
    (b'{"model": "MODEL", "prompt": "a", "temperature": NaN}', "NaN"),
)


@check("bodies, paths and methods that are none have errors in the API's form")
def _raw(client: openai.OpenAI, model: str) -> None:
    asked = [(client.post, "/completions", body.replace(b"MODEL", model.encode()), 400) for body, _ in BODIES]
    others: list[Any] = [(client.post, "/embeddings", b"{}", 404), (client.get, "/completions", None, 405)]
    for method, path, body, status in [*asked, *others]:
        headers = {"Content-Type": "application/json"}
        content = {"content": body, "options": {"headers": headers}} if body is not None else {}
        what = f"{path} {(body or b'')[:60]!r}"
        error = error_of(partial(method, path, cast_to=object, **content), what)
        assert error.status_code == status, (what, repr(error))
        assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
    assert texts(completed(client, model, prompt="nul \0 in it"))  # a character as others


@check("another key is refused, where the server asks for one")
def _key(client: openai.OpenAI, model: str) -> None:
    if client.api_key == "none":
        return
    error = error_of(partial(completed, client.with_options(api_key="another"), model), "another key")
    assert type(error) is openai.AuthenticationError and error.code == "invalid_api_key"


@check("AsyncOpenAI: many at once, and a stream that is left")
def _async(client: openai.OpenAI, model: str) -> None:
    expected = [texts(completed(client, model, prompt=prompt))[0] for prompt in (PROMPT, OTHER)]

    async def ask() -> None:
        arguments: Any = {"model": model, **GREEDY}
        async with openai.AsyncOpenAI(
            base_url=client.base_url, api_key=client.api_key, max_retries=0
        ) as many:
            answers = await asyncio.gather(
                *(many.completions.create(prompt=p, **arguments) for p in (PROMPT, OTHER) * 4)
            )
            assert [answer.choices[0].text for answer in answers] == expected * 4
            stream = await many.chat.completions.create(messages=CHAT, stream=True, **arguments)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(ask())


def failure(what: str, client: openai.OpenAI, model: str) -> str | None:
    """Why a check fails; None where it passes."""
    try:
        CHECKS[what](client, model)
    except (AssertionError, openai.OpenAIError) as error:
        place = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in place if frame.filename == __file__][-1]
        return f"line {own.lineno}: {own.line}: {type(error).__name__} {str(error)[:300]}"
    return None


def main() -> int:
    """Runs all checks; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--api-key", default=os.environ.get("PIPELINE_API_KEY") or "none")
    given = parser.parse_args()
    failures = 0
    with openai.OpenAI(
        base_url=f"{given.url.rstrip('/')}/v1", api_key=given.api_key, max_retries=0
    ) as client:
        for what in CHECKS:
            reason = failure(what, client, given.model)
            failures += reason is not None
            print(f"{'passed' if reason is None else 'FAILED'}  {what}{f' ({reason})' if reason else ''}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
