"""Fields of a request as Triton's tensors."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ship.triton import text_model


def test_fields_have_the_types_that_the_config_names() -> None:
    fields = {
        "text_input": "é",
        "max_tokens": 3,
        "top_p": 0.5,
        "stream": True,
        "seed": 2**64 - 1,
        "stop_words": ["a", "b"],
    }
    kinds = {tensor.name(): (tensor.datatype(), tensor.shape()) for tensor in text_model.tensors(fields)}
    assert kinds == {
        "text_input": ("BYTES", [1, 1]),
        "max_tokens": ("INT32", [1, 1]),
        "top_p": ("FP32", [1, 1]),
        "stream": ("BOOL", [1, 1]),
        "seed": ("UINT64", [1, 1]),
        "stop_words": ("BYTES", [1, 2]),
    }


def test_the_bytes_are_those_of_the_values() -> None:
    (tensor,) = text_model.tensors({"text_input": "é"})
    assert tensor._get_content() == b"\x02\x00\x00\x00\xc3\xa9"  # the length, then UTF-8
    (tensor,) = text_model.tensors({"seed": 7})
    assert np.frombuffer(tensor._get_content(), np.uint64).tolist() == [7]


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        text_model.tensors({"max_tokens": 1 << 40})
