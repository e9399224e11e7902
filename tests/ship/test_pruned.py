"""A variant by the tensors that are left of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.ship import pruned
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny


@pytest.fixture
def base(workdir: Path) -> Path:
    """A tiny Llama of four layers in bfloat16, which has passed its check."""
    folder = tiny.checkpoint(workdir / "models" / "m", vocab_size=tiny.WORDS, num_hidden_layers=4)
    tiny.tokenizer(folder)
    weights = {name: one.to(torch.bfloat16) for name, one in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = export.export_base(checkpoint.resolve("models/m"))
    tiny.passed(path)
    return path


def cut(base: Path, name: str) -> Path:
    path = variants.cut(base, SkipSet.parse(name))
    tiny.passed(path)
    return path


def test_what_is_left(base: Path) -> None:
    model = pruned.read(cut(base, "attn1_3+mlp2-3"))
    assert model.variant.name == "attn1_3+mlp2-3" and model.num_layers == 4 and not model.whole_blocks
    assert model.layers == (0, 1, 2)  # of layer 3 nothing is left
    names = {name.removeprefix("model.layers.") for name in model.tensors if ".layers." in name}
    of_one = {name.partition(".")[2] for name in names if name.startswith("1.")}
    assert of_one == {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")} | {
        "post_attention_layernorm.weight"
    }
    assert any(name.startswith("2.self_attn") for name in names)
    assert not any(name.startswith(("2.mlp", "3.")) for name in names)


def test_numbers_are_those_of_the_file(base: Path) -> None:
    model = pruned.read(base)
    weights = load_file(base.parent / "model.safetensors")
    assert set(model.tensors) == set(weights) and model.whole_blocks and not model.replaced
    for name, tensor in model.tensors.items():
        array = tensor.array()
        assert array.dtype.name == "bfloat16" and tensor.shape == tuple(weights[name].shape)
        assert np.array_equal(array.astype(np.float32), weights[name].float().numpy())


def test_folds_and_maps(base: Path) -> None:
    skip = SkipSet((1,), (2,))
    overlay = overlays.make(base.parent, skip, folded="model.layers.0.mlp.down_proj.weight")
    graph = variants.compensate(base, skip, overlay, "linear")
    tiny.passed(graph)
    model = pruned.read(graph)
    changed = load_file(overlay)
    assert model.replaced == {"model.layers.0.mlp.down_proj.weight"}
    now = model.tensors["model.layers.0.mlp.down_proj.weight"].array().astype(np.float32)
    assert np.array_equal(now, changed["model.layers.0.mlp.down_proj.weight"].float().numpy())
    assert list(model.maps) == [MapPlace(1, 1, "attn"), MapPlace(2, 2, "mlp")]
    stored = model.maps[MapPlace(2, 2, "mlp")]
    assert np.array_equal(stored.bias.array(), changed["compensation.mlp2.bias"].numpy())
    assert [one.shape for one in stored.factors] == [(64, 64)]
    norm = model.norm(MapPlace(2, 2, "mlp")).array().astype(np.float32)
    original = load_file(base.parent / "model.safetensors")
    assert np.array_equal(norm, original["model.layers.2.post_attention_layernorm.weight"].float().numpy())
    assert model.layers == (0, 1, 2, 3) and not model.whole_blocks


def test_a_mapped_block_is_left(base: Path) -> None:
    skip = SkipSet((1,), (1,))
    graph = variants.compensate(base, skip, overlays.make(base.parent, skip), "linear")
    model = pruned.read(graph, unchecked=True)
    assert model.layers == (0, 1, 2, 3) and not model.whole_blocks


def test_a_tied_embedding_is_there_once(workdir: Path) -> None:
    folder = tiny.checkpoint(
        workdir / "models" / "t", vocab_size=tiny.WORDS, num_hidden_layers=2, tie_word_embeddings=True
    )
    tiny.tokenizer(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # as some files have it
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    graph = export.export_base(checkpoint.resolve("models/t"))
    assert "lm_head.weight" not in pruned.read(graph, unchecked=True).tensors


def test_the_digest_speaks_for_graph_weights_and_form(base: Path) -> None:
    one, other = pruned.read(base), pruned.read(cut(base, "mlp3"))
    digests = {one.digest("f16"), one.digest("q8_0"), other.digest("f16")}
    assert len(digests) == 3 and pruned.read(base).digest("f16") in digests


def test_what_is_refused(base: Path) -> None:
    variant = variants.cut(base, SkipSet.parse("mlp1"))
    with pytest.raises(UserError, match="has passed no check"):
        pruned.read(variant)
    assert pruned.read(variant, unchecked=True).skip == SkipSet((), (1,))
    merged = merge.merge([base, variant])
    with pytest.raises(UserError, match=r"is a merged graph; name one of its variants: base, mlp1"):
        pruned.read(merged)
    static = variants.cut_static(base, 128)
    tiny.passed(static)
    with pytest.raises(UserError, match="has a static cache"):
        pruned.read(static)
    with pytest.raises(UserError, match="`pipeline list` shows what does"):
        pruned.read(base.with_name("none.onnx"))


def test_damage_is_refused(base: Path) -> None:
    """A byte of the weights, and of the graph."""
    weights = base.parent / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        pruned.read(base)
    content[-1] ^= 1
    weights.write_bytes(content)
    pruned.read(base)
    record = json.loads(base.with_suffix(".json").read_text())
    base.write_bytes(base.read_bytes() + b"\0")
    with pytest.raises(UserError):
        pruned.read(base)
    assert record["sha256"]
