"""PyTorch with dequantised weights in the place of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.models.quantisation import files, modules
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet, UserError
from tests import overlays, quantised, tiny

IDS = np.random.default_rng(0).integers(3, 96, (1, 12))


def logits(reference: Reference) -> np.ndarray:
    return reference.forward(IDS, np.ones_like(IDS), np.arange(12)[None])[0]


FAST = ("llama", "gpt_neox")
FORMS = ("int4-fp32", "int4-fp16", "int8-fp32", "int8-fp16")


@pytest.mark.parametrize(
    "model_type",
    [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in tiny.DIALECTS],
)
def test_the_reference_is_a_checkpoint_with_those_weights(model_type: str, workdir: Path) -> None:
    """As transformers loads it where the dequantised weights are the checkpoint's."""
    source = quantised.model(workdir, model_type, tie_word_embeddings=False)
    path = files.ensure(source, Quantisation(4, 32))
    ours = logits(Reference(source.folder, overlays=[path]))
    assert np.abs(ours - logits(Reference(source.folder))).max() > 1e-3
    weights = source.folder / "model.safetensors"
    tensors = load_file(weights)
    for name, weight in files.dequantised(path):
        assert name in tensors
        tensors[name] = torch.from_numpy(weight.T.copy())
    save_file(tensors, weights, {"format": "pt"})
    assert np.array_equal(ours, logits(Reference(source.folder)))


def test_a_tied_heads_embedding_stays(workdir: Path) -> None:
    source = quantised.model(workdir, tie_word_embeddings=True)
    path = files.ensure(source, Quantisation(8, 32))
    model = Reference(source.folder, overlays=[path]).model
    embedding = load_file(source.folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    head = model.get_output_embeddings().weight
    assert np.array_equal(head.detach().numpy(), dict(files.dequantised(path))["lm_head.weight"].T)
    assert not torch.equal(head, embedding)


@pytest.mark.parametrize("tied", [True, False])
def test_an_fp16_graph_of_4_bits_keeps_the_checkpoints_head(tied: bool, workdir: Path) -> None:
    """Its layers are the dequantised ones all the same; beside 8 bits the head is one of them."""
    graphs = [quantised.graph(workdir, precision=one, tie_word_embeddings=tied) for one in FORMS]
    own = load_file(workdir / "graphs/m/model.safetensors")
    head = own["model.embed_tokens.weight" if tied else "lm_head.weight"]
    is_own = {}
    for form, path in zip(FORMS, graphs, strict=True):
        model = Reference(path.parent, overlays=modules.overlays_of(path)).model
        is_own[form] = torch.equal(model.get_output_embeddings().weight, head)
        layer = model.get_submodule("model.layers.1.mlp.up_proj").weight
        blocks = dict(files.dequantised(store.overlays(path)[0]))
        assert np.array_equal(layer.detach().numpy(), blocks["model.layers.1.mlp.up_proj.weight"].T)
    assert is_own == {"int4-fp32": False, "int4-fp16": True, "int8-fp32": False, "int8-fp16": False}


def test_sublayers_that_are_gone_are_passed_over(workdir: Path) -> None:
    source = quantised.model(workdir)
    path, skip = files.ensure(source, Quantisation(8, 32)), SkipSet((1,), (0, 2))
    half = Reference(source.folder, skip, "fp16", [path])
    assert half.model.get_output_embeddings().weight.dtype == torch.float16
    assert np.isfinite(logits(half)).all()


def test_other_files_and_other_models(workdir: Path) -> None:
    source = quantised.model(workdir)
    path = files.ensure(source, Quantisation(8, 32))
    other = quantised.model(workdir, name="other", vocab_size=100)
    with pytest.raises(UserError, match=r"lm_head\.weight of another model"):
        Reference(other.folder, overlays=[path])
    shallow = quantised.model(workdir, name="shallow", num_hidden_layers=2)
    with pytest.raises(UserError, match=r"model\.layers\.2\.\S+, which .* has not"):
        Reference(shallow.folder, overlays=[path])
    skip = SkipSet((1,))
    assert not modules.dequantised(Reference(source.folder).model, overlays.make(source.folder, skip), BASE)
