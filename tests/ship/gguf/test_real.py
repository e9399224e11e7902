"""llama.cpp runs what is shipped of the real model, SmolLM2: the graph's numbers, and the graph's text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.calib.compensation.compensate import compensate
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, checkpoint_files, demo
from pipeline.models import tokenizer as tokenizers
from pipeline.models.gguf import header
from pipeline.ship.gguf import ship
from pipeline.store.records import CompensationSettings
from pipeline.types import SkipSet
from tests.ship.gguf import beside

pytestmark = pytest.mark.slow
LIMIT = 0.02
TEXT = (
    "The river rises in the hills north of the town and runs south through two lakes before it meets the "
    "sea. In spring, when the snow melts, the water is high and cold, and the old mill at the bridge turns "
    "day and night. Farmers bring their grain there from the villages on both banks, as they have done for "
    "more than three hundred years."
)
CUT = ["base", "block22-25", "attn0_20-24+mlp3_21-25"]
"""Llama's own layers, whole layers gone, layers without attention or MLP: tiny models have all other cuts."""


@pytest.fixture(scope="module")
def base(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of SmolLM2 in a project of its own."""
    root = tmp_path_factory.mktemp("real")
    folder = root / "graphs" / demo.MODEL
    folder.mkdir(parents=True)
    for file in (demo_root / "graphs" / demo.MODEL).iterdir():
        if file.name in (*checkpoint_files.SMALL_FILES, store.SOURCE):
            shutil.copyfile(file, folder / file.name)
        elif file.name == "model.safetensors":
            os.link(file, folder / file.name)
    return export.export_base(checkpoint.open_checkpoint(folder))


def agrees(graph: Path, file: Path) -> None:
    words = tokenizers.load(graph.parent)
    ids = words.encode(TEXT)[:64]
    comparison = beside.compared(graph, file, ids, 64, ids[:20], 32)
    assert len(ids) == 64 and comparison.distance < LIMIT
    assert len(comparison.text) == 32 and comparison.theirs == comparison.text


@pytest.mark.parametrize("name", CUT)
def test_llama_cpp_gives_the_graphs_numbers_and_text(name: str, base: Path, tmp_path: Path) -> None:
    graph = variants.cut(base, SkipSet.parse(name))
    shipment = ship.ship(graph, tmp_path / "m.gguf", "f32", unchecked=True)
    assert shipment.architecture == ("llama" if name in ("base", "block22-25") else "deci")
    agrees(graph, tmp_path / "m.gguf")


def test_maps_are_layers_of_llama_cpps(base: Path, tmp_path: Path) -> None:
    skip = SkipSet.parse("attn22_24+mlp26")
    settings = CompensationSettings(samples=12, length=128)
    overlay = compensate(checkpoint.open_checkpoint(base.parent), skip, settings)
    graph = variants.compensate(base, skip, overlay, "linear")
    shipment = ship.ship(graph, tmp_path / "m.gguf", "f32", unchecked=True)
    assert shipment.architecture == "deci" and len(shipment.layers) > 30
    agrees(graph, tmp_path / "m.gguf")


def test_a_wrong_layer_is_caught(base: Path, tmp_path: Path) -> None:
    graph = variants.cut(base, SkipSet.parse("attn22-29"))
    file = tmp_path / "m.gguf"
    ship.ship(graph, file, "f16", unchecked=True)
    ids = tokenizers.load(base.parent).encode(TEXT)[:64]
    assert beside.distance(graph, file, ids, 8) < LIMIT
    tensors = {tensor.name: tensor for tensor in header.read(file).tensors}
    one, other = (tensors[f"blk.{i}.ffn_down.weight"] for i in (12, 13))
    first, second = one.stored().tobytes(), other.stored().tobytes()
    with file.open("r+b") as opened:
        for tensor, content in ((one, second), (other, first)):
            opened.seek(tensor.start)
            opened.write(content)
    assert beside.distance(graph, file, ids, 8) > 5 * LIMIT
