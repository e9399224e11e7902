"""mlx-lm itself, where it is installed: it loads both forms and gives the variant's logits and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.ship.hf import folders
from tests.ship.hf.test_nemotron_nas import compensated

mx = pytest.importorskip("mlx.core", reason="needs mlx[cpu] and mlx-lm: pip install 'mlx[cpu]' mlx-lm")
utils = pytest.importorskip("mlx_lm.utils", reason="needs mlx-lm: pip install 'mlx[cpu]' mlx-lm")


def logits(folder: Path, ids: np.ndarray = folders.IDS) -> np.ndarray:
    """Those of mlx-lm's model, its weights in fp32."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(ids)))


def cached_logits(folder: Path, ids: np.ndarray = folders.IDS) -> np.ndarray:
    """The same, token after token behind a prefill of ten."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    cache = model.make_cache()
    steps = [model(mx.array(ids[:, :10]), cache=cache)]
    steps += [model(mx.array(ids[:, i : i + 1]), cache=cache) for i in range(10, ids.shape[1])]
    return np.concatenate([np.array(step) for step in steps], axis=1)


@pytest.mark.parametrize("name", ["attn1-2", "mlp0_2", "attn0_3+mlp2-3", "attn0-1+mlp0"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": tiny.LLAMA3, "rope_theta": 500000.0, "tie_word_embeddings": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ],
    ids=["plain", "llama3-tied", "linear"],
)
def test_sublayers(name: str, changes: dict[str, Any], workdir: Path) -> None:
    base = folders.base(workdir, **{**folders.NAS, **changes})
    graph = folders.variant(base, name)
    folder, truth = folders.shipped(graph, force=True).folder, folders.expected(graph)
    assert folders.difference(logits(folder), truth) < 1e-5
    assert folders.difference(cached_logits(folder), truth) < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "smollm3"])
def test_whole_blocks(model_type: str, workdir: Path) -> None:
    base = folders.base(workdir, model_type, num_hidden_layers=6)
    graph = folders.variant(base, "block0_3" if model_type != "gemma3_text" else "block0-1")
    shipment = folders.shipped(graph)
    assert next(engine.loads for engine in shipment.engines if engine.name == "mlx-lm")
    assert folders.difference(logits(shipment.folder), folders.expected(graph)) < 1e-4


def test_windows_by_index_are_wrong_as_the_verdict_says(workdir: Path) -> None:
    """Layers that stay with their windows in no pattern: mlx-lm gives other numbers, and is named."""
    graph = folders.variant(folders.base(workdir, "gemma3_text", num_hidden_layers=8), "block0_5")
    shipment = folders.shipped(graph)
    assert not next(engine.loads for engine in shipment.engines if engine.name == "mlx-lm")
    assert folders.difference(logits(shipment.folder), folders.expected(graph)) > 1e-3


def test_maps_are_not_loaded(workdir: Path) -> None:
    graph = compensated(folders.base(workdir, **folders.NAS), "attn1", "linear")
    with pytest.raises(ValueError, match="linear"):
        utils.load_model(folders.shipped(graph).folder)


def test_it_continues_a_text(workdir: Path) -> None:
    from mlx_lm import generate, load

    folder = folders.shipped(folders.variant(folders.base(workdir, **folders.NAS), "attn1-2")).folder
    model, words = load(str(folder))
    assert isinstance(generate(model, words, "a cat", max_tokens=4), str)
