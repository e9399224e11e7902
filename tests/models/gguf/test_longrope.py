"""The rope of Phi-3's long versions, and its window, from a file's keys and tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models.gguf import longrope
from pipeline.models.gguf.longrope import LONG, SHORT
from pipeline.models.gguf.numbers import Numbers
from pipeline.types import UserError

CONFIG = {"head_dim": 8, "max_position_embeddings": 256, "original_max_position_embeddings": 64,
          "partial_rotary_factor": 1.0}  # fmt: skip
USUAL = math.sqrt(1 + math.log(4) / math.log(64))
TABLES = {LONG: np.array([1.0, 2.0, 3.0, 4.5]), SHORT: np.array([1.0, 1.1, 1.2, 1.3])}


def numbers(**fields: Any) -> Numbers:
    return Numbers(Path("m.gguf"), {f"phi3.{key}": value for key, value in fields.items()}, "phi3")


def test_tensors_and_the_usual_factor() -> None:
    given = numbers(**{"rope.scaling.attn_factor": float(np.float32(USUAL))})
    assert longrope.scaling(given, TABLES, CONFIG) == {
        "rope_type": "longrope",
        "long_factor": [1.0, 2.0, 3.0, 4.5],
        "short_factor": [1.0, 1.1, 1.2, 1.3],
    }
    assert longrope.scaling(numbers(), {}, CONFIG) is None


def test_another_factor_is_said() -> None:
    scaling = longrope.scaling(numbers(**{"rope.scaling.attn_factor": 1.5}), TABLES, CONFIG)
    assert scaling is not None and scaling["attention_factor"] == 1.5
    scaling = longrope.scaling(numbers(), TABLES, CONFIG)  # llama.cpp's own is 1
    assert scaling is not None and scaling["attention_factor"] == 1.0


@pytest.mark.parametrize(
    ("tables", "factor", "message"),
    [
        ({LONG: TABLES[LONG]}, 1.0, f"lacks the tensor {SHORT}"),
        ({SHORT: TABLES[SHORT]}, 1.0, f"lacks the tensor {LONG}"),
        ({**TABLES, LONG: np.ones(3)}, 1.0, "has odd numbers"),
        ({**TABLES, SHORT: np.array([1.0, 0.0, 1.0, 1.0])}, 1.0, "has odd numbers"),
        ({}, 1.5, f"attn_factor is 1.5, and {LONG} is missing"),
    ],
)
def test_what_is_missing_or_odd_is_refused(tables: Any, factor: float, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        longrope.scaling(numbers(**{"rope.scaling.attn_factor": factor}), tables, CONFIG)
    assert "\n" not in str(caught.value)


def test_window_and_part_of_a_head() -> None:
    sizes = {"head_dim": 8, "max_position_embeddings": 256}
    assert longrope.phi3(numbers(), sizes) == {
        "sliding_window": None, "original_max_position_embeddings": 256, "partial_rotary_factor": 1.0,
    }  # fmt: skip
    given = {
        "attention.sliding_window": 9,
        "rope.dimension_count": 6,
        "rope.scaling.original_context_length": 64,
    }
    assert longrope.phi3(numbers(**given), sizes) == {
        "sliding_window": 9, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75,
    }  # fmt: skip
