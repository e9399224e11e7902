"""llama.cpp on tiny models of every architecture, with every kind of variant, gives the graph's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.ship.gguf import ship
from tests import tiny
from tests.ship.gguf import beside, projects
from tests.tiny_gguf import Kind, Tiny

pytestmark = pytest.mark.slow
EXACT, GELU, HALF = 1e-5, 2e-3, 0.02
"""Of float32; of a function that llama.cpp looks up in float16; of weights in 16 bits and less."""
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
BIASES = {"attention_bias": True, "mlp_bias": True}
GEMMA2 = {
    "num_hidden_layers": 6,
    "sliding_window": 4,
    "attn_logit_softcapping": 50.0,
    "query_pre_attn_scalar": 32,
}
GEMMA3 = {
    "num_hidden_layers": 7,
    "sliding_window": 4,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 32,
}
CASES: list[tuple[str, str, str | None, float, dict[str, Any]]] = [
    ("llama", "base", None, EXACT, {}),
    ("llama", "block1", None, EXACT, {}),
    ("llama", "block0_3", None, EXACT, {}),
    ("llama", "attn0", None, EXACT, {}),
    ("llama", "attn3", None, EXACT, {}),
    ("llama", "attn1-3+mlp0_3", None, EXACT, {}),
    ("llama", "mlp0-3", None, EXACT, {}),
    ("llama", "attn1+mlp3", "linear", EXACT, {}),
    ("llama", "attn0+mlp3", "rank4", EXACT, {}),
    ("llama", "block1-2", "bias", EXACT, {}),
    ("llama", "attn1+mlp2", "fold+rank4", EXACT, {}),
    ("llama", "attn1+mlp2", None, EXACT, BIASES),
    ("llama", "attn1", None, EXACT, {"rope_scaling": tiny.LLAMA3}),
    ("llama", "block1", None, EXACT, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("llama", "attn1", None, EXACT, {"tie_word_embeddings": False}),
    ("mistral", "attn1", None, EXACT, {"sliding_window": 11}),
    ("qwen2", "block1", None, EXACT, {}),
    ("qwen2", "attn0+mlp2", None, EXACT, {}),
    ("qwen2", "attn1", None, EXACT, {"head_dim": 32}),
    ("qwen2", "attn1+mlp2", "linear", EXACT, {}),
    ("qwen3", "block1", None, EXACT, {}),
    ("phi3", "block1", None, EXACT, {"sliding_window": 11, "partial_rotary_factor": 0.5}),
    ("phi3", "base", None, EXACT, {"sliding_window": None, "rope_scaling": LONGROPE,
                                   "max_position_embeddings": 2048, "original_max_position_embeddings": 512}),
    ("gemma2", "block0-1", None, GELU, GEMMA2),
    ("gemma2", "block1", None, GELU, GEMMA2),  # two layers with a window, one after another
    ("gemma2", "block1_3_5", None, GELU, GEMMA2),  # every layer that is left has the window
    ("gemma3_text", "block0", None, GELU, GEMMA3),  # the fifth layer sees everything now
    ("gemma3_text", "block0-4_6", None, GELU, GEMMA3),  # no layer has a window any more
]  # fmt: skip
"""(model_type, variant, compensation, limit, what its config has)."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_llama_cpp_gives_the_graphs_numbers(
    case: tuple[str, str, str | None, float, dict[str, Any]], workdir: Path
) -> None:
    model_type, name, form, limit, changes = case
    graph = projects.cut(projects.base(workdir, model_type, **changes), name, form)
    ship.ship(graph, workdir / "m.gguf", "f32", unchecked=True)
    assert beside.distance(graph, workdir / "m.gguf", projects.IDS, 6) < limit


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_narrow_types_are_near(kind: str, workdir: Path) -> None:
    graph = projects.cut(projects.base(workdir), "attn1+mlp2", "linear")
    ship.ship(graph, workdir / "m.gguf", kind, unchecked=True)
    assert beside.distance(graph, workdir / "m.gguf", projects.IDS, 6) < (HALF if kind == "f16" else 0.2)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_gguf_keeps_its_own_quantised_rows(model_type: str, workdir: Path) -> None:
    """Of Qwen2 the rows of q and k change their order, and stay the same bytes."""
    kinds = {"norm": Kind.F32, "bias": Kind.F32, "attn_q": Kind.Q8_0, "attn_k": Kind.Q4_0, "ffn_": Kind.F16}
    base, _ = projects.from_gguf(workdir, model_type, Tiny(kinds=kinds))
    graph = projects.cut(base, "attn1+mlp2")
    assert ship.ship(graph, workdir / "m.gguf", unchecked=True).type == "source"
    assert beside.distance(graph, workdir / "m.gguf", projects.IDS, 6) < HALF
