"""What an adapter adds, against peft; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.calib import adapter_files
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.types import UserError
from tests import adapters as peft_adapters

Tensors = dict[str, torch.Tensor]
FIRST = "base_model.model.model.layers.0.mlp.down_proj"


@pytest.fixture
def opened(folder: Path) -> Checkpoint:
    """The tiny checkpoint."""
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3}},
        {"alpha_pattern": {"down_proj": 12}, "use_rslora": True, "rank_pattern": {"down_proj": 2}},
        {"layers_to_transform": [0, 3]},
        {"target_modules": "all-linear"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
    ],
)
def test_the_product_is_pefts(settings: dict[str, Any], opened: Checkpoint) -> None:
    place = peft_adapters.make(opened, **settings)
    expected = peft_adapters.by_peft(opened, place)
    base = peft_adapters.Reference(opened.folder, peft_adapters.SKIP).model.state_dict()
    layers = {layer.weight: layer for layer in adapter_files.read(place, opened)}
    changed = {name for name in base if not torch.equal(base[name], expected[name])}
    assert changed == set(layers)
    for name, layer in layers.items():
        product = base[name] + layer.scale * (layer.up @ layer.down)
        distance = (product - expected[name]).abs().max() / expected[name].square().mean().sqrt()
        assert distance < 1e-6, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA alone"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"target_parameters": ["weight"]}, "target_parameters is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"of_next_year": 3}, "of_next_year is 3"),
        ({"r": 0}, "a rank .* is no whole number above 0"),
        ({"r": 5}, r"has the rank 4, and adapter_config\.json says 5"),
        ({"lora_alpha": float("nan")}, "lora_alpha|JSON"),
        ({"lora_alpha": 0}, "changes nothing"),
        ({"rank_pattern": {"(": 4}}, "is no pattern"),
        ({"rank_pattern": [4]}, "rank_pattern is no object"),
    ],
)  # fmt: skip
def test_settings_that_a_merge_cannot_hold_are_named(
    changes: dict[str, Any], message: str, opened: Checkpoint
) -> None:
    place = peft_adapters.make(opened)
    peft_adapters.configure(place, **changes)
    with pytest.raises(UserError, match=message):
        adapter_files.read(place, opened)


def _zero(tensors: Tensors) -> Tensors:
    return {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}


def _renamed(tensors: Tensors) -> Tensors:
    return {name.replace("model.layers.0", "model.layers.9"): t for name, t in tensors.items()}


def _widened(tensors: Tensors) -> Tensors:
    name = f"{FIRST}.lora_A.weight"
    return {**tensors, name: torch.cat([tensors[name]] * 2, dim=1)}


def _infinite(tensors: Tensors) -> Tensors:
    name = f"{FIRST}.lora_A.weight"
    return {**tensors, name: tensors[name] / 0}


def _alone(tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if name != f"{FIRST}.lora_A.weight"}


def _embedding(tensors: Tensors) -> Tensors:
    return {**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 300)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_zero, "changes nothing: its products"),
        (lambda _: {"x": torch.zeros(1)}, "holds x, no lora_A or lora_B"),
        (_renamed, r"holds model\.layers\.9\.mlp\.down_proj, model\.layers\.9\.self_attn\.q_proj, which"),
        (_widened, r"model\.layers\.0\.mlp\.down_proj \(.*\), which does not fit the weights"),
        (_infinite, r"model\.layers\.0\.mlp\.down_proj holds NaN or infinity"),
        (_alone, r"model\.layers\.0\.mlp\.down_proj, without its lora_A or lora_B"),
        (_embedding, "lora_embedding_A, no lora_A or lora_B"),
        (lambda _: {}, "holds no layer|no tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[Tensors], Tensors], message: str, opened: Checkpoint
) -> None:
    place = peft_adapters.make(opened)
    peft_adapters.rewrite(opened, place, change(peft_adapters.tensors(place)))
    with pytest.raises(UserError, match=message):
        adapter_files.read(place, opened)


def test_a_header_that_is_too_long_is_not_read(opened: Checkpoint) -> None:
    place = peft_adapters.make(opened)
    (place / "adapter_model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        adapter_files.read(place, opened)
