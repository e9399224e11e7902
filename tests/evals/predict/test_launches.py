"""The table of launches against transformers' own code, and what a variant has of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from pipeline.evals.predict import launches
from pipeline.evals.predict.launches import StandIn
from pipeline.models import config as configs
from pipeline.models.sublayers import MapModule
from pipeline.types import BASE, SkipSet
from tests import launching

LLAMA_2_7B = json.loads((Path(__file__).parent / "llama-2-7b.json").read_text())
OTHERS = [name for name in configs.known() if name != "llama"]
SAME = transformers.__version__ == launches.table().versions["transformers"]


def test_all_authored_architectures_are_there() -> None:
    assert sorted(launches.table().architectures) == configs.known()


@pytest.mark.skipif(not SAME, reason="the table is of another version of transformers")
@pytest.mark.parametrize(
    "model_type", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_the_table_is_what_transformers_does(model_type: str) -> None:
    entry = launches.table().architectures[model_type]
    assert entry == launches.ArchitectureLaunches.model_validate(launching.counted(model_type))


def test_the_profiler_sees_the_operations_that_are_counted() -> None:
    with launching.model_of("llama") as model, torch.no_grad():
        run = launching.passes(model)["prefill"]
        with launching.Launches() as counted:
            run()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run()
    names = set(counted.operations)
    events = [one for one in profiled.events() if one.name in names and not names & set(_around(one))]
    assert sum(counted.operations.values()) == sum(counted.counts.values()) > 80
    assert Counter(one.name for one in events) == counted.operations


def _around(event: Any) -> Iterator[str]:
    """The operations that an operation is a part of: a mean's own division is no launch of the model's."""
    while (event := event.cpu_parent) is not None:
        yield event.name


def test_a_layer_of_llama_by_hand() -> None:
    """RMSNorm in fp16: to fp32, square, mean, + ε, rsqrt, ·, to fp16, · weight: 8."""
    own = launches.table().architectures["llama"]
    products, rope, cache, scores, joined = 4, 2 * 5, 2, 1, 1
    assert own.norm == 8 and own.prefill.attention == 8 + products + rope + cache + scores + joined
    assert own.prefill.mlp == 8 + 3 + len(("silu", "·")) + joined


def test_llama_2_7b() -> None:
    whole = launches.count(LLAMA_2_7B, BASE, decode=False)
    assert whole == 32 * (26 + 14) + 21 == 1301
    assert launches.count(LLAMA_2_7B, SkipSet(tuple(range(21, 32)), ()), decode=True) == whole - 11 * 26
    assert launches.count(LLAMA_2_7B, SkipSet((), (0, 1)), decode=False) == whole - 2 * 14


def test_an_attention_without_rope_has_fewer() -> None:
    config = {**LLAMA_2_7B, "model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0] * 8}
    assert launches.count(config, BASE, decode=False) == 1301 - 8 * 10
    assert launches.count(config, SkipSet((3, 4), ()), decode=False) == 1301 - 8 * 10 - 16 - 26


def test_an_architecture_that_was_not_counted_has_llamas() -> None:
    assert not launches.is_counted("opt") and launches.is_counted("llama")
    other = {**LLAMA_2_7B, "model_type": "opt"}
    assert launches.count(other, BASE, decode=False) == 1301


@pytest.mark.parametrize("products", [1, 2])
def test_a_map_launches_its_products_and_its_bias(products: int) -> None:
    shapes = [(8, 8)] if products == 1 else [(8, 2), (2, 8)]
    module, stream = MapModule([torch.zeros(shape) for shape in shapes], torch.zeros(8)), torch.zeros(3, 8)
    with launching.Launches() as counted, torch.no_grad():
        module(stream)
    joined = 1
    assert sum(counted.counts.values()) == products + 1 == StandIn(products, False).launches(8) - joined
    assert StandIn(products, True).launches(8) == 8 + products + 1 + joined
    assert StandIn(0, False).launches(8) == 1
    both = launches.count(LLAMA_2_7B, SkipSet((5,), (5,)), False, [StandIn(1, True), StandIn(0, False)])
    assert both == 1301 - 26 - 14 + 11 + 1
