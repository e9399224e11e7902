"""What transformers loads is what the files say, or it is refused: tensors, config and rope."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from pipeline.models import pretrained
from pipeline.models.reference import Reference
from pipeline.types import SkipSet, UserError
from tests import tiny

Weights = dict[str, torch.Tensor]
IDS = torch.arange(3, 60)[None]


def edited(folder: Path, **changes: Any) -> Path:
    """Changes keys of config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def with_weights(folder: Path, change: Callable[[Weights], Any]) -> Path:
    """Changes the tensors of model.safetensors."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| over the root mean square of b."""
    return float((a - b).abs().max() / b.square().mean().sqrt())


ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 500000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("rope", ROPES)
def test_a_config_of_version_5_loads_with_its_own_rope(rope: str, tmp_path: Path) -> None:
    """transformers 4 by itself reads such a file as theta 10000, and says nothing."""
    scaling = {key: value for key, value in ROPES[rope].items() if key != "rope_theta"}
    folder = tiny.checkpoint(
        tmp_path, rope_theta=500000.0, rope_scaling=scaling if rope == "llama3" else None
    )
    original = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    edited(folder, rope_theta=None, rope_scaling=None, torch_dtype=None, dtype="float32")
    edited(folder, rope_parameters=ROPES[rope], transformers_version="5.2.0")
    with torch.no_grad():
        truth = original(IDS).logits
        assert relative_error(pretrained.load(folder).eval()(IDS).logits, truth) < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "olmo2", "granite", "smollm3"])
@pytest.mark.parametrize("factor", [4, 4.0])
def test_every_class_reads_a_linear_rope(model_type: str, factor: float, tmp_path: Path) -> None:
    """OLMo 2's class of version 4 knows `type` alone, and refuses 4 for 4.0."""
    folder = tiny.checkpoint(tmp_path, model_type)
    plain = pretrained.load(folder)(IDS).logits
    edited(folder, rope_parameters=None, rope_scaling={"rope_type": "linear", "factor": factor})
    assert relative_error(pretrained.load(folder)(IDS).logits, plain) > 1e-3  # and it is proved there


def test_what_the_class_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise ValueError("rope_scaling must have two fields\nand no more")

    folder = tiny.checkpoint(tmp_path)
    monkeypatch.setattr(CONFIG_MAPPING["llama"], "from_dict", refuse)
    with pytest.raises(
        UserError, match=r"config\.json: transformers \S+ refuses it \(rope_scaling"
    ) as caught:
        pretrained.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_a_missing_tensor_is_refused_and_not_drawn(model_type: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, model_type)
    name = next(n for n in sorted(load_file(folder / "model.safetensors")) if ".mlp." in n)
    with_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(UserError, match=rf"lacks {name}, which transformers would draw at random"):
        pretrained.load(folder)


def test_a_tensor_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    def add(weights: Weights) -> None:
        weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(32)

    with pytest.raises(
        UserError, match=r"holds model\.layers\.0\.self_attn\.q_norm\.weight, which llama does"
    ):
        pretrained.load(with_weights(tiny.checkpoint(tmp_path), add))


def test_tables_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    def add(weights: Weights) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)

    assert pretrained.load(with_weights(tiny.checkpoint(tmp_path), add))


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    def cut(weights: Weights) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()

    with pytest.raises(UserError, match=r"holds model\.norm\.weight, in another shape"):
        pretrained.load(with_weights(tiny.checkpoint(tmp_path), cut))


def test_a_trained_head_beside_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, tie_word_embeddings=True)

    def copy(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    assert pretrained.load(with_weights(folder, copy))  # a copy of the embedding says nothing new

    def train(weights: Weights) -> None:
        weights["lm_head.weight"] += 0.1

    with pytest.raises(UserError, match=r"lm_head\.weight is not the embedding"):
        pretrained.load(with_weights(folder, train))


def test_what_is_left_out_may_be_missing(tmp_path: Path) -> None:
    """LLM-Drop's checkpoints without the dropped weights: the variant loads, the base does not."""
    folder, skip = tiny.checkpoint(tmp_path), SkipSet((1,), (0,))
    whole = Reference(folder, skip)

    def drop(weights: Weights) -> None:
        gone = ("layers.1.self_attn", "layers.1.input_layernorm", "layers.0.mlp", "layers.0.post_attention")
        for name in [name for name in weights if any(part in name for part in gone)]:
            del weights[name]

    with_weights(folder, drop)
    with torch.no_grad():
        truth, logits = whole.model(IDS, use_cache=False).logits, None
        logits = Reference(folder, skip).model(IDS, use_cache=False).logits
    assert torch.equal(logits, truth)
    for other in (SkipSet(), SkipSet((1,)), SkipSet((), (0,)), SkipSet((0,), (1,))):
        with pytest.raises(UserError, match=r"lacks model\.layers"):
            Reference(folder, other)


def test_the_shared_norm_of_a_parallel_layer_goes_with_both(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "phi")

    def drop(weights: Weights) -> None:
        for name in [name for name in weights if ".1.input_layernorm." in name]:
            del weights[name]

    with_weights(folder, drop)
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.input_layernorm"):
        Reference(folder, SkipSet((1,)))
    assert Reference(folder, SkipSet((1,), (1,)))


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    folder = edited(tiny.checkpoint(tmp_path), quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match="quantised"):
        pretrained.load(folder)


def test_healed_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)}, tmp_path / "healed.safetensors")
    folder = tiny.checkpoint(tmp_path / "tiny")
    with pytest.raises(UserError, match=r"healed.safetensors holds model\.layers\.9"):
        Reference(folder, overlays=[tmp_path / "healed.safetensors"])


def theta_of(config: Any) -> float:
    """The rope's base, of a configuration of transformers 4 or 5."""
    return float(config.rope_theta if tiny.TRANSFORMERS == 4 else config.rope_parameters["rope_theta"])


@pytest.mark.skipif(tiny.TRANSFORMERS > 4, reason="every class of version 5 reads the form of version 5")
def test_an_unknown_architecture_in_a_form_that_its_class_does_not_read(tmp_path: Path) -> None:
    """GPT-NeoX's of version 4 has `rotary_emb_base`; a file of version 5 would be read as 10000 and 1.0."""
    config = AutoConfig.for_model("gpt_neox_japanese", **{**tiny.COMMON, "rotary_emb_base": 500000})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert pretrained.load(tmp_path).config.rotary_emb_base == 500000
    edited(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    with pytest.raises(UserError, match="written by transformers 5"):
        pretrained.load(tmp_path)


def test_an_unknown_architecture_whose_class_knows_the_key(tmp_path: Path) -> None:
    config = AutoConfig.for_model("stablelm", **tiny.COMMON)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    edited(tmp_path, rope_theta=None)
    edited(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert theta_of(pretrained.load(tmp_path).config) == 500000.0


def test_rewritten_is_a_folder_that_transformers_reads_right(tmp_path: Path) -> None:
    folder = edited(tiny.checkpoint(tmp_path), rope_theta=None)
    edited(folder, rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    with pretrained.rewritten(folder) as place:
        assert theta_of(AutoModelForCausalLM.from_pretrained(place).config) == 777.0
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
