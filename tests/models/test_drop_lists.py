"""LLM-Drop's lists: indices and booleans, and what is neither. (tests/cli/test_dropped.py runs them.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import drop_lists
from pipeline.types import BASE, SkipSet, UserError

FILE = Path("config.json")


@pytest.mark.parametrize(
    ("attention", "mlp", "skip"),
    [
        ([3, 1], [2], SkipSet((1, 3), (2,))),
        ([False, True, False, True], [], SkipSet((1, 3))),
        ([0, 0], None, SkipSet((0,))),
        ([], [], BASE),
        ([False] * 4, False, BASE),
    ],
)
def test_skip_set(attention: object, mlp: object, skip: SkipSet) -> None:
    config = {"num_hidden_layers": 4, "drop_attn_list": attention, "drop_mlp_list": mlp}
    assert drop_lists.skip_set(config, FILE) == skip


def test_no_lists() -> None:
    assert drop_lists.skip_set({"num_hidden_layers": 4}, FILE) == BASE


@pytest.mark.parametrize("value", [[4], [-1], ["1"], [1.0], [None], {"1": True}, "1", True, [True, False]])
def test_what_is_no_list_of_layers_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^config\.json: drop_mlp_list "):
        drop_lists.skip_set({"num_hidden_layers": 4, "drop_mlp_list": value}, FILE)


@pytest.mark.parametrize(
    ("layers", "skip"),
    [
        ({"3": {"skip": ["attention", "mlp"]}, "1": {"skip": ["attention"]}}, SkipSet((1, 3), (3,))),
        ({"0": {"skip": []}, "2": {}}, BASE),
        ({}, BASE),
        (None, BASE),
    ],
)
def test_what_transformers_skips(layers: object, skip: SkipSet) -> None:
    assert drop_lists.skip_set({"num_hidden_layers": 4, "per_layer_config": layers}, FILE) == skip


@pytest.mark.parametrize(
    "layers",
    [
        [], {"4": {"skip": ["mlp"]}}, {"-1": {"skip": ["mlp"]}}, {"one": {"skip": ["mlp"]}},
        {"1": {"skip": ["mlp"]}, "01": {"skip": ["mlp"]}}, {"1": {"skip": "mlp"}}, {"1": {"skip": ["ffn"]}},
        {"1": {"skip": [["mlp"]]}}, {"1": ["mlp"]}, {"1": {"skip": ["mlp"], "intermediate_size": 64}},
        {"1": {"intermediate_size": 64}}, {"1": {"skip": None}},
    ],
)  # fmt: skip
def test_layers_that_differ_otherwise_are_refused(layers: object) -> None:
    with pytest.raises(UserError, match=r"^config\.json: per_layer_config") as caught:
        drop_lists.skip_set({"num_hidden_layers": 4, "per_layer_config": layers}, FILE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lists", "agrees"), [([1], True), ([2], False), ([], False)])
def test_lists_and_layers_must_agree(lists: list[int], agrees: bool) -> None:
    both = {
        "num_hidden_layers": 4,
        "drop_attn_list": lists,
        "per_layer_config": {"1": {"skip": ["attention"]}},
    }
    if agrees:
        assert drop_lists.skip_set(both, FILE) == SkipSet((1,))
        return
    with pytest.raises(UserError, match="per_layer_config leaves out attn1, and what stands beside it"):
        drop_lists.skip_set(both, FILE)


@pytest.mark.parametrize("key", ["drop_attn_list", "drop_mlp_list", "per_layer_config"])
def test_lists_of_a_model_without_a_number_of_layers_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"config\.json does not say num_hidden_layers"):
        drop_lists.skip_set({key: {} if key == "per_layer_config" else [1]}, FILE)
