"""Quantised weights in PyTorch: a model that holds the dequantised ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import store
from pipeline.models import safetensors_index
from pipeline.models.quantisation import files
from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_left_out
from pipeline.types import Precision, SkipSet, UserError


@dataclass(frozen=True, slots=True)
class QuantisedFile:
    """A file of quantised weights, as graphs of some precision read it.

    Attributes:
        path: of the file.
        activations: the graphs' precision: what they do not read in blocks stays the checkpoint's own.
    """

    path: Path
    activations: Precision


Overlay = Path | QuantisedFile
"""What takes the place of a model's own weights; a bare path of quantised weights is read whole."""


def overlays_of(artefact: Path) -> tuple[Overlay, ...]:
    """As `store.overlays`, with how the artefact reads its quantised weights."""
    paths, variant = store.overlays(artefact), store.variant(artefact, quick=True)
    if variant.quantisation is None:
        return paths
    return (QuantisedFile(paths[0], variant.precision), *paths[1:])


def dequantised(model: Any, overlay: Overlay, skip: SkipSet) -> bool:
    """Puts dequantised weights in the place of a model's own; a tied head gets one of its own.

    Args:
        model: transformers' causal model, in any precision, on any device.
        overlay: its quantised weights, or something else.
        skip: sublayers that are gone from it.

    Returns:
        Whether the file is one of quantised weights; the model stays as it is where it is none.

    Raises:
        UserError: as `files.stored`; or a weight is none of this model's.
    """
    file, activations = (overlay, None) if isinstance(overlay, Path) else (overlay.path, overlay.activations)
    if not files.is_quantised(safetensors_index.read_index([file])):
        return False
    rules = rules_of(model.config.model_type)
    for name, weight in files.dequantised(file, activations):
        if is_left_out(name, skip, rules):
            continue
        module = _module(model, name.removesuffix(".weight"), rules.head)
        if module is None:
            raise UserError(f"{file} holds {name:.200}, which {model.name_or_path} has not; export it again")
        whole = torch.from_numpy(weight).T.to(model.device, model.dtype).contiguous()
        if whole.shape != module.weight.shape:
            raise UserError(f"{file} holds {name:.200} of another model; export it again")
        module.weight = nn.Parameter(whole, requires_grad=False)
    return True


def _module(model: Any, name: str, head: str) -> nn.Module | None:
    """A linear layer by its checkpoint's name; transformers 5 calls the head of GPT-NeoX otherwise."""
    try:
        found: nn.Module = model.get_output_embeddings() if name == head else model.get_submodule(name)
    except AttributeError:
        return None
    return found
