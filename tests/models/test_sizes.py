"""The rules of every architecture: found by the name of their file, Llama's where there is none."""

from __future__ import annotations

import pkgutil

import pytest

from pipeline.models import costs, sizes
from pipeline.models.sizes import SizeRules
from pipeline.types import SkipSet
from tests import tiny


def config(model_type: str) -> dict[str, object]:
    return {**tiny.COMMON, **tiny.DIALECTS.get(model_type, {}), "model_type": model_type}


def test_an_architecture_without_a_file_has_llamas_sizes() -> None:
    assert sizes.rules_of("llama") == sizes.rules_of("nobody_knows") == sizes.rules_of(None) == SizeRules()


@pytest.mark.parametrize("model_type", [module.name for module in pkgutil.iter_modules(sizes.__path__)])
def test_a_file_is_there_because_its_sizes_differ(model_type: str) -> None:
    assert sizes.rules_of(model_type) != SizeRules()


def test_phi_counts_the_norm_of_both_branches_once() -> None:
    whole = costs.parameters(config("phi"))
    one = costs.sizes(config("phi"))
    attention, mlp = (
        whole - costs.parameters(config("phi"), skip) for skip in (SkipSet((0,)), SkipSet((), (0,)))
    )
    assert (attention, mlp) == (one.attention, one.mlp)
    width, inner = 64, 96
    assert mlp == 2 * width * inner + inner + width  # two matrices, two biases, no norm


def test_qwen3_has_a_norm_of_every_query_and_key_head() -> None:
    same = {**config("qwen3"), "model_type": "llama"}
    assert costs.sizes(config("qwen3")).attention - costs.sizes(same).attention == 2 * 32
