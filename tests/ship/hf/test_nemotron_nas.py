"""Single sublayers as nemotron-nas, against a reader written from the published rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.graphs import variants
from pipeline.models import weight_files
from pipeline.types import SkipSet
from tests import overlays, tiny
from tests.ship.hf import folders
from tests.ship.hf.published_reader import PublishedReader

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "fp32", {}),
    "llama3": ("llama", "fp32", {"rope_scaling": tiny.LLAMA3, "rope_theta": 500000.0}),
    "tied-bf16": ("llama", "bf16", {"tie_word_embeddings": True}),
    "linear-rope": ("llama", "fp16", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", "fp32", {"sliding_window": None}),
    "mistral-wide-window": ("mistral", "fp32", {"sliding_window": 256}),
    "sharded": ("llama", "fp32", {"max_shard_size": "150KB"}),
}


def base(case: str, workdir: Path) -> Path:
    model_type, dtype, changes = CASES[case]
    return folders.base(workdir, model_type, dtype, **{**folders.NAS, **changes})


def compensated(base: Path, name: str, form: str) -> Path:
    """With maps whose biases are nought, as `compensate --with matrix` leaves them."""
    skip, joined = SkipSet.parse(name), base.parent / "model.safetensors"
    if is_sharded := not joined.is_file():  # the maps are drawn to the widths of one file
        files = weight_files.weight_files(base.parent)
        save_file({n: one for file in files for n, one in load_file(file).items()}, joined)
    path = overlays.of_form(base.parent, skip, form)
    if is_sharded:
        joined.unlink()
    tensors = load_file(path)
    save_file({n: one * (not n.endswith(".bias")) for n, one in tensors.items()}, path)
    return variants.compensate(base, skip, path, form)


@pytest.mark.parametrize("name", ["attn1-2", "mlp0_2", "attn2+mlp2-3", "attn1-3+mlp1"])
@pytest.mark.parametrize("case", CASES)
def test_the_published_rules_give_the_logits_of_the_variant(case: str, name: str, workdir: Path) -> None:
    graph = folders.variant(base(case, workdir), name)
    shipment = folders.shipped(graph)
    assert shipment.form == "nemotron-nas" and shipment.layers == (0, 1, 2, 3)
    truth = folders.expected(graph)
    for digits in (None, 6):
        logits = PublishedReader(shipment.folder, digits).logits(folders.IDS)
        assert folders.difference(logits, truth) < 1e-5
    written = {name for file in weight_files.weight_files(shipment.folder) for name in load_file(file)}
    skip = SkipSet.parse(name)
    for i in range(4):
        layer = f"model.layers.{i}"
        assert (f"{layer}.input_layernorm.weight" in written) == ((i, "attn") not in skip)
        assert (f"{layer}.post_attention_layernorm.weight" in written) == ((i, "mlp") not in skip)


@pytest.mark.parametrize("form", ["linear", "rank4"])
@pytest.mark.parametrize("case", ["llama", "tied-bf16", "sharded"])
def test_maps_are_linear_layers(case: str, form: str, workdir: Path) -> None:
    graph = compensated(base(case, workdir), "attn1_2+mlp1_3", form)
    shipment = folders.shipped(graph)
    truth = folders.expected(graph)
    reader = PublishedReader(shipment.folder)
    assert folders.difference(reader.logits(folders.IDS), truth) < 1e-5
    without = folders.variant(graph.parent / "base.fp32.onnx", "attn1_2+mlp1_3")
    assert folders.difference(folders.expected(without), truth) > 1e-2
    assert reader.tensors["model.layers.1.self_attn.linear_attn.weight"].shape == (64, 64)
    engines = {engine.name: engine.loads for engine in shipment.engines}
    assert engines["TensorRT-LLM"] and not any(engines[name] for name in ("vLLM", "SGLang", "mlx-lm"))
    assert "mlx-lm (it calls the maps' tensors otherwise" in shipment.described()


def test_a_whole_block_with_a_map_in_it(workdir: Path) -> None:
    graph = compensated(base("llama", workdir), "block1", "linear")
    shipment = folders.shipped(graph)
    assert shipment.form == "nemotron-nas"
    truth = folders.expected(graph)
    assert folders.difference(PublishedReader(shipment.folder).logits(folders.IDS), truth) < 1e-5


def test_a_wrong_layer_is_seen_in_the_logits(workdir: Path) -> None:
    graph = folders.variant(base("llama", workdir), "attn1-2")
    folder = folders.shipped(graph).folder
    tensors = load_file(folder / "model.safetensors")
    one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, folder / "model.safetensors")
    assert folders.difference(PublishedReader(folder).logits(folders.IDS), folders.expected(graph)) > 1e-3


def test_the_first_layers_may_be_wholly_gone(workdir: Path) -> None:
    graph = folders.variant(base("llama", workdir), "attn0_2+mlp0_3")
    shipment = folders.shipped(graph)
    assert (
        folders.difference(PublishedReader(shipment.folder).logits(folders.IDS), folders.expected(graph))
        < 1e-5
    )
    assert folders.config(shipment.folder)["block_configs"][0] == {
        "attention": {"no_op": True, "replace_with_linear": False, "n_heads_in_group": None},
        "ffn": {"no_op": True, "replace_with_linear": False, "ffn_mult": None},
    }


def test_the_type_of_the_weights_is_said(workdir: Path) -> None:
    """A config that was converted from a GGUF has no such key."""
    graph = folders.variant(base("tied-bf16", workdir), "attn1")
    folders.set_config(graph.parent, dtype=None)
    config = folders.config(folders.shipped(graph).folder)
    assert (config.get("dtype"), config["torch_dtype"]) == (None, "bfloat16")


def test_config_says_it_in_every_readers_words(workdir: Path) -> None:
    config = folders.config(folders.shipped(folders.variant(base("llama3", workdir), "attn1_2+mlp2")).folder)
    assert config["per_layer_config"] == {"1": {"skip": ["attention"]}, "2": {"skip": ["attention", "mlp"]}}
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rope_scaling"] == tiny.LLAMA3
    assert config["rope_scaling"].items() <= config["rope_parameters"].items()
    assert config["auto_map"] == {"AutoConfig": "configuration_decilm.DeciLMConfig"}
    assert "sliding_window" not in config and config["num_hidden_layers"] == 4
