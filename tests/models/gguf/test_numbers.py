"""A number among the keys has its type, or is refused by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models.gguf.numbers import Numbers
from pipeline.types import UserError


def numbers(value: Any) -> Numbers:
    return Numbers(Path("m.gguf"), {} if value is None else {"llama.x": value}, "llama")


def test_what_is_there_is_read_and_what_is_not_has_its_default() -> None:
    assert (
        numbers(7).size("x") == 7
        and numbers([7, 7]).size("x", layers=2) == 7
        and numbers(None).size("x", 3) == 3
    )
    assert numbers(2).number("x") == 2.0 and numbers(None).number("x", 0.5) == 0.5
    assert numbers(float(np.float32(1e-5))).number("x") == 1e-5


@pytest.mark.parametrize("value", [0, -1, 2**32, 1.5, True, "7", [], [1, 2]])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"m\.gguf: llama\.x(: layers differ| is )"):
        numbers(value).size("x")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "7", [1.0]])
def test_a_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"m\.gguf: llama\.x is "):
        numbers(value).number("x")


def test_what_is_missing_is_named() -> None:
    for read in (numbers(None).size, numbers(None).number):
        with pytest.raises(UserError, match=r"m\.gguf lacks the key llama\.x"):
            read("x")


def test_sizes_are_one_a_layer_and_may_be_nought() -> None:
    assert numbers([4, 0, 4]).sizes("x", 3) == [4, 0, 4] and numbers(4).sizes("x", 3) == [4, 4, 4]
    assert numbers(None).sizes("x", 2, [1, 2]) == [1, 2]


@pytest.mark.parametrize("value", [[4, 0], [4, -1, 4], [4, 1.0, 4], [4, True, 4], [4, 2**32, 4], ["4"] * 3])
def test_sizes_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"m\.gguf: llama\.x (has|is) "):
        numbers(value).sizes("x", 3)
    with pytest.raises(UserError, match=r"m\.gguf lacks the key llama\.x"):
        numbers(None).sizes("x", 3)
