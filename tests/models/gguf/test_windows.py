"""Which layers have a window is what llama.cpp's pattern says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models.gguf.numbers import Numbers
from pipeline.models.gguf.windows import layer_types
from pipeline.types import UserError

WINDOW, WHOLE = "sliding_attention", "full_attention"


def types(given: Any, layers: int = 4, period: int = 2) -> list[str]:
    fields = {} if given is None else {"gemma2.attention.sliding_window_pattern": given}
    return layer_types(Numbers(Path("m.gguf"), fields, "gemma2"), layers, period)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [WINDOW, WHOLE, WINDOW, WHOLE]),
        (3, [WINDOW, WINDOW, WHOLE, WINDOW]),
        (1, [WHOLE] * 4),
        (0, [WINDOW] * 4),
        ([True, False, False, True], [WINDOW, WHOLE, WHOLE, WINDOW]),
        ([1, 0, 1, 1], [WINDOW, WHOLE, WINDOW, WINDOW]),
    ],
)
def test_the_last_layer_of_a_period_sees_everything(given: Any, expected: list[str]) -> None:
    assert types(given) == expected


@pytest.mark.parametrize("given", [[True], "two", -1, 2.0, True])
def test_another_kind_of_pattern_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"m\.gguf: gemma2\.attention\.sliding_window_pattern is ") as caught:
        types(given)
    assert "\n" not in str(caught.value)
