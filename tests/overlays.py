"""Overlays of compensations as `pipeline compensate` writes them, with maps that are drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.models.compensation import MapPlace
from pipeline.models.sizes import rules_of
from pipeline.types import SkipSet, Sublayer, Variant, format_layers


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


def of_form(folder: Path, skip: SkipSet, form: str, name: str = "", seed: int = 0) -> Path:
    """An overlay whose maps have their form, large enough to change every logit.

    Args:
        folder: of the checkpoint, whose weights are in model.safetensors.
        skip: what is left out.
        form: 'bias', 'linear', 'rank4', 'fold' or 'fold+rank4'; or for each run of layers one, 'run' a matrix
            and 'run-bias' a bias alone.
        name: by which the file is called; the form by default.
        seed: of what is drawn.
    """
    weights, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
    config = json.loads((folder / "config.json").read_text())
    width, rules = config["hidden_size"], rules_of(config["model_type"])
    every: list[Sublayer] = [
        (i, kind) for i in range(config["num_hidden_layers"]) for kind in ("attn", "mlp")
    ]
    places = [MapPlace.of(one) for one in every if one in skip]
    if form.startswith("run"):
        runs = [part.split("-") for part in format_layers(skip.attention).split("_")]
        places = [MapPlace(int(run[0]), int(run[-1]), "block") for run in runs]
    tensors = {}
    for place in places:
        tensors[place.tensor("bias")] = torch.randn(width, generator=draw) / 3
        rank = re.search(r"rank(\d+)", form)
        shapes = [(width, int(rank[1])), (int(rank[1]), width)] if rank else [(width, width)]
        for i, shape in enumerate(shapes if rank or form in ("linear", "run") else ()):
            tensors[place.tensor(f"factor{i}")] = torch.randn(*shape, generator=draw) / shape[0] ** 0.5
    for layer, kind in (one for one in every if form.startswith("fold") and one not in skip):
        weight = f"{rules.layers}.{layer}.{rules.writers[kind == 'mlp']}.weight"
        mixed = torch.randn(width, width, generator=draw) / width @ weights[weight].float()
        tensors[weight] = (weights[weight].float() + mixed).to(weights[weight].dtype)
    path = store.overlay_path(folder, Variant(folder.name, skip, compensation=name or form).name)
    save_file(tensors, path)
    return path
