"""Variants of tiny models as folders, and the logits that they should have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.ship.hf import ship
from pipeline.ship.hf.ship import HfShipment
from pipeline.types import SkipSet
from tests import overlays, tiny

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
"""Longer than the windows of tiny models."""
NAS: dict[str, Any] = {
    "head_dim": 16,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
}
"""A model of Llama's whose single sublayers nemotron-nas can say."""


def base(workdir: Path, model_type: str = "llama", dtype: str = "fp32", **changes: Any) -> Path:
    """The base graph of a tiny model with a tokenizer, in graphs/tiny."""
    source = workdir / "models" / "tiny"
    tiny.checkpoint(source, model_type, dtype, **{"vocab_size": tiny.WORDS, **changes})
    tiny.tokenizer(source)
    return export.export_base(checkpoint.resolve("models/tiny"))


def variant(base: Path, name: str, form: str | None = None) -> Path:
    """A graph cut from the base, compensated or not."""
    skip = SkipSet.parse(name)
    if form is None:
        return variants.cut(base, skip)
    return variants.compensate(base, skip, overlays.of_form(base.parent, skip, form), form)


def shipped(graph: Path, force: bool = False, name: str = "out") -> HfShipment:
    """It as a folder, checked or not."""
    return ship.ship(graph, Path(name), force=force, unchecked=True)


def expected(graph: Path, ids: np.ndarray = IDS) -> np.ndarray:
    """The logits [B, T, V] of PyTorch's model with the sublayers left out."""
    record = store.graph_sidecar(graph)
    reference = Reference(graph.parent, record.skip_set, overlays=store.overlays(graph))
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    logits: np.ndarray = reference.forward(ids, np.ones_like(ids), positions)[0]
    return logits


def transformers_logits(folder: Path, ids: np.ndarray = IDS, **options: Any) -> np.ndarray:
    """Those of stock transformers, no remote code."""
    options = {"dtype": torch.float32, "attn_implementation": "eager", **options}
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(ids), use_cache=False).logits.float().numpy()
    return logits


def difference(logits: np.ndarray, truth: np.ndarray) -> float:
    """The largest, in units of the largest logit."""
    return float(np.abs(logits - truth).max() / np.abs(truth).max())


def agrees(folder: Path, graph: Path) -> bool:
    """Whether stock transformers gives the logits of the graph's variant."""
    return difference(transformers_logits(folder), expected(graph)) < 1e-5


def config(folder: Path) -> dict[str, Any]:
    """Its config.json."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def set_config(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json; None removes one."""
    content = {**config(folder), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
