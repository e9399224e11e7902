"""Every tensor of a checkpoint is read by the graph, or export refuses it by name, from the headers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.engines import opening
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.types import BASE, UserError
from tests import tiny, truth

Weights = dict[str, torch.Tensor]
LAYER = "model.layers.1"


def spoiled(folder: Path, change: Callable[[Weights], Any]) -> Path:
    """Changes the tensors of model.safetensors."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def adding(
    shape: tuple[int, ...], *names: str, dtype: torch.dtype = torch.float32
) -> Callable[[Weights], Any]:
    """Adds tensors."""
    return lambda weights: weights.update({name: torch.ones(shape, dtype=dtype) for name in names})


def replacing(name: str, *endings: str) -> Callable[[Weights], Any]:
    """Puts a quantisation's tensors in a weight's place."""

    def change(weights: Weights) -> None:
        del weights[f"{name}.weight"]
        adding((8, 8), *(f"{name}.{ending}" for ending in endings), dtype=torch.int32)(weights)

    return change


def eight_bits(weights: Weights) -> None:
    """A weight in float8, with or without its scale."""
    weights[f"{LAYER}.mlp.up_proj.weight"] = weights[f"{LAYER}.mlp.up_proj.weight"].to(torch.float8_e4m3fn)


BIASES = [f"{LAYER}.self_attn.{name}_proj.bias" for name in "qkvo"]
REFUSED: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "biases": (adding((64,), *BIASES), r"k_proj\.bias, .* and 1 more, which llama .*mend its attention_bias"),
    "a norm of heads": (adding((32,), f"{LAYER}.self_attn.q_norm.weight"), r"q_norm\.weight, which llama"),
    "experts": (adding((8, 8), f"{LAYER}.mlp.experts.0.up_proj.weight"), "mixture of experts"),
    "an adapter": (adding((8, 8), f"{LAYER}.self_attn.q_proj.lora_A.weight"), "adapter that was not merged"),
    "a classifier": (adding((2, 64), "score.weight"), "classifier or a reward model"),
    "one layer more": (adding((64,), "model.layers.2.input_layernorm.weight"), r"1 layers more \(layer 2\)"),
    "GPTQ": (replacing(f"{LAYER}.mlp.up_proj", "qweight", "qzeros", "scales"), "quantised .GPTQ or AWQ"),
    "bitsandbytes": (adding((8,), f"{LAYER}.mlp.up_proj.weight.absmax"), "quantised .bitsandbytes"),
    "fp8 with scales": (adding((1,), f"{LAYER}.mlp.up_proj.weight_scale"), "quantised .scaled 8- or 4-bit"),
    "fp8": (eight_bits, "quantised .F8_E4M3"),
    "a shape": (lambda w: w.update({"model.norm.weight": torch.ones(63)}), r"norm\.weight is \[63\], but"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_graph_would_not_read_is_refused(case: str, workdir: Path) -> None:
    change, message = REFUSED[case]
    folder = spoiled(tiny.checkpoint(workdir / "tiny"), change)
    with pytest.raises(UserError, match=message) as refusal:
        export.export_base(checkpoint.resolve(str(folder)))
    assert "\n" not in str(refusal.value)
    assert not list(workdir.glob("graphs/*/*.onnx"))


@pytest.mark.parametrize(
    "name",
    [f"{LAYER}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", f"{LAYER}.attn.masked_bias"],
)
def test_tables_of_old_checkpoints_are_passed_over(name: str, workdir: Path) -> None:
    folder = spoiled(tiny.checkpoint(workdir / "tiny"), adding((16,), name))
    assert export.export_base(checkpoint.resolve(str(folder))).is_file()


@pytest.mark.parametrize("model_type", ["llama", "phi"])
def test_a_copy_of_a_tied_embedding_is_harmless_and_a_trained_head_is_not(
    model_type: str, workdir: Path
) -> None:
    folder = tiny.checkpoint(workdir / "tiny", model_type, tie_word_embeddings=True)
    spoiled(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = np.random.default_rng(0).integers(3, 96, (1, 12))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    with opening.open_runner(export.export_base(checkpoint.resolve(str(folder)))) as runner:
        logits, _ = runner.forward(ids, logits_positions=np.arange(12)[None])
    assert np.abs(logits - expected).max() / np.sqrt(np.mean(expected**2)) < 1e-4

    trained = tiny.checkpoint(workdir / "trained", model_type, tie_word_embeddings=True)
    spoiled(trained, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 0.1}))
    with pytest.raises(UserError, match=r"transformers ignores it; set tie_word_embeddings to false"):
        checkpoint.resolve(str(trained), proof=lambda one: export.prove(one, "fp32", BASE))
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = AutoModelForCausalLM.from_pretrained(trained, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    with opening.open_runner(export.export_base(checkpoint.resolve(str(trained)))) as runner:
        logits, _ = runner.forward(ids, logits_positions=np.arange(12)[None])
    assert np.abs(logits - expected).max() / np.sqrt(np.mean(expected**2)) < 1e-4


def test_tables_of_pythia_are_no_weights(workdir: Path) -> None:
    """Its files hold the causal mask, what stands for masked and the angles, as buffers of their time."""
    folder = tiny.checkpoint(workdir / "pythia", "gpt_neox", "fp16")
    weights = load_file(folder / "model.safetensors")
    for i in range(2):
        name = f"gpt_neox.layers.{i}.attention"
        weights[f"{name}.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
        weights[f"{name}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{name}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    graph = export.export_base(checkpoint.resolve(str(folder), in_place=True))
    ids = np.random.default_rng(0).integers(3, 96, (2, 30))
    logits = truth.logits_of(truth.loaded(folder).float(), ids)
    assert truth.relative_error(truth.graph_logits(graph, ids), logits) < 1e-4
