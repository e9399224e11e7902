"""A request of NAME_generate, read from Triton's tensors. Field names are those of TensorRT-LLM's backend."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship.triton.in_triton import ERROR_STATUS
from pipeline.ship.triton.in_triton.answers import FLAGS, AnswerForm
from pipeline.types import UserError

SAMPLING: dict[str, type] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "seed": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "ignore_eos": bool,
    "logprobs": int,
}
"""Field of a request → its type."""
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
RESERVED = ("triton_", "sequence_", "priority", "timeout", "binary_")
"""Beginnings of the parameters that Triton itself puts into a request."""
MAX_SHARE = 100
"""Characters of a share's name."""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One request for text.

    Attributes:
        prompt: its tokens.
        sampling: how the text is written.
        form: what the responses hold.
        share: requests of one share take turns with others as if they were one; '' is a share of its own.
    """

    prompt: list[int]
    sampling: Sampling
    form: AnswerForm
    share: str = ""

    @classmethod
    def read(cls, request: Any, prompts: Prompts) -> TextRequest:
        """Reads a request of Triton's Python backend.

        Args:
            request: its `InferenceRequest`.
            prompts: the model's tokenizer and chat template.

        Raises:
            UserError: a field is missing, wrong or unknown.
        """
        fields = _fields(request)
        for read_before in ("probe", ERROR_STATUS):
            fields.pop(read_before, None)
        text, messages = fields.pop("text_input", None), fields.pop("messages", None)
        if (text is None) == (messages is None):
            raise UserError("exactly one of text_input and messages is needed")
        flags = {name: _of_type(name, fields.pop(name), bool) for name in FLAGS if name in fields}
        share = fields.pop("share", "")
        if len(share) > MAX_SHARE:
            raise UserError(f"share has {len(share)} characters; it is a short name, {MAX_SHARE} at most")
        stop = tuple(fields.pop("stop_words", ()))
        values = {name: _of_type(name, value, SAMPLING[name]) for name, value in fields.items()}
        sampling = Sampling(stop=stop, **values)
        if messages is not None:
            try:
                text = prompts.render(json.loads(messages))
            except json.JSONDecodeError as error:
                raise UserError(f"messages is not JSON: {error}") from None
        prompt = prompts.encode(text or "", begin=messages is None)
        form = AnswerForm(
            **flags,
            logprobs=sampling.logprobs is not None,
            prompt=text or "",
            prompt_tokens=len(prompt),
        )
        return cls(prompt, sampling, form, share)


def is_set(request: Any, name: str) -> bool:
    """Whether a field that is true or false is true; the other fields, which may be wrong, are not read.

    Args:
        request: its `InferenceRequest`.
        name: of the field: `probe`, which only asks for a sign of life, or ERROR_STATUS.
    """
    return any(tensor.name() == name and bool(tensor.as_numpy().all()) for tensor in request.inputs())


def _fields(request: Any) -> dict[str, Any]:
    """Name → value, from the input tensors and from the request's parameters.

    Triton's `generate` endpoint puts JSON keys that are no inputs into the parameters.

    Raises:
        UserError: an unknown name, text that is not UTF-8, or several values.
    """
    fields = {tensor.name(): _value(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}
    parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
    for name, value in parameters.items():
        if name.startswith(RESERVED) or name in fields:
            continue
        if name not in SAMPLING and name not in FLAGS:
            raise UserError(f"there is no field {name!r}; the fields are in config.pbtxt")
        fields[name] = value
    return fields


def _of_type(name: str, value: Any, kind: type) -> Any:
    """The value, if it is of its field's type; a whole number is a fraction, too.

    Raises:
        UserError: it is of another: `"false"` would be true, and 3.7 tokens would be 3.
    """
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{name} is {value!r}, and not {KINDS[kind]}")
    return value


def _value(name: str, array: Any) -> Any:
    if array.dtype == np.object_ or array.dtype.kind == "S":
        try:
            texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is no UTF-8 text ({error.reason} at byte {error.start})") from None
        return texts if name == "stop_words" else "".join(texts)
    if array.size != 1:
        raise UserError(f"{name} has {array.size} values; one is expected")
    return array.reshape(-1)[0].item()
