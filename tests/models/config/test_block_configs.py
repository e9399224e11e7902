"""`nemotron-nas`: blocks that say one by one what a Llama's config says for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models import config, drop_lists
from pipeline.types import BASE, SkipSet, UserError
from tests.models.config import FILE, assert_refused, assert_same_meaning
from tests.tiny_nas import blocks

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 300, "rope_theta": 1e4,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}  # fmt: skip
SKIP = SkipSet((1,), (2, 3))


def read(skip: SkipSet = SKIP, **changes: Any) -> config.Config:
    keys = {"model_type": "nemotron-nas", **SIZES, "block_configs": blocks(skip, 4), **changes}
    return config.normalised({key: value for key, value in keys.items() if value is not ...}, FILE)


def changed(kind: str, i: int = 0, **values: Any) -> list[Any]:
    """Blocks of which one says something else."""
    made: list[Any] = blocks(SKIP, 4)
    made[i][kind] |= values
    return made


@pytest.mark.parametrize("skip", [BASE, SKIP, SkipSet((0, 1, 2, 3)), SkipSet.parse("block0_3")])
def test_it_is_a_llama_with_drop_lists(skip: SkipSet) -> None:
    own = read(skip, num_key_value_heads=2)
    assert (own["model_type"], own["intermediate_size"], own["num_key_value_heads"]) == ("llama", 256, 2)
    assert drop_lists.skip_set(own, FILE) == skip and "block_configs" not in own
    config.refuse_foreign(own, FILE)
    given = config.for_transformers(own)
    assert given["model_type"] == "llama" and not {"drop_attn_list", "skip_pipeline"} & set(given)


@pytest.mark.parametrize(
    ("hidden", "mult", "width"),
    [(4096, 4.03125, 11008), (4096, 5.25, 14336), (576, 4.0, 1536), (8192, 5.25, 28672), (64, 0.1, 256)],
)
def test_widths_are_the_published_ones(hidden: int, mult: float, width: int) -> None:
    own = read(hidden_size=hidden, block_configs=blocks(SKIP, 4, ffn_mult=mult))
    assert own["intermediate_size"] == width


def test_newer_files_say_the_width(caplog: pytest.LogCaptureFixture) -> None:
    """As Model-Optimizer's class saves them: more keys, each of which says nothing."""
    newer = blocks(SKIP, 4, intermediate_size=100, gated=True, hidden_act="silu", moe=None)
    for block in newer:
        block["attention"] |= {"mamba": None, "llama4": None, "weights_precision": "bf16"}
        block["ffn"] |= {"weights_precision": "bf16"}
        block["parallel_blocks"] = None  # type: ignore[assignment]
    own = read(
        block_configs=newer, router_aux_loss_coef=0.01, output_router_logits=False, o_proj_bias=False,
        llama4_attn_implementation="sdpa", position_embedding_type="rope", router_z_loss_coef=0.0,
        block_return_only_hidden_states=False,
    )  # fmt: skip
    config.refuse_foreign(own, FILE)
    assert own["intermediate_size"] == 100 and not caplog.text


def test_transformers_4_and_5_mean_the_same() -> None:
    whole = {**SIZES, "block_configs": blocks(SKIP, 4)}
    rope = {"rope_type": "linear", "factor": 2.0}
    new = {key: value for key, value in whole.items() if key != "rope_theta"}
    assert_same_meaning(
        (
            "nemotron-nas",
            {**whole, "rope_scaling": rope},
            {**new, "rope_parameters": {"rope_theta": 1e4, **rope}},
        )
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"block_configs": blocks(SKIP, 3)}, r"block_configs has 3 entries for num_hidden_layers 4"),
    ({"block_configs": {"0": {}}}, r"block_configs is .* should be a valid list"),
    ({"block_configs": [1, 2, 3, 4]}, r"block_configs\[0\] is 1: should be a valid dictionary"),
    ({"block_configs": [{}] * 4}, r"block_configs\[0\]\.attention: Field required"),
    ({"block_configs": changed("ffn", no_op="yes")}, r"\[0\]\.ffn\.no_op is 'yes': should be a valid"),
    ({"block_configs": changed("ffn", ffn_mult=-1.0)}, r"ffn_mult is -1\.0: should be greater than 0"),
    ({"block_configs": changed("ffn", ffn_mult=1e300)}, r"ffn_mult is 1e\+300"),
    ({"block_configs": changed("ffn", ffn_mult=None)}, r"\[0\]\.ffn has neither ffn_mult nor"),
    ({"block_configs": changed("ffn", ffn_mult=9.0)}, r"layers differ in intermediate_size: \[256, 512\]"),
    ({"block_configs": changed("ffn", intermediate_size=96)}, r"size is 96, and ffn_mult gives 256"),
    ({"block_configs": changed("ffn", moe={"num_local_experts": 8})}, r"\[0\]\.ffn\.moe is .*should be None"),
    ({"block_configs": changed("ffn", gated=False)}, r"\[0\]\.ffn\.gated is False"),
    ({"block_configs": changed("ffn", hidden_act="relu"), "hidden_act": "silu"},
     r"hidden_act is 'silu', and 'relu'"),
    ({"block_configs": changed("ffn", sparsify=["2:4"])}, r"\[0\]\.ffn\.sparsify is"),
    ({"block_configs": changed("ffn", colour=1)}, r"\[0\]\.ffn\.colour is 1: Extra inputs"),
    ({"block_configs": changed("ffn", 2, replace_with_linear=True)}, r"\[2\]\.ffn: a linear map stands in"),
    ({"block_configs": changed("attention", replace_with_linear=True)}, r"\[0\]\.attention: a linear map"),
    ({"block_configs": changed("attention", n_heads_in_group=3)}, r"n_heads_in_group is 3, and num"),
    ({"block_configs": changed("attention", n_heads_in_group=0)}, r"n_heads_in_group is 0: should be"),
    ({"block_configs": changed("attention", n_heads_in_group=2.0)}, r"n_heads_in_group is 2\.0"),
    ({"block_configs": changed("attention", n_heads_in_group=4)}, r"layers differ in num_key_value_heads"),
    ({"block_configs": changed("attention", window_length=8192)}, r"\[0\]\.attention\.window_length is 8192"),
    ({"block_configs": changed("attention", num_sink_tokens=4)}, r"\[0\]\.attention\.num_sink_tokens is 4"),
    ({"block_configs": changed("attention", unshifted_sink=True)}, r"attention\.unshifted_sink is True"),
    ({"block_configs": ...}, r"block_configs: Field required"),
    ({"num_key_value_heads": 4}, r"num_key_value_heads is 4, and 2 by block_configs"),
    ({"intermediate_size": 512}, r"intermediate_size is 512, and 256 by block_configs"),
    ({"rms_norm_eps": ...}, r"rms_norm_eps is missing, for which the engines"),
    ({"rope_theta": ...}, r"rope_theta is missing, for which the engines"),
    ({"num_hidden_layers": "4"}, r"num_hidden_layers is '4'"),
    ({"drop_attn_list": [2]}, r"block_configs and drop_attn_list both say"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), BAD)
def test_what_no_llama_says_is_refused(changes: dict[str, Any], why: str) -> None:
    keys = {**SIZES, "block_configs": blocks(SKIP, 4), **changes}
    assert_refused("nemotron-nas", {key: value for key, value in keys.items() if value is not ...}, why)


def test_every_mlp_gone_needs_the_width_beside_them() -> None:
    skip = SkipSet((), (0, 1, 2, 3))
    assert_refused("nemotron-nas", {**SIZES, "block_configs": blocks(skip, 4)}, "intermediate_size is of")
    assert read(skip, intermediate_size=256)["intermediate_size"] == 256


@pytest.mark.parametrize(
    ("per_layer", "why"),
    [
        ({"1": {"skip": ["attention"]}, "2": {"skip": ["mlp"]}, "3": {"skip": ["mlp"]}}, None),
        ({"1": {"skip": ["attention"]}}, r"leaves out attn1, and what stands beside it attn1\+mlp2-3"),
        ({}, r"leaves out nothing, and what"),
    ],
)
def test_two_ways_to_say_it_agree(per_layer: dict[str, Any], why: str | None) -> None:
    own = read(per_layer_config=per_layer, skip_pipeline={"variant": SKIP.name})
    config.refuse_foreign(own, FILE)
    if why is None:
        assert drop_lists.skip_set(own, FILE) == SKIP
        return
    with pytest.raises(UserError, match=why):
        drop_lists.skip_set(own, Path(FILE))
