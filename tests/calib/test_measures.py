"""Cosines and angles of a sequence, against a plain recomputation from transformers' own hidden states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib import measures
from pipeline.models import texts
from pipeline.types import UserError
from tests.learning import BUCKETS, LAYERS, LENGTH, SAMPLES, measured


def test_every_number_is_that_of_a_plain_recomputation(folder: Path) -> None:
    """From transformers' own hidden states, kept whole, with numpy and loops."""
    statistics = measured(folder)
    tokens, _ = texts.cut(folder, texts.OWN, LENGTH, SAMPLES)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    middles: dict[int, torch.Tensor] = {}
    for k, layer in enumerate(model.model.layers):
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args, k=k: middles.__setitem__(k, args[0])
        )
    outer: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(
        lambda _, args: outer.append(args[0])
    )  # the last hidden state comes out normed
    cosines = {name: np.zeros((SAMPLES, LAYERS, LENGTH)) for name in ("layer", "attn", "mlp")}
    angles = np.zeros((SAMPLES, LENGTH, LAYERS + 1, LAYERS + 1))
    for n, row in enumerate(tokens):
        with torch.inference_mode():
            states = model(torch.tensor(row)[None], output_hidden_states=True).hidden_states
        x = [s[0].double().numpy() for s in (*states[:-1], outer[-1])]
        m = [middles[k][0].double().numpy() for k in range(LAYERS)]
        cos = lambda a, b: (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)  # noqa: E731
        for k in range(LAYERS):
            cosines["layer"][n, k], cosines["attn"][n, k] = cos(x[k], x[k + 1]), cos(x[k], m[k])
            cosines["mlp"][n, k] = cos(m[k], x[k + 1])
        for a in range(LAYERS + 1):
            for b in range(LAYERS + 1):
                angles[n, :, a, b] = np.arccos(np.clip(cos(x[a], x[b]), -1, 1)) / np.pi
    size = LENGTH // BUCKETS
    for name, values in cosines.items():
        split = values.reshape(SAMPLES, LAYERS, BUCKETS, size).mean(-1).transpose(0, 2, 1)
        np.testing.assert_allclose(statistics.mean[f"cosine_{name}"], split.mean(0), atol=1e-5)
        np.testing.assert_allclose(
            statistics.stderr[f"cosine_{name}"], split.std(0, ddof=1) / SAMPLES**0.5, atol=1e-5
        )
    off = ~np.eye(LAYERS + 1, dtype=bool)  # arccos at 1 turns rounding into 1e-4
    np.testing.assert_allclose(statistics.distances()[off], angles[:, -1].mean(0)[off], atol=1e-5)
    np.testing.assert_allclose(
        statistics.stderr["angular"][off], (angles[:, -1].std(0, ddof=1) / SAMPLES**0.5)[off], atol=1e-5
    )
    np.testing.assert_allclose(statistics.distances("mean")[off], angles.mean((0, 1))[off], atol=1e-5)


def test_sums_are_means_and_standard_errors() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 2, 3))
    sums = measures.Sums()
    for value in values:
        sums.add({"x": value})
    np.testing.assert_allclose(sums.mean("x"), values.mean(0))
    np.testing.assert_allclose(sums.stderr("x"), values.std(0, ddof=1) / 7**0.5)
    one = measures.Sums()
    one.add({"x": values[0]})
    assert not one.stderr("x").any()
    with pytest.raises(UserError, match="sequence 1 are not finite"):
        one.add({"x": np.array([np.nan])})


def test_angles_between_known_vectors() -> None:
    units = np.array([[1, 0], [0, 1], [-1, 0], [2**-0.5, 2**-0.5]])
    expected = [[0, 0.5, 1, 0.25], [0.5, 0, 0.5, 0.25], [1, 0.5, 0, 0.75], [0.25, 0.25, 0.75, 0]]
    np.testing.assert_allclose(measures.angular(units), expected, atol=1e-7)


def test_buckets_hold_their_own_tokens_and_a_zero_vector_is_no_error() -> None:
    streams = np.zeros((2, 4, 2))
    streams[0] = [[1, 0], [1, 0], [1, 0], [0, 0]]
    streams[1] = [[1, 0], [1, 0], [0, 1], [1, 0]]
    values = measures.measure(streams, streams[1:], 2)
    np.testing.assert_allclose(
        values["cosine_layer"], [[1], [0]]
    )  # tokens 0-1 stay, token 2 turns, 3 is zero
    assert values["angular"].shape == (2, 2) and values["angular_mean"].shape == (2, 2, 2)
