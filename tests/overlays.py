"""Overlays of compensations as `pipeline compensate` writes them, with maps that are drawn."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.models.compensation import MapPlace
from pipeline.types import SkipSet, Variant


def make(folder: Path, skip: SkipSet, form: str = "linear", folded: str | None = None, seed: int = 0) -> Path:
    """A map in the place of each skipped sublayer, and a change to one weight of the checkpoint.

    Args:
        folder: of the checkpoint, whose weights are in model.safetensors.
        skip: what is left out.
        form: by which the file is called; the maps are matrices whatever it is.
        folded: name of the weight that is changed.
        seed: of what is drawn.
    """
    weights, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
    width = next(len(tensor) for name, tensor in weights.items() if name.endswith("norm.weight"))
    tensors = {}
    for layer, kind in [*((i, "attn") for i in skip.attention), *((i, "mlp") for i in skip.mlp)]:
        place = MapPlace(layer, layer, kind)
        tensors[place.tensor("factor0")] = torch.randn(width, width, generator=draw) / width
        tensors[place.tensor("bias")] = torch.randn(width, generator=draw) / 10
    if folded:
        change = torch.randn(weights[folded].shape, generator=draw) / 50
        tensors[folded] = (weights[folded].float() + change).to(weights[folded].dtype)
    path = store.overlay_path(folder, Variant(folder.name, skip, compensation=form).name)
    save_file(tensors, path)
    return path
