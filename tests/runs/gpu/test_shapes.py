"""Shapes of known models."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import costs
from pipeline.models.config import normalised
from pipeline.types import UserError
from runs.gpu import shapes


def test_the_papers_variants_of_7b_and_13b() -> None:
    assert shapes.find("7b").variants == ("attn24-31", "attn21-31", "mlp24-31", "mlp21-31")
    assert shapes.find("13b").variants == ("attn30-39", "attn26-39", "mlp30-39", "mlp26-39")


@pytest.mark.parametrize("key", shapes.SHAPES)
def test_sizes_are_those_that_the_package_counts(key: str) -> None:
    shape = shapes.find(key)
    config = normalised(shape.config, Path("config.json"))
    assert shape.parameters == costs.parameters(config) and len(set(shape.variants)) == 4


def test_the_shapes_have_the_sizes_of_their_models() -> None:
    assert shapes.find("7b").parameters == 6_738_415_616  # transformers' count of Llama-2-7b-hf
    assert shapes.find("13b").parameters == 13_015_864_320


def test_another_name_lists_them() -> None:
    with pytest.raises(UserError, match="no shape '70b'; SHAPE is one of tiny, 7b, 13b"):
        shapes.find("70b")
