"""Names of tensors: those that transformers finds, and what they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.models import checkpoint, tensor_names
from pipeline.models.sizes import SizeRules, rules_of
from pipeline.types import BASE, SkipSet, TensorSlice, UserError
from tests import tiny

SLICE = TensorSlice("m.safetensors", 0, 4, "F32", (1,))


def named(*names: str) -> dict[str, TensorSlice]:
    """Tensors of these names."""
    return dict.fromkeys(names, SLICE)


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_names_are_those_of_transformers_model(model_type: str, tmp_path: Path) -> None:
    whole = tiny.checkpoint(tmp_path / "whole", model_type, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(whole)
    rules = rules_of(model_type)
    # Version 4 says 'language_model' of Gemma 3, whose class has no such module.
    assert model.base_model_prefix == rules.prefix or not hasattr(model, model.base_model_prefix)
    modules = dict(model.named_modules())
    assert modules[rules.embedding] is model.get_input_embeddings()
    head = rules.head if rules.head in modules else "lm_head"  # GPT-NeoX's in version 5; files keep its name
    assert modules[head] is model.get_output_embeddings()
    names = {name.replace(f"{head}.", f"{rules.head}.") for name in model.state_dict()}
    assert len(modules[rules.layers]) == 2 and isinstance(modules[rules.final_norm].weight, torch.Tensor)
    assert set(checkpoint.open_checkpoint(whole).tensors) == names
    getattr(model, rules.prefix).save_pretrained(tmp_path / "bare")
    bare = set(checkpoint.open_checkpoint(tmp_path / "bare").tensors)
    assert bare == {name for name in names if not name.startswith(rules.head)}


def test_names_of_which_one_has_the_prefix_stay(tmp_path: Path) -> None:
    tensors = named("model.norm.weight", "layers.0.mlp.up_proj.weight")
    assert tensor_names.canonical(tensors, tmp_path, SizeRules()) == tensors


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("layers.0.mlp.up_proj.weight", "lm_head.weight"), "transformers refuses as corrupted"),
        (("_orig_mod.model.layers.0.mlp.up_proj.weight",), "begin with '_orig_mod.'; "),
        (("base_model.model.model.layers.0.mlp.up_proj.weight",), "begin with 'base_model.model.'; "),
        (("transformer.layers.0.mlp.up_proj.weight",), "begin with 'transformer.'; "),
        (("_fsdp.embed_tokens.weight",), "begin with '_fsdp.'; "),
    ],
)
def test_names_that_transformers_does_not_find(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tensor_names.canonical(named(*names), tmp_path, SizeRules())


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("rotary_emb.inv_freq", True),
        ("transformer.h.0.attn.masked_bias", True),
        ("gpt_neox.layers.3.attention.bias", True),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("model.layers.0.self_attn.bias", False),
        ("lm_head.weight", False),
    ],
)
def test_tables(name: str, table: bool) -> None:
    assert tensor_names.is_table(name) == table


@pytest.mark.parametrize(
    ("part", "skip", "model_type", "left_out"),
    [
        ("self_attn.q_proj.weight", SkipSet((1,)), "llama", True),
        ("self_attn.q_proj.weight", SkipSet((2,), (1,)), "llama", False),
        ("mlp.up_proj.weight", SkipSet((), (1,)), "llama", True),
        ("mlp.up_proj.weight", SkipSet((1,)), "llama", False),
        ("input_layernorm.weight", SkipSet((1,)), "llama", True),
        ("input_layernorm.weight", SkipSet((), (1,)), "llama", False),
        ("input_layernorm.weight", SkipSet((1,)), "phi", False),
        ("input_layernorm.weight", SkipSet((1,), (1,)), "phi", True),
        ("post_attention_layernorm.weight", SkipSet((), (1,)), "llama", True),
        ("post_attention_layernorm.weight", SkipSet((1,)), "llama", False),
        ("fc1.weight", SkipSet((), (1,)), "llama", True),
        ("post_attention_layernorm.weight", SkipSet((1,)), "gemma2", True),
        ("post_attention_layernorm.weight", SkipSet((), (1,)), "gemma2", False),
        ("pre_feedforward_layernorm.weight", SkipSet((), (1,)), "gemma2", True),
        ("post_feedforward_layernorm.weight", SkipSet((), (1,)), "gemma2", True),
        ("post_feedforward_layernorm.weight", SkipSet((1,)), "gemma2", False),
        ("self_attn.q_norm.weight", SkipSet((1,)), "gemma3_text", True),
        ("self_attn.q_proj.weight", BASE, "llama", False),
    ],
)
def test_what_a_skip_set_leaves_out(part: str, skip: SkipSet, model_type: str, left_out: bool) -> None:
    rules = rules_of(model_type)
    assert tensor_names.is_left_out(f"model.layers.1.{part}", skip, rules) == left_out
    assert not tensor_names.is_left_out("model.norm.weight", skip, rules)


def test_layers_and_what_is_gone() -> None:
    names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
    ]
    assert [tensor_names.layer_of(name) for name in names] == [0, 1, None]
    assert tensor_names.gone(names, 3) == SkipSet((0, 2), (1, 2))
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(3) for n in ("input", "post_attention")]
    assert tensor_names.gone([*names, *norms], 3) == SkipSet((0, 2), (1, 2))  # a norm alone is no sublayer


def test_names_in_a_file() -> None:
    assert tensor_names.in_file("model.norm.weight", {"norm.weight"}) == "norm.weight"
    assert tensor_names.in_file("model.norm.weight", {"model.norm.weight"}) == "model.norm.weight"
