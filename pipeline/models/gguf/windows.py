"""Which layers of a GGUF model attend within a window.

Source: llama.cpp's `llama_hparams::set_swa_pattern`. A list is taken as it is there too, one entry a layer,
held to xllamacpp 2026.10 (tests/models/gguf/test_dialects.py). It fills a shorter list up and cuts a longer
one, which are refused here, and it runs no model without any window.
"""

from __future__ import annotations

from typing import Any

from pipeline.models.config import FULL, SLIDING
from pipeline.models.gguf.numbers import TAKE, Numbers
from pipeline.types import UserError

_KEY = "attention.sliding_window_pattern"


def layer_types(numbers: Numbers, layers: int, period: int) -> list[str]:
    """Of every layer, whether it has the window, in transformers' words.

    Args:
        numbers: of the file.
        layers: L.
        period: the architecture's own: the last of so many layers sees everything. The file may say another,
            or say it of each layer.

    Raises:
        UserError: the key is of another kind.
    """
    given: Any = numbers.fields.get(f"{numbers.arch}.{_KEY}", period)
    if isinstance(given, list) and len(given) == layers and all(isinstance(one, bool | int) for one in given):
        has_window = [bool(one) for one in given]
    elif isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        has_window = slides(given, layers)
    else:
        raise UserError(f"{numbers.file}: {numbers.arch}.{_KEY} is {given!r:.60}; {TAKE}")
    return [SLIDING if one else FULL for one in has_window]


def slides(period: int, layers: int) -> list[bool]:
    """Of every layer, whether it has the window: all but the last of so many; of 0 all."""
    return [period == 0 or i % period < period - 1 for i in range(layers)]
