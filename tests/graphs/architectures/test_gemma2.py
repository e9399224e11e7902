"""What is Gemma's own: a stream beyond float16, caps, and scales that a short text must show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.evals.check import check
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from tests import tiny, truth
from tests.faults import graph

ONE_BASE = {kind: {"rope_theta": 1e6} for kind in ("full_attention", "sliding_attention")}
"""As transformers 5 says it."""
IDS = np.random.default_rng(0).integers(3, 96, (2, 30))


def enlarge(folder: Path, tensor: str, factor: float) -> None:
    """Multiplies a tensor of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[tensor] = tensors[tensor] * factor
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_a_stream_beyond_fp16_is_held(model_type: str, workdir: Path) -> None:
    """transformers' own fp16 overflows there; the graph's stream is FP32, and the check passes."""
    source = tiny.checkpoint(workdir / "source" / "large", model_type)
    for layer in (0, 1):
        enlarge(source, f"model.layers.{layer}.post_feedforward_layernorm.weight", 400_000.0)
    base = checkpoint.resolve(str(source))
    ones, positions = np.ones_like(IDS), np.arange(30)[None].repeat(2, 0)
    streams, _, _ = Reference(base.folder).trace(IDS, ones, positions)
    assert np.abs(streams[1, "mlp"]).max() > 65504
    assert not np.isfinite(Reference(base.folder, dtype="fp16").forward(IDS, ones, positions)[0]).all()
    outcome = check.check(export.export_base(base, "fp16"))
    assert outcome.passed and outcome.record.worst, outcome.summary()
    assert outcome.record.worst["cosine"] > 0.9999


@pytest.mark.slow
def test_a_number_beyond_fp16_is_named_with_what_mends_it(workdir: Path) -> None:
    """Llama's stream has the graph's precision."""
    source = tiny.checkpoint(workdir / "source" / "large")
    enlarge(source, "model.layers.1.mlp.down_proj.weight", 1e6)
    outcome = check.check(export.export_base(checkpoint.resolve(str(source)), "fp16"))
    assert not outcome.passed
    assert "NaN or infinity" in outcome.summary() and "export it with --precision fp32" in outcome.summary()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("gemma2", {"layer_types": ["full_attention"] * 2}),
        ("gemma3_text", {"query_pre_attn_scalar": 32}),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("gemma3_text", {"rope_local_base_freq": 1e6, "rope_parameters": ONE_BASE}),
    ],
)
def test_what_is_forgotten_would_be_seen(model_type: str, changes: dict[str, Any], workdir: Path) -> None:
    """The tiny models show each part, so that their comparison with transformers speaks for it."""
    right = graph(workdir, model_type=model_type, final_logit_softcapping=0.5)
    expected = truth.logits_of(truth.loaded(right.parent), IDS)
    assert truth.relative_error(truth.graph_logits(right, IDS), expected) < 1e-4
    file = right.parent / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    wrong = export.export_base(checkpoint.open_checkpoint(right.parent))
    assert truth.relative_error(truth.graph_logits(wrong, IDS), expected) > 1e-3
