"""Requests of Triton as requests for text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship.triton.in_triton.answers import AnswerForm
from pipeline.ship.triton.in_triton.requests import TextRequest
from pipeline.types import UserError
from tests import serving, tiny
from tests.triton_backend import Request


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    folder = tiny.checkpoint(tmp_path_factory.mktemp("requests"), vocab_size=tiny.WORDS)
    tiny.tokenizer(folder)
    (folder / "chat_template.jinja").write_text(serving.CHAT)
    Path(folder / "generation_config.json").unlink(missing_ok=True)
    return tokenizer.prompts(folder)


def test_defaults(prompts: Prompts) -> None:
    request = TextRequest.read(Request(text_input="the time"), prompts)
    tokens = prompts.encode("the time")
    assert request == TextRequest(
        tokens, Sampling(), AnswerForm(prompt="the time", prompt_tokens=len(tokens))
    )


def test_fields_from_tensors_and_parameters(prompts: Prompts) -> None:
    parameters = {"top_k": 5, "stream": True, "seed": 7, "triton_enable_empty_final_response": True}
    fields = {"temperature": np.float32([[0.5]]), "seed": np.uint64([[2**64 - 1]]), "stop_words": ["a", "b"]}
    flags = {"exclude_input_in_output": False, "return_num_input_tokens": True}
    request = TextRequest.read(Request(parameters, text_input="x", **fields, **flags), prompts)
    # A tensor goes before a parameter of the same name.
    assert request.sampling == Sampling(temperature=0.5, top_k=5, seed=2**64 - 1, stop=("a", "b"))
    form = request.form
    assert form.stream and form.return_num_input_tokens and not form.exclude_input_in_output
    assert not form.return_finish_reason


def test_the_share_is_a_name(prompts: Prompts) -> None:
    assert TextRequest.read(Request(text_input="x", share="abc"), prompts).share == "abc"
    assert TextRequest.read(Request(text_input="x"), prompts).share == ""


def test_log_probabilities_are_an_output_where_they_are_wanted(prompts: Prompts) -> None:
    request = TextRequest.read(Request(text_input="x", logprobs=np.int32([[0]])), prompts)
    assert request.sampling.logprobs == 0 and request.form.logprobs
    assert not TextRequest.read(Request(text_input="x"), prompts).form.logprobs


def test_a_chat_goes_through_the_template(prompts: Prompts) -> None:
    messages = [{"role": "user", "content": "x"}]
    request = TextRequest.read(Request(messages=json.dumps(messages)), prompts)
    assert request.form.prompt == prompts.render(messages) == "<s>user: x</s>assistant: "
    assert request.prompt == prompts.encode(request.form.prompt, begin=False)


@pytest.mark.parametrize(
    ("fields", "parameters", "message"),
    [
        ({}, {}, "exactly one of text_input and messages is needed"),
        ({"text_input": "a", "messages": "[]"}, {}, "exactly one of text_input and messages is needed"),
        ({"text_input": "a"}, {"max_token": 3}, "there is no field 'max_token'"),
        ({"text_input": "a"}, {"stream": "false"}, "stream is 'false', and not true or false"),
        ({"text_input": "a"}, {"max_tokens": 3.7}, "max_tokens is 3.7, and not a whole number"),
        ({"text_input": "a"}, {"max_tokens": True}, "max_tokens is True, and not a whole number"),
        ({"text_input": "a"}, {"temperature": "0.5"}, "temperature is '0.5', and not a number"),
        ({"text_input": "a"}, {"seed": -1}, "seed -1 is negative"),
        ({"text_input": "a"}, {"logprobs": 21}, "logprobs 21 is not between 0 and 20"),
        ({"text_input": "a"}, {"logprobs": True}, "logprobs is True, and not a whole number"),
        ({"text_input": b"\xff"}, {}, "text_input is no UTF-8 text"),
        ({"text_input": "a", "top_k": np.int32([[1, 2]])}, {}, "top_k has 2 values; one is expected"),
        ({"text_input": "a", "stop_words": [""]}, {}, "a stop string is empty"),
        ({"messages": "no"}, {}, "messages is not JSON"),
        ({"text_input": ""}, {}, "the prompt is empty"),
        ({"text_input": "a", "share": "x" * 101}, {}, "share has 101 characters; it is a short name, 100 at"),
    ],
)
def test_what_is_wrong_is_said(
    prompts: Prompts, fields: dict[str, Any], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TextRequest.read(Request(parameters, **fields), prompts)
