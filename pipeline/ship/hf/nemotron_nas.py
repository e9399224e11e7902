"""A variant of single sublayers as nemotron-nas: Llama's layers, of which each says what it has.

Legend: C hidden size, F width of the MLP, R rank, L layers.

Sources: mlx-lm `models/nemotron-nas.py`; vLLM and SGLang `nemotron_nas.py`; TensorRT-LLM
`modeling_nemotron_nas.py`, whose names the linear maps have.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.models import config as configs
from pipeline.models.compensation import MapPlace
from pipeline.models.config import Config
from pipeline.ship.hf import ffn_width
from pipeline.ship.hf.parts import Computed
from pipeline.ship.outline import Outline
from pipeline.ship.pruned import Array, StoredMap
from pipeline.types import SkipSet, Sublayer

MODEL_TYPE = "nemotron-nas"
CODE = "configuration_decilm.py"
"""The configuration class that goes with the folder."""
_KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_AS_GIVEN = ("dtype", "torch_dtype", "initializer_range", "use_cache")
_LINEAR = {"attn": "self_attn.linear_attn", "mlp": "mlp.linear_mlp"}


def config(variant: Outline, given: Config) -> dict[str, Any]:
    """config.json: Llama's keys and `block_configs`, whose indices are those of the whole model.

    Args:
        variant: that nemotron-nas can express.
        given: config.json of the whole model, as the file has it.
    """
    whole = variant.config
    keys = {key: whole.get(key, False if key.endswith("_bias") else None) for key in _KEPT}
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{CODE.removesuffix('.py')}.DeciLMConfig"},
        **keys,
        **{key: given[key] for key in _AS_GIVEN if key in given},
        **_ropes(whole),
        "block_configs": [_block(variant, i) for i in range(variant.num_layers)],
        "per_layer_config": _per_layer(variant),
    }


def _ropes(whole: Config) -> dict[str, Any]:
    """The rope in the form of transformers 4 and in that of version 5; each passes over the other's."""
    scaling = configs.for_transformers({**whole, "model_type": "llama"})["rope_scaling"] or None
    if scaling and scaling["rope_type"] == "default":
        scaling = None  # mlx-lm asks for a factor where there is one
    five = {**(scaling or {"rope_type": "default"}), "rope_theta": whole["rope_theta"]}
    return {"rope_theta": whole["rope_theta"], "rope_scaling": scaling, "rope_parameters": five}


def _block(variant: Outline, layer: int) -> dict[str, dict[str, Any]]:
    """What one layer has."""
    whole = variant.config
    group = whole["num_attention_heads"] // whole["num_key_value_heads"]
    mult = ffn_width.multiplier(whole["intermediate_size"], whole["hidden_size"])
    return {
        "attention": _sublayer(variant, (layer, "attn"), "n_heads_in_group", group),
        "ffn": _sublayer(variant, (layer, "mlp"), "ffn_mult", mult),
    }


def _sublayer(variant: Outline, sublayer: Sublayer, key: str, value: float | None) -> dict[str, Any]:
    is_kept = sublayer not in variant.skip
    return {
        "no_op": not variant.is_there(sublayer),
        "replace_with_linear": not is_kept and variant.is_there(sublayer),
        key: value if is_kept else None,
    }


def _per_layer(variant: Outline) -> dict[str, dict[str, list[str]]]:
    """The same for transformers' heterogeneous configurations (`integrations/heterogeneity`, 5.2 and later).

    It has no word for a map: a sublayer with one is not skipped.
    """
    gone = without_maps(variant)
    skips: dict[str, dict[str, list[str]]] = {}
    for i in sorted({*gone.attention, *gone.mlp}):
        words = [*(["attention"] if i in gone.attention else []), *(["mlp"] if i in gone.mlp else [])]
        skips[str(i)] = {"skip": words}
    return skips


def without_maps(variant: Outline) -> SkipSet:
    """The sublayers of which nothing is there, not their norms either."""
    every = range(variant.num_layers)
    attention = tuple(i for i in every if not variant.is_there((i, "attn")))
    return SkipSet(attention, tuple(i for i in every if not variant.is_there((i, "mlp"))))


def map_name(place: MapPlace, layers: str) -> str:
    """The name of the map of one sublayer.

    Args:
        place: its place.
        layers: what the model calls its layers.
    """
    return f"{layers}.{place.first}.{_LINEAR[place.kind]}.weight"


def matrix(one: StoredMap) -> Computed:
    """A map [C, C] as a layer of PyTorch's has it: [out, in]; that of rank R multiplied out."""

    def array() -> Array:
        first, *rest = (np.asarray(factor.array(), np.float32) for factor in one.factors)
        whole = first @ rest[0] if rest else first
        return np.ascontiguousarray(whole.T)

    width = one.bias.shape[0]
    return Computed("F32", (width, width), array)
