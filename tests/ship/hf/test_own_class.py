"""Whole blocks: a checkpoint of the model's own class with fewer layers, against transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, weight_files
from pipeline.models import config as configs
from pipeline.models.compensation import is_map
from pipeline.types import SkipSet
from tests import overlays, tiny
from tests.graphs.test_architectures import LONG
from tests.ship.hf import folders

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "fp32", {}) for name in tiny.DIALECTS},
    "llama-bf16-tied-llama3": ("llama", "bf16", {"tie_word_embeddings": True, "rope_scaling": tiny.LLAMA3}),
    "llama-linear-bias": (
        "llama",
        "fp16",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "qwen2-window": (
        "qwen2",
        "fp32",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3},
    ),
    "qwen3-window": (
        "qwen3",
        "fp32",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "smollm3-window": (
        "smollm3",
        "fp16",
        {"use_sliding_window": True, "sliding_window": 6, "no_rope_layers": [0, 1, 0, 1, 1, 0]},
    ),
    "gemma2-untied": ("gemma2", "bf16", {"tie_word_embeddings": False}),
    "gemma3-pattern-of-3": ("gemma3_text", "fp32", {"sliding_window_pattern": 3}),
    "gemma3-linear": ("gemma3_text", "fp32", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "olmo2-linear": ("olmo2", "fp32", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "phi3-longrope": (
        "phi3",
        "fp32",
        {"rope_scaling": LONG, "original_max_position_embeddings": 16, "sliding_window": None},
    ),
    "phi3-partial": ("phi3", "fp32", {"partial_rotary_factor": 0.5}),
    "gpt_neox-rotary": ("gpt_neox", "fp32", {"rotary_pct": 1.0, "rotary_emb_base": 500000}),
    "phi-tied": ("phi", "fp32", {"tie_word_embeddings": True}),
    "qwen-tied": ("qwen", "bf16", {"tie_word_embeddings": True}),
}


def graph_of(case: str, workdir: Path, name: str = "block0_3", **more: Any) -> Path:
    model_type, dtype, changes = CASES[case]
    base = folders.base(workdir, model_type, dtype, **{"num_hidden_layers": 6, **changes, **more})
    return folders.variant(base, name)


@pytest.mark.parametrize("case", CASES)
def test_stock_transformers_gives_the_logits_of_the_variant(case: str, workdir: Path) -> None:
    """Two layers go, of which the first is one, so that each that stays has another index."""
    graph = graph_of(case, workdir)
    shipment = folders.shipped(graph)
    assert folders.agrees(shipment.folder, graph)
    assert shipment.form == "own class" and shipment.layers == (1, 2, 4, 5)
    mark = folders.config(shipment.folder)["skip_pipeline"]
    assert (mark["variant"], mark["num_layers"], mark["layers"]) == ("block0_3", 6, [1, 2, 4, 5])


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt_neox", "phi3-longrope", "qwen2-window"])
def test_a_config_of_version_4_loads_too(case: str, workdir: Path) -> None:
    """And has the same keys for the rope as one that version 5 wrote."""
    model_type, dtype, changes = CASES[case]
    source = tiny.checkpoint(
        workdir / "models" / "tiny", model_type, dtype, vocab_size=tiny.WORDS, num_hidden_layers=6, **changes
    )
    read = configs.for_transformers(configs.read_config(source))
    folders.set_config(source, rope_parameters=None, **read)
    tiny.tokenizer(source)
    graph = folders.variant(export.export_base(checkpoint.resolve("models/tiny")), "block0_3")
    folder = folders.shipped(graph).folder
    assert folders.agrees(folder, graph)
    assert "rope_parameters" not in folders.config(folder)


@pytest.mark.skipif(tiny.TRANSFORMERS == 4, reason="its configs have version 4's words alone")
def test_the_rope_is_said_in_both_versions_words(workdir: Path) -> None:
    config = folders.config(folders.shipped(graph_of("gemma3-linear", workdir)).folder)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert config["rope_theta"] == config["rope_parameters"]["full_attention"]["rope_theta"]
    assert config["rope_local_base_freq"] == config["rope_parameters"]["sliding_attention"]["rope_theta"]


@pytest.mark.parametrize("name", ["base", "block5", "block0-4"])
def test_base_first_and_last_layers(name: str, workdir: Path) -> None:
    graph = graph_of("qwen3-window", workdir, name)
    shipment = folders.shipped(graph)
    assert folders.agrees(shipment.folder, graph)
    assert (shipment.shared, shipment.rewritten) == ((1, 0) if name == "base" else (0, 1))
    if name == "base":
        assert (shipment.folder / "model.safetensors").read_bytes() == (
            graph.parent / "model.safetensors"
        ).read_bytes()


def test_shards_that_stay_are_the_sources_own(workdir: Path) -> None:
    graph = graph_of("llama", workdir, "block2-3", max_shard_size="150KB")
    shipment = folders.shipped(graph)
    assert folders.agrees(shipment.folder, graph)
    source, written = weight_files.find(graph.parent), weight_files.find(shipment.folder)
    assert len(written.files) > 1 and written.index and shipment.shared and shipment.rewritten
    assert shipment.shared + shipment.rewritten == len(written.files)
    assert max(f.stat().st_size for f in written.files) <= max(f.stat().st_size for f in source.files)
    contents = [file.read_bytes() for file in source.files]
    assert sum(file.read_bytes() in contents for file in written.files) >= shipment.shared
    for file in written.files:
        load_file(file)  # the library's own reader: offsets, sizes, alignment


def test_bytes_and_types_are_not_changed(workdir: Path) -> None:
    graph = graph_of("llama-bf16-tied-llama3", workdir)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (graph.parent, folders.shipped(graph).folder)
    )
    for new, old in enumerate((1, 2, 4, 5)):
        for name in [n for n in before if n.startswith(f"model.layers.{old}.")]:
            twin = after[name.replace(f"layers.{old}.", f"layers.{new}.")]
            assert twin.dtype == torch.bfloat16 and torch.equal(twin, before[name])
    assert "lm_head.weight" not in after


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_folded_and_healed(dtype: str, workdir: Path) -> None:
    """Overlays have the checkpoint's types (`passes/graft.py` asks for it), and so has the folder."""
    base = folders.base(workdir, "llama", dtype, num_hidden_layers=4)
    skip, down = SkipSet.parse("block1"), "model.layers.0.mlp.down_proj.weight"
    path = overlays.of_form(base.parent, skip, "fold")
    tensors = load_file(path)  # a fold whose constants are nought: nothing stands in the places
    save_file({name: one * (not is_map(name)) for name, one in tensors.items()}, path)
    folded = variants.compensate(base, skip, path, "fold")
    healed = heal(folded, "model.layers.3.mlp.up_proj.weight")
    for i, graph in enumerate((folded, healed, heal(folders.variant(base, "block1"), down))):
        shipment = folders.shipped(graph, name=f"out{i}")
        truth = folders.expected(graph)
        assert shipment.form == "own class" and shipment.layers == (0, 2, 3)
        assert folders.difference(folders.transformers_logits(shipment.folder), truth) < 1e-5
        assert folders.difference(folders.expected(folders.variant(base, "block1")), truth) > 1e-3
        assert "changed to make up for it" in (shipment.folder / "README.md").read_text()
        written = load_file(shipment.folder / "model.safetensors")
        assert {one.dtype for one in written.values()} == {tiny.DTYPES[dtype]}


def heal(graph: Path, name: str) -> Path:
    """The graph with one weight changed, as an adapter changes it."""
    record = store.graph_sidecar(graph)
    path = store.overlay_path(graph.parent, f"{record.variant}~heal")
    weight = load_file(graph.parent / "model.safetensors")[name]
    save_file({name: weight + torch.randn_like(weight) / 9}, path)
    return variants.graft(graph, path, "heal")


def test_a_wrong_layer_is_seen_in_the_logits(workdir: Path) -> None:
    graph = graph_of("llama", workdir)
    folder = folders.shipped(graph).folder
    tensors = load_file(folder / "model.safetensors")
    one, other = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert folders.difference(folders.transformers_logits(folder), folders.expected(graph)) > 1e-3


def test_names_of_the_base_model_alone_get_their_prefix(workdir: Path) -> None:
    source = tiny.checkpoint(
        workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=3, tie_word_embeddings=True
    )
    tensors = load_file(source / "model.safetensors")
    bare = {n.removeprefix("model."): t for n, t in tensors.items() if n != "lm_head.weight"}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    tiny.tokenizer(source)
    base = export.export_base(checkpoint.resolve("models/tiny"))
    for i, name in enumerate(("base", "block0")):
        graph = folders.variant(base, name)
        shipment = folders.shipped(graph, name=f"out{i}")
        assert (
            folders.difference(folders.transformers_logits(shipment.folder), folders.expected(graph)) < 1e-5
        )
        assert shipment.shared == 0
        assert "model.norm.weight" in load_file(shipment.folder / "model.safetensors")


def test_drop_lists_and_code_of_the_source_do_not_come_along(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=4)
    tiny.tokenizer(source)
    folders.set_config(
        source,
        drop_attn_list=[1],
        drop_mlp_list=[1],
        auto_map={"AutoModelForCausalLM": "modeling_x.X"},
    )
    (source / "modeling_x.py").write_text("raise SystemExit('run')")
    base = export.export_base(checkpoint.resolve("models/tiny"))
    graph = folders.variant(base, "block0-1")
    shipment = folders.shipped(graph)
    config = folders.config(shipment.folder)
    assert not {"drop_attn_list", "drop_mlp_list", "auto_map"} & set(config)
    assert not list(shipment.folder.glob("*.py")) and "was not copied" in shipment.described()
    assert folders.agrees(shipment.folder, graph)
