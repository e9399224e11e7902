"""Log-probabilities in the API's two forms.

Reference: https://platform.openai.com/docs/api-reference/chat/object and …/completions/object, `logprobs`
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from pipeline.runtime.generation.spelling import readable

Token = dict[str, Any]
"""As NAME_generate describes it: token, logprob, bytes (None for a special token), top (alternatives)."""


def of_chat(tokens: Iterable[Token]) -> dict[str, Any]:
    """The form of chats."""
    return {"content": [{**_plain(one), "top_logprobs": [_plain(t) for t in one["top"]]} for one in tokens]}


class CompletionLogprobs:
    """The form of completions, for one choice; `text_offset` counts characters from its beginning."""

    def __init__(self) -> None:
        self.characters = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The next tokens of the choice. The alternatives hold the token itself too, as OpenAI's do."""
        lists: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []
        }  # fmt: skip
        for one in tokens:
            lists["tokens"].append(_name(one))
            lists["token_logprobs"].append(one["logprob"])
            likeliest = dict[str, float]()
            for alternative in [*one["top"], one]:  # of equal names the likeliest, which comes first
                likeliest.setdefault(_name(alternative), alternative["logprob"])
            lists["top_logprobs"].append(likeliest)
            lists["text_offset"].append(self.characters)
            self.characters += len(self.decoder.decode(bytes(one["bytes"] or [])))
        return lists


def _plain(token: Token) -> dict[str, Any]:
    return {name: token[name] for name in ("token", "logprob", "bytes")}


def _name(token: Token) -> str:
    r"""The token's text; bytes that are no whole characters as `bytes:\xf0\x9f`."""
    content = bytes(token["bytes"] or [])
    try:
        content.decode()
    except UnicodeDecodeError:
        return "bytes:" + readable(content)
    return str(token["token"])
