"""Modules that stand for what is left out, and layers that are not understood."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import sublayers
from pipeline.models.reference import Reference
from pipeline.models.sizes import rules_of
from pipeline.types import UserError
from tests import tiny


def test_what_is_left_out_adds_nothing_of_the_right_shape() -> None:
    stream = torch.randn(2, 3, 8)
    zeros, weights = sublayers.NoAttention(nn.Identity())(stream, attention_mask=None)
    assert torch.equal(stream + zeros, stream) and weights is None
    wide = torch.randn(6, 32)  # OPT's last linear is given the inner width
    assert sublayers.NoMlp(8)(wide).shape == (6, 8) and not sublayers.NoMlp(8)(wide).any()


def test_the_layers_and_their_sublayers_are_found(tmp_path: Path) -> None:
    model = Reference(tiny.checkpoint(tmp_path)).model
    layers = sublayers.decoder_layers(model, tmp_path)
    assert layers is model.model.layers
    assert [sublayers.module_name(layers[0], names, tmp_path) for _, names in sublayers.of_layer(0)] == [
        "self_attn",
        "mlp",
    ]


def test_a_model_that_is_built_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    model = Reference(tiny.checkpoint(tmp_path)).model
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="no list of 7 decoder layers in LlamaForCausalLM"):
        sublayers.decoder_layers(model, tmp_path)
    with pytest.raises(UserError, match="Linear has none of self_attn, attention, attn"):
        sublayers.module_name(nn.Linear(2, 2), sublayers.of_layer(0)[0][1], tmp_path)


def test_a_layer_that_does_more_than_add_its_sublayers_is_refused(tmp_path: Path) -> None:
    """The norms behind Gemma's sublayers, under a name whose rules have none."""
    ids = np.arange(3, 9)[None]
    reference = Reference(tiny.checkpoint(tmp_path, "gemma2"))
    streams, added, entering = reference.trace(ids, np.ones_like(ids), np.arange(6)[None])
    explained = entering + sum(added[layer, kind] for layer, kind in added)
    np.testing.assert_allclose(explained, streams[1, "mlp"], rtol=1e-5, atol=1e-6)
    reference._rules = rules_of("llama")
    with pytest.raises(UserError, match=r"layer 0: what its attention and MLP give does not add up"):
        reference.trace(ids, np.ones_like(ids), np.arange(6)[None])


def test_hooks_keep_the_stream_of_every_calling_convention() -> None:
    kept: dict[int, torch.Tensor] = {}
    stream = torch.randn(1, 2, 4)
    sublayers.keep_input(kept, 0)(nn.Identity(), (stream,), {})
    sublayers.keep_input(kept, 1)(nn.Identity(), (), {"hidden_states": stream})
    sublayers.keep_output(kept, 2)(nn.Identity(), (), stream)
    sublayers.keep_output(kept, 3)(nn.Identity(), (), (stream, None))
    assert all(kept[key] is stream for key in range(4))


def test_a_stream_that_is_not_finite_is_not_blamed_on_the_architecture() -> None:
    """A check of a model with a NaN in its weights ended with a word about norms, not with its failure."""
    before, after = {0: torch.ones(1, 2, 4)}, {0: torch.full((1, 2, 4), math.nan)}
    sublayers.refuse_unexplained(before, {(0, "attn"): after[0]}, after)
    with pytest.raises(UserError, match="layer 0: what its attention and MLP give does not add up"):
        sublayers.refuse_unexplained(before, {(0, "attn"): before[0]}, before)
