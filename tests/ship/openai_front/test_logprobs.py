"""Log-probabilities in the API's forms."""

from __future__ import annotations

from typing import Any

from pipeline.ship.openai_front.logprobs import CompletionLogprobs, of_chat


def token(text: str, logprob: float, content: bytes | None, *top: Any) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": content and list(content), "top": list(top)}


def alternative(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


SMILE = "😀".encode()
TOKENS = [
    token(" so", -0.5, b" so", alternative(" a", -0.25), alternative(" so", -0.5)),
    token("\\xf0\\x9f", -1.0, SMILE[:2]),
    token("\\x98\\x80", -2.0, SMILE[2:]),
    token("<|im_end|>", -3.0, None),
    token("é", -4.0, "é".encode()),
]


def test_the_form_of_completions() -> None:
    form = CompletionLogprobs()
    first, rest = form.of(TOKENS[:2]), form.of(TOKENS[2:])
    assert first["tokens"] == [" so", "bytes:\\xf0\\x9f"] and first["token_logprobs"] == [-0.5, -1.0]
    assert first["top_logprobs"] == [{" a": -0.25, " so": -0.5}, {"bytes:\\xf0\\x9f": -1.0}]
    assert rest["tokens"] == ["bytes:\\x98\\x80", "<|im_end|>", "é"]
    assert first["text_offset"] + rest["text_offset"] == [0, 3, 3, 4, 4]  # of " so😀é"


def test_the_form_of_chats() -> None:
    content = of_chat(TOKENS)["content"]
    tops = [alternative(" a", -0.25), alternative(" so", -0.5)]
    assert content[0] == {"token": " so", "logprob": -0.5, "bytes": list(b" so"), "top_logprobs": tops}
    assert content[3]["bytes"] is None and content[4]["top_logprobs"] == []
