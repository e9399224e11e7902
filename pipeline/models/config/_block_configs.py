"""`nemotron-nas` (DeciLMForCausalLM): a Llama whose layers each say what they have, as a config of Llama's.

`block_configs` has an attention and a feed-forward for each layer; one that is `no_op` is left out with its
norm, which LLM-Drop's lists say here. Names, tensors and everything else are Llama's.

Legend: C hidden size, H query heads.

Sources: NVIDIA's `configuration_decilm.py` and `block_config.py`; vLLM `models/nemotron_nas.py`; mlx-lm
`models/nemotron-nas.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.types import UserError

MODEL_TYPE = "nemotron-nas"
_STEP = 256
"""Widths that `ffn_mult` says are multiples of it."""
_NEEDED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
    "rms_norm_eps",
)  # fmt: skip
"""The engines' classes have different values for them where they are missing."""
_OF_EXPERTS = {
    "router_aux_loss_coef", "router_z_loss_coef", "output_router_logits", "llama4_attn_implementation",
    "block_return_only_hidden_states",
}  # fmt: skip
"""Keys of NVIDIA's class that say nothing of a model without experts and without Llama 4's attention."""
_ATTENTION, _MLP = "drop_attn_list", "drop_mlp_list"


class _Part(BaseModel):
    """What a layer says of either."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    no_op: bool = False
    replace_with_linear: bool = False
    sparsify: None = None
    weights_precision: str | None = None


class _Attention(_Part):
    n_heads_in_group: Annotated[int, Field(ge=1, le=2**31)] | None = None
    window_length: None = None
    num_sink_tokens: None = None
    use_prefill_window_in_sink_attention: Literal[False] | None = None
    unshifted_sink: Literal[False] | None = None
    mamba: None = None
    llama4: None = None


class _FeedForward(_Part):
    ffn_mult: Annotated[float, Field(gt=0, le=10_000)] | None = None
    intermediate_size: Annotated[int, Field(ge=1, le=2**31)] | None = None
    hidden_act: str | None = None
    gated: Literal[True] | None = None
    moe: None = None


class _Block(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    attention: _Attention
    ffn: _FeedForward
    parallel_blocks: None = None


class _Blocks(BaseModel):
    """The keys that are needed to read the blocks, and the blocks."""

    model_config = ConfigDict(strict=True, extra="ignore")

    hidden_size: Annotated[int, Field(ge=1, le=2**31)]
    num_attention_heads: Annotated[int, Field(ge=1, le=2**31)]
    num_hidden_layers: int
    block_configs: Annotated[list[_Block], Field(fail_fast=True)]


def as_llama(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The config of a Llama that says the same.

    Args:
        config: of nemotron-nas, as the file has it.
        file: for messages.

    Raises:
        UserError: a key that is needed is missing, the blocks are odd or differ in size, or one is something
            that Llama has not.
    """
    if missing := [key for key in _NEEDED if config.get(key) is None]:
        raise UserError(
            f"{file}: {missing[0]} is missing, for which the engines that load {MODEL_TYPE} take different "
            "values; say it there"
        )
    inner = config.get("rope_parameters")
    if config.get("rope_theta") is None and not (isinstance(inner, dict) and "rope_theta" in inner):
        raise UserError(f"{file}: rope_theta is missing, for which the engines take different values")
    blocks = _validated(config, file)
    if len(blocks.block_configs) != blocks.num_hidden_layers:
        raise UserError(
            f"{file}: block_configs has {len(blocks.block_configs)} entries for num_hidden_layers "
            f"{blocks.num_hidden_layers}"
        )
    sizes = _sizes(config, blocks, file)
    if doubled := next((key for key in (_ATTENTION, _MLP) if config.get(key)), None):
        raise UserError(f"{file}: block_configs and {doubled} both say what is left out; remove one of them")
    kept = {key: value for key, value in config.items() if key not in {"block_configs", *_OF_EXPERTS}}
    attention = [i for i, block in enumerate(blocks.block_configs) if block.attention.no_op]
    mlp = [i for i, block in enumerate(blocks.block_configs) if block.ffn.no_op]
    return {**kept, **sizes, "model_type": "llama", _ATTENTION: attention, _MLP: mlp}


def _validated(config: Mapping[str, Any], file: Path) -> _Blocks:
    """The blocks, each of which has what Llama has or nothing."""
    try:
        blocks = _Blocks.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        what = first["msg"].removeprefix("Input ")
        value = "" if first["type"] == "missing" else f" is {first['input']!r:.60}"
        raise UserError(f"{file}: {where.removeprefix('.')}{value}: {what}") from None
    for i, block in enumerate(blocks.block_configs):
        for kind, part in (("attention", block.attention), ("ffn", block.ffn)):
            if part.replace_with_linear:
                raise UserError(
                    f"{file}: block_configs[{i}].{kind}: a linear map stands in for it (replace_with_linear) "
                    "and is not read back: take the variant that it was fitted to"
                )
    return blocks


def _sizes(config: Mapping[str, Any], blocks: _Blocks, file: Path) -> dict[str, Any]:
    """Llama's keys for what the blocks say one by one, which must be one thing for all."""
    heads, given = blocks.num_attention_heads, blocks.block_configs
    attention = {i: block.attention for i, block in enumerate(given) if not block.attention.no_op}
    feed_forward = {i: block.ffn for i, block in enumerate(given) if not block.ffn.no_op}
    groups: set[int] = set()
    for i, part in attention.items():
        if part.n_heads_in_group is None or heads % part.n_heads_in_group:
            raise UserError(
                f"{file}: block_configs[{i}].attention.n_heads_in_group is {part.n_heads_in_group}, and "
                f"num_attention_heads {heads}: no number of groups"
            )
        groups.add(heads // part.n_heads_in_group)
    widths = {_width(part, blocks.hidden_size, f"{file}: block_configs[{i}].ffn")
              for i, part in feed_forward.items()}  # fmt: skip
    acts = {part.hidden_act for part in feed_forward.values() if part.hidden_act is not None}
    every: dict[str, set[Any]] = {
        "num_key_value_heads": groups,
        "intermediate_size": widths,
        "hidden_act": acts,
    }
    sizes = {key: _one(config, key, values, file) for key, values in every.items()}
    return {key: size for key, size in sizes.items() if size is not None}


def _one(config: Mapping[str, Any], key: str, values: set[Any], file: Path) -> Any:
    """The one value that all layers have, which config.json may say beside them; None where nothing does."""
    own = config.get(key)
    if len(values) > 1:
        raise UserError(f"{file}: block_configs: layers differ in {key}: {sorted(values)!r:.60}")
    if values and own not in (None, *values):
        raise UserError(f"{file}: {key} is {own!r:.40}, and {next(iter(values))!r:.40} by block_configs")
    if not values and own is None and key != "hidden_act":
        raise UserError(f"{file}: every layer lacks what {key} is of, and no key says it")
    return next(iter(values), own)


def _width(part: _FeedForward, hidden: int, place: str) -> int:
    """The width of a feed-forward: ⌈⌊2 · ffn_mult · C / 3⌋ / 256⌉ · 256, or as it is said in newer files."""
    if part.ffn_mult is None:
        if part.intermediate_size is None:
            raise UserError(f"{place} has neither ffn_mult nor intermediate_size")
        return part.intermediate_size
    width = -(-int(2 * part.ffn_mult * hidden / 3) // _STEP) * _STEP
    if part.intermediate_size not in (None, width):
        raise UserError(f"{place}: intermediate_size is {part.intermediate_size}, and ffn_mult gives {width}")
    return width
