"""Graphs of tiny models with quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.quantisation.names import requested
from pipeline.types import SkipSet
from tests import tiny


def model(root: Path, model_type: str = "llama", name: str = "m", **changes: Any) -> Checkpoint:
    """A checkpoint in graphs/ whose widths blocks of 32 divide, those of halved MLPs too."""
    settings = {"num_hidden_layers": 3, "intermediate_size": 128, **changes}
    return checkpoint.open_checkpoint(tiny.checkpoint(root / "graphs" / name, model_type, **settings))


def graph(
    root: Path, model_type: str = "llama", precision: str = "int4-fp32", skip: str = "base", **changes: Any
) -> Path:
    """One graph of such a model, in blocks of 32 where the precision names no other."""
    (wanted,) = requested(precision, None if "-b" in precision else 32)
    source = model(root, model_type, **changes)
    return export.export(source, wanted.activations, SkipSet.parse(skip), wanted.weights)
