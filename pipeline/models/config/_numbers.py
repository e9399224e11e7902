"""The types and ranges of the values that a config.json may have, key by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.store.records import NumLayers
from pipeline.types import UserError

_Size = Annotated[int, Field(ge=1, le=2**31)]
_Positive = Annotated[float, Field(gt=0)]
_FAST = Field(fail_fast=True)
"""Of a list: one wrong value is enough. (pydantic makes an error of each, and a file has millions.)"""
_TokenIds = int | Annotated[list[int], _FAST] | None
_OWN_HEAD_DIM = ("gemma2", "gemma3_text", "qwen3")


class _Sizes(BaseModel):
    """Sizes that every architecture names so, each where it is given."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    num_hidden_layers: NumLayers = 1
    vocab_size: _Size = 1
    hidden_size: _Size = 1


class _Numbers(_Sizes):
    """The keys that the known architectures understand, each where it has it."""

    intermediate_size: _Size = 1
    num_attention_heads: _Size = 1
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    max_position_embeddings: _Size = 1
    original_max_position_embeddings: _Size | None = None
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 0.1
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 0.1
    rope_theta: _Positive = 1.0
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    rope_scaling: dict[str, Any] | None = None
    rope_local_base_freq: _Positive = 1.0
    hidden_act: str = ""
    hidden_activation: str = ""
    query_pre_attn_scalar: Annotated[int | float, Field(gt=0)] = 1
    embedding_multiplier: _Positive = 1.0
    attention_multiplier: _Positive = 1.0
    residual_multiplier: _Positive = 1.0
    logits_scaling: _Positive = 1.0
    attn_logit_softcapping: _Positive | None = None
    final_logit_softcapping: _Positive | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    qk_layernorm: bool = False
    seq_length: _Size | None = None
    use_dynamic_ntk: bool = False
    use_logn_attn: bool = False
    use_parallel_residual: bool = False
    no_rope_layers: Annotated[list[Annotated[int, Field(ge=0, le=1)]], _FAST] | None = None
    no_rope_layer_interval: Annotated[int, Field(ge=1)] = 1
    use_sliding_window: bool = False
    sliding_window: _Size | None = None
    sliding_window_pattern: _Size | None = None
    max_window_layers: Annotated[int, Field(ge=0)] = 0
    layer_types: Annotated[list[str], _FAST] | None = None
    bos_token_id: _TokenIds = None
    eos_token_id: _TokenIds = None
    pad_token_id: _TokenIds = None


def checked(config: Mapping[str, Any], file: Path, derived: Collection[str] = ()) -> dict[str, Any]:
    """The config with numbers of their own types and the heads' sizes in effect.

    Args:
        config: with every key.
        file: for messages.
        derived: keys of the heads' sizes that may only say what follows from others.

    Raises:
        UserError: a value has another type, no model has it, or the heads do not fit each other.
    """
    values = _validated(_Numbers, config, file)
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    _refuse_other_heads(values, derived, file)
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    if values["head_dim"] is None:
        if (model_type := config["model_type"]) in _OWN_HEAD_DIM:
            raise UserError(
                f"{file}: head_dim is null, and {model_type} derives it from nothing; give a number"
            )
        values["head_dim"] = hidden // heads
    kv_heads, width = values["num_key_value_heads"], values["head_dim"]
    if heads % kv_heads:
        raise UserError(
            f"{file}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    rotated = int(width * values["partial_rotary_factor"])
    if width < 1 or rotated < 2 or rotated % 2:
        raise UserError(
            f"{file}: head_dim {width} with partial_rotary_factor {values['partial_rotary_factor']:g} "
            f"rotates {rotated} numbers of a head; that must be an even number"
        )
    return values


def _refuse_other_heads(values: Mapping[str, Any], derived: Collection[str], file: Path) -> None:
    """Refuses sizes of heads that the class does not read, unless they say what it derives."""
    heads, hidden, model_type = values["num_attention_heads"], values["hidden_size"], values["model_type"]
    if "head_dim" in derived and hidden % heads:
        raise UserError(f"{file}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    for key, value in (("num_key_value_heads", heads), ("head_dim", hidden // heads)):
        if key in derived and values[key] not in (None, value):
            raise UserError(f"{file}: {key} is {values[key]}, but {model_type} derives {value}")


def refuse_odd_sizes(config: Mapping[str, Any], file: Path) -> None:
    """Refuses sizes that no model has, of an architecture that is not known here."""
    _validated(_Sizes, config, file)


def _validated(form: type[BaseModel], config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The config after a check of the keys that it has."""
    try:
        values = form.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        value = repr(config[key])
        shown = value if len(value) <= 60 else f"{value[:60]}…"
        raise UserError(f"{file}: {key} is {shown}: {first['msg'].removeprefix('Input ')}") from None
    return {key: value for key, value in dict(values).items() if key in config}
