"""Graphs with quantised weights: their blocks are the file's bit for bit, and llama.cpp runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest

from pipeline import store
from pipeline.models import checkpoint
from pipeline.models.quantisation import blocks, files
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.quantisation.rounding import Nearest
from pipeline.ship import pruned
from pipeline.ship.gguf import ship
from pipeline.types import UserError
from tests import tiny, tiny_gguf
from tests.ship.gguf import beside, projects
from tests.tiny_gguf import Array, Kind, Tiny

EXACT, GELU = 1e-5, 2e-3
"""As in test_llamacpp.py."""
ROUNDED = 0.1
"""llama.cpp rounds the activations of products with Q4_0 and Q8_0 to 8 bits. On these models that moves a
log-probability by 0.005 to 0.05; half of what a file may be off whose weights are rounded too."""

GEMMA = {"query_pre_attn_scalar": 32}


def dequantised(graph: Path) -> dict[str, Array]:
    """Name in the file → the weight [out, in] that the graph's blocks say, in llama.cpp's order of rows."""
    config = json.loads((graph.parent / "config.json").read_text())
    found = {}
    precision = store.variant(graph).precision
    for name, weight in files.dequantised(store.overlays(graph)[0], precision):
        rows = weight.T
        heads = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
        key = next((key for part, key in heads.items() if part in name), None)
        found[tiny_gguf.stored_name(name, tiny_gguf.PLACES)] = (
            tiny_gguf.permuted(rows, config[key]) if key else rows
        )
    return found


@pytest.mark.parametrize(
    ("precision", "kind", "head", "number"),
    [
        ("int4-b32-fp32", Kind.Q4_0, Kind.Q8_0, library.LlamaFileType.MOSTLY_Q4_0),
        ("int8-b32-fp32", Kind.Q8_0, Kind.Q8_0, library.LlamaFileType.MOSTLY_Q8_0),
        ("int4-b32-fp16", Kind.Q4_0, Kind.F16, library.LlamaFileType.MOSTLY_Q4_0),
        ("int8-b32-fp16", Kind.Q8_0, Kind.Q8_0, library.LlamaFileType.MOSTLY_Q8_0),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_numbers_are_those_of_the_graphs_blocks(
    precision: str, kind: Kind, head: Kind, number: int, tied: bool, workdir: Path
) -> None:
    base = projects.base(workdir, tie_word_embeddings=tied)
    graph, file = projects.quantised(base, precision), workdir / "m.gguf"
    shipment = ship.ship(graph, file, unchecked=True)
    wanted, there = dequantised(graph), projects.tensors(file)
    found = projects.numbers(file)
    assert len(wanted) == 4 * 7 + (head == Kind.Q8_0) == shipment.kept
    for name, weight in wanted.items():
        assert there[name].kind == (head if name == "output.weight" else kind)
        assert np.array_equal(found[name], weight), name
    assert shipment.type == kind.name.lower() and shipment.rest == "f16"
    fields = projects.read(file).fields
    assert fields["general.file_type"] == number and fields["general.quantization_version"] == 2
    # What is in no blocks is as in the file of the graph with the checkpoint's own weights.
    ship.ship(base, workdir / "plain.gguf", unchecked=True)
    plain = projects.tensors(workdir / "plain.gguf")
    assert set(there) - set(plain) == ({"output.weight"} if tied and head == Kind.Q8_0 else set())
    for name in set(plain) - set(wanted):
        assert there[name].kind == plain[name].kind
        assert np.array_equal(there[name].stored(), plain[name].stored())


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3"])
def test_read_again_the_blocks_are_the_graphs(model_type: str, workdir: Path) -> None:
    """The way back keeps a GGUF's blocks, so that both ways are one identity: bit for bit, scales too."""
    changes = {"num_key_value_heads": 2} if model_type != "phi3" else {}
    graph = projects.quantised(projects.base(workdir, model_type, **changes), "int4-b32-fp32")
    ship.ship(graph, workdir / "back.gguf", unchecked=True)
    again = files.ensure(checkpoint.resolve(str(workdir / "back.gguf")), Quantisation(4, 32))
    (given,) = store.overlays(graph)
    one, other = files.stored(given), files.stored(again)
    assert set(one) == set(other)
    for name, place in one.items():
        ours, theirs = files.blocks_of(given, place), files.blocks_of(again, other[name])
        assert np.array_equal(ours.values, theirs.values), name
        assert np.array_equal(ours.scales.view(np.uint16), theirs.scales.view(np.uint16)), name


def test_a_gguf_in_blocks_comes_out_as_it_went_in(workdir: Path) -> None:
    """Through a graph and back: the tensors are those of the user's file, and no head is beside them."""
    kinds = {"_norm": Kind.F32, "token_embd": Kind.Q8_0, "blk": Kind.Q4_0}
    base, source = projects.from_gguf(workdir, how=Tiny(kinds=kinds), tie_word_embeddings=True)
    graph, file = projects.quantised(base, "int4-b32-fp32"), workdir / "m.gguf"
    shipment = ship.ship(graph, file, unchecked=True)
    given, there = projects.tensors(source), projects.tensors(file)
    assert set(there) == set(given) and shipment.rest == "source" and shipment.type == "q4_0"
    assert all(there[n].kind == given[n].kind for n in given)
    assert all(np.array_equal(there[n].stored(), given[n].stored()) for n in given)
    assert projects.read(file).fields["general.file_type"] == library.LlamaFileType.MOSTLY_Q4_0
    ship.ship(graph, workdir / "f.gguf", "f32", unchecked=True)  # another embedding: the head is beside it
    assert set(projects.tensors(workdir / "f.gguf")) == {*given, "output.weight"}


def test_type_is_of_what_is_in_no_blocks(workdir: Path) -> None:
    graph = projects.quantised(projects.base(workdir, tie_word_embeddings=True), "int4-b32-fp32")
    shipment = ship.ship(graph, workdir / "m.gguf", "q8_0", unchecked=True)
    there = projects.tensors(workdir / "m.gguf")
    kinds = {name: there[name].kind for name in ("token_embd.weight", "blk.0.ffn_up.weight", "output.weight")}
    assert list(kinds.values()) == [Kind.Q8_0, Kind.Q4_0, Kind.Q8_0]
    assert (shipment.type, shipment.rest, shipment.kept) == ("q4_0", "q8_0", 29)
    assert "type q4_0 (what is in no blocks: q8_0)" in shipment.described()
    assert not ship.ship(graph, workdir / "m.gguf", "q8_0", unchecked=True).written
    with pytest.raises(UserError, match="exists and is another file, of 'base'"):
        ship.ship(graph, workdir / "m.gguf", unchecked=True)


def test_what_is_left_out_is_not_in_the_file(workdir: Path) -> None:
    base = projects.quantised(projects.base(workdir), "int4-b32-fp32")
    graph = projects.cut(base, "attn1+mlp2")
    shipment = ship.ship(graph, workdir / "m.gguf", unchecked=True)
    there = projects.numbers(workdir / "m.gguf")
    assert shipment.architecture == "deci" and shipment.kept == 4 * 7 + 1 - 4 - 3
    assert not any(name.startswith("blk.1.attn") for name in there) and not there["blk.2.ffn_up.weight"].any()
    wanted = dequantised(graph)
    own = [name for name in wanted if name.startswith(("blk.0.", "blk.3.", "output"))]
    assert len(own) == 15 and all(np.array_equal(there[name], wanted[name]) for name in own)


@pytest.mark.parametrize(
    ("model_type", "precision", "changes", "reason"),
    [
        ("llama", "int4-fp32", {}, "export it with --precision int4 --block-size 32"),
        ("llama", "int8-b128-fp16", {"hidden_size": 128}, "export it with --precision int8 --block-size 32"),
        ("gemma2", "int4-b32-fp32", GEMMA, "export it with --precision int4-b32-fp16, whose head is the em"),
        ("gemma2", "int8-b32-fp32", GEMMA, "ship its fp32 twin with --type q8_0"),
    ],
)
def test_what_has_no_form_is_refused_and_nothing_is_left(
    model_type: str, precision: str, changes: dict[str, Any], reason: str, workdir: Path
) -> None:
    base = projects.base(workdir, model_type, intermediate_size=128, **changes)
    graph = projects.quantised(base, precision)
    with pytest.raises(UserError, match=f"cannot be written as GGUF: its .*; {reason}"):
        ship.ship(graph, workdir / "m.gguf", unchecked=True)
    assert [path.name for path in workdir.iterdir()] == ["graphs"]


def test_a_head_that_is_the_embedding_goes_into_gemma_2(workdir: Path) -> None:
    """The way out that the refusal names."""
    base = projects.base(workdir, "gemma2", **GEMMA)
    shipment = ship.ship(projects.quantised(base, "int4-b32-fp16"), workdir / "m.gguf", unchecked=True)
    assert shipment.kept == 4 * 7 and "output.weight" not in projects.tensors(workdir / "m.gguf")


def test_values_of_8_bits_beside_others_of_4(workdir: Path) -> None:
    """As `gptq` keeps them; a graph in fp16 reads them as the checkpoint has them."""
    base = projects.base(workdir)
    files.ensure(checkpoint.open_checkpoint(base.parent), Quantisation(4, 32, "gptq"), Nearest())
    for activations, kind in (("fp32", Kind.Q8_0), ("fp16", Kind.F16)):
        file = workdir / f"{activations}.gguf"
        ship.ship(projects.quantised(base, f"int4-b32-gptq-{activations}"), file, unchecked=True)
        there = projects.tensors(file)
        assert {there[f"blk.{i}.attn_v.weight"].kind for i in range(4)} == {kind}
        assert {there[f"blk.{i}.attn_q.weight"].kind for i in range(4)} == {Kind.Q4_0}


def test_hf_still_takes_the_twin_alone(workdir: Path) -> None:
    graph = projects.quantised(projects.base(workdir), "int4-b32-fp32")
    with pytest.raises(UserError, match="its weights are quantised for ONNX; ship its fp32 twin"):
        pruned.read(graph, unchecked=True)
    model = pruned.read(graph, unchecked=True, in_blocks=True)
    weight = model.blocks["model.layers.0.mlp.down_proj.weight"]
    assert weight.shape == (64, 96) and blocks.dequantised(weight.blocks()).shape == (96, 64)


CASES: list[tuple[str, str, str, str | None, float, dict[str, Any]]] = [
    ("llama", "int4-b32-fp32", "base", None, EXACT, {}),
    ("llama", "int8-b32-fp32", "base", None, EXACT, {"tie_word_embeddings": True}),
    ("llama", "int4-b32-fp32", "attn1", None, EXACT, {"tie_word_embeddings": True}),
    ("llama", "int4-b32-fp32", "mlp0_2", None, EXACT, {}),
    ("llama", "int8-b32-fp32", "attn0+mlp3", "linear", EXACT, {}),
    ("qwen2", "int4-b32-fp32", "attn1", None, EXACT, {}),
    ("qwen3", "int4-b32-fp32", "block1", None, EXACT, {"tie_word_embeddings": True}),
    ("phi3", "int8-b32-fp32", "block1", None, EXACT, {"sliding_window": 11, "partial_rotary_factor": 0.5}),
    ("gemma3_text", "int4-b32-fp32", "block0", None, GELU, {
        **GEMMA, "num_hidden_layers": 7, "sliding_window": 4, "sliding_window_pattern": 6,
    }),
]  # fmt: skip
"""(model_type, precision, variant, compensation, limit without blocks, what its config has)."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}-{case[3]}")
def test_llama_cpp_gives_the_graphs_numbers(
    case: tuple[str, str, str, str | None, float, dict[str, Any]], workdir: Path
) -> None:
    """The file's numbers in float32 are the graph's model exactly; in blocks, but for 8-bit activations."""
    model_type, precision, name, form, limit, changes = case
    base = projects.quantised(projects.base(workdir, model_type, **changes), precision)
    graph, file = projects.cut(base, name, form), workdir / "m.gguf"
    ship.ship(graph, file, "f32", unchecked=True)
    flat = projects.in_float32(file, workdir / "flat.gguf")
    assert beside.distance(graph, flat, projects.IDS, 6, exact=True) < limit
    assert beside.distance(graph, file, projects.IDS, 6, exact=True) < ROUNDED


def test_a_graph_that_passed_its_check_says_so(workdir: Path) -> None:
    graph = projects.quantised(projects.base(workdir), "int8-b32-fp32")
    with pytest.raises(UserError, match="has passed no check"):
        ship.ship(graph, workdir / "m.gguf")
    tiny.passed(graph)
    assert ship.ship(graph, workdir / "m.gguf").checked
