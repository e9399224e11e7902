"""The residual stream of PyTorch, on a model whose stream is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib import measures, streams
from pipeline.models import checkpoint
from pipeline.models.reference import Dtype, Reference
from tests import tiny


def test_a_model_whose_layers_turn_the_stream_by_a_known_angle(workdir: Path) -> None:
    """x + r(R − 1)·x/r = R·x: attention turns by θ, the MLP adds nothing; d(ℓ, n) = nθ/π, folded at 1."""
    source = tiny.checkpoint(
        workdir / "models" / "turn",
        vocab_size=tiny.WORDS,
        num_hidden_layers=5,
        num_key_value_heads=4,
        head_dim=16,
    )
    tiny.tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    theta, size = 0.9, 64
    turn = np.kron(np.eye(size // 2), [[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding / embedding.norm(dim=1, keepdim=True) * size**0.5)  # every token's rms is 1
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1)
            layer.self_attn.v_proj.weight.copy_(torch.eye(size))
            layer.self_attn.o_proj.weight.copy_(torch.tensor(turn - np.eye(size)))
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(source)
    folder = checkpoint.resolve("models/turn").folder
    Path("a.txt").write_text("aaaaaaaa " * 200)  # equal tokens: attention averages equal values
    stream = streams.torch_streams(folder)
    row = np.full(16, 40)
    values = measures.measure(*stream(row), 2)
    np.testing.assert_allclose(values["cosine_attn"], np.cos(theta), atol=1e-4)
    np.testing.assert_allclose(values["cosine_mlp"], 1, atol=1e-6)
    for n in range(6):
        expected = np.arccos(np.cos(n * theta)) / np.pi
        np.testing.assert_allclose(np.diag(values["angular"], n), expected, atol=1e-3 if n == 0 else 1e-4)


def test_streams_and_middles_are_those_of_a_pass(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, num_hidden_layers=3)
    row = np.random.default_rng(0).integers(3, 96, 10)
    outer, middles = streams.torch_streams(folder)(row)
    assert outer.shape == (4, 10, 64) and middles.shape == (3, 10, 64)
    model = Reference(folder).model
    with torch.no_grad():
        states = model(torch.tensor(row)[None], output_hidden_states=True).hidden_states
    for k in range(3):  # the last hidden state comes out normed
        np.testing.assert_allclose(outer[k], states[k][0], atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_shows_the_same_stream_in_fp32(tmp_path: Path, dtype: Dtype) -> None:
    folder = tiny.checkpoint(tmp_path, num_hidden_layers=3)
    row = np.random.default_rng(0).integers(3, 96, 10)
    half, whole = (streams.torch_streams(folder, dtype=one)(row) for one in (dtype, "fp32"))  # type: ignore[arg-type]
    for ours, theirs in zip(half, whole, strict=True):
        error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
        assert ours.dtype == np.float32 and 1e-6 < error < 0.03
