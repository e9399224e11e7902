"""Which engines run a variant: what `show` says is what `ship` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.models.quantisation.names import requested
from pipeline.ship import engines
from pipeline.ship.engines import EngineUse
from pipeline.ship.gguf import ship as gguf
from pipeline.ship.hf import ship as hf
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny

FOLDERS = "transformers, vLLM, SGLang, TensorRT-LLM, mlx-lm"


@pytest.fixture
def base(workdir: Path) -> Path:
    """A Llama of three layers, as wide as nemotron-nas has them."""
    sizes = {"num_hidden_layers": 3, "intermediate_size": 256, "head_dim": 16, "vocab_size": tiny.WORDS}
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "m", **sizes))
    return export.export_base(checkpoint.resolve("models/m"))


def by_name(graph: Path) -> dict[str, EngineUse]:
    return {engine.name: engine for engine in engines.of_graph(graph)}


def refused(graph: Path, form: str) -> str:
    """What `ship` says."""
    write: Any = gguf.ship if form == "gguf" else hf.ship
    with pytest.raises(UserError) as error:
        write(graph, Path("x.gguf"), unchecked=True)
    assert not Path("x.gguf").exists()
    return str(error.value)


@pytest.mark.parametrize("name", ["base", "attn2", "mlp1", "block1", "attn1-2+mlp2"])
def test_what_is_said_to_run_is_written(base: Path, name: str) -> None:
    graph = variants.cut(base, SkipSet.parse(name))
    by = by_name(graph)
    assert by["llama.cpp"].runs and by["mlx-lm"].runs and by["vLLM"].runs
    assert by["transformers"].runs == (name in ("base", "block1"))
    gguf.ship(graph, Path("x.gguf"), unchecked=True)
    hf.ship(graph, Path("x"), unchecked=True)
    assert Path("x.gguf").is_file() and Path("x/config.json").is_file()


def test_what_is_refused_is_refused_in_the_same_words(base: Path) -> None:
    """A map with a bias has no place in nemotron-nas; one of a run of layers has none in llama.cpp either."""
    skip = SkipSet((1,), ())
    graph = variants.compensate(base, skip, overlays.of_form(base.parent, skip, "linear"), "linear")
    by = by_name(graph)
    assert by["llama.cpp"].runs and not by[FOLDERS].runs
    assert by[FOLDERS].limits in refused(graph, "hf")
    skip = SkipSet((1,), (1,))
    graph = variants.compensate(base, skip, overlays.of_form(base.parent, skip, "run", "rank3"), "rank3")
    by = by_name(graph)
    assert not by["llama.cpp"].runs and not by[FOLDERS].runs
    assert by["llama.cpp"].limits in refused(graph, "gguf") and by[FOLDERS].limits in refused(graph, "hf")


def test_the_first_attention_is_missed_by_two_engines(base: Path) -> None:
    by = by_name(variants.cut(base, SkipSet.parse("attn0")))
    assert {name for name, engine in by.items() if not engine.runs} == {"transformers", "vLLM", "SGLang"}
    assert by["mlx-lm"].prepare == "pipeline ship GRAPH --to hf DIR --force"
    graph = variants.cut(base, SkipSet.parse("attn0"))
    assert "--force" in refused(graph, "hf")
    hf.ship(graph, Path("x"), force=True, unchecked=True)


def test_forms_of_graphs_that_are_not_shipped(base: Path) -> None:
    static = by_name(variants.cut_static(base, 128))
    assert static["TensorRT"].runs and not static["Triton"].runs and not static["llama.cpp"].runs
    assert static[FOLDERS].limits == "its cache is static; the usual graph is shipped"
    half = export.export_base(checkpoint.resolve("models/m"), "fp16")
    assert not by_name(half)["TensorRT"].limits and "fp16" in by_name(base)["TensorRT"].limits


@pytest.mark.parametrize("precision", ["int4-b32-fp32", "int8-b32-fp16", "int4-fp32"])
def test_quantised_weights_go_where_their_blocks_have_a_form(base: Path, precision: str) -> None:
    (wanted,) = requested(precision)
    graph = export.export(
        checkpoint.resolve("models/m"), wanted.activations, SkipSet.parse("attn1"), wanted.weights
    )
    by = by_name(graph)
    assert not by[FOLDERS].runs and by[FOLDERS].limits in refused(graph, "hf")
    assert by["llama.cpp"].runs == ("b32" in precision)
    if by["llama.cpp"].runs:
        gguf.ship(graph, Path("x.gguf"), unchecked=True)
        assert by["llama.cpp"].limits == "as its architecture deci" and Path("x.gguf").is_file()
    else:
        assert by["llama.cpp"].limits in refused(graph, "gguf")


def test_lines_for_a_person() -> None:
    uses = (
        EngineUse("A", True, "", "make FORM", "run a"),
        EngineUse("B", True, "slowly", "make FORM", "run b"),
        EngineUse("C", False, "no layer for it"),
    )
    assert engines.lines(uses) == [
        f"{'make FORM':<40} A: run a",
        f"{'':<40} B: run b (slowly)",
        "not in C (no layer for it)",
    ]
