"""Tiny graphs, and the faults that a wrong exporter or runner would plant in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pipeline import store
from pipeline.graphs import export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.runtime.runner import Array, Runner
from pipeline.types import Precision, SkipSet
from tests import tiny


def graph(
    root: Path,
    variant: str = "base",
    precision: Precision = "fp32",
    model_type: str = "llama",
    **changes: Any,
) -> Path:
    """The graph of a tiny model's variant, beside its checkpoint in graphs/<model_type>."""
    model = checkpoint.resolve(str(tiny.checkpoint(root / model_type, model_type, **changes)))
    return variants.cut(export.export_base(model, precision), SkipSet.parse(variant))


def spoil(path: Path, fault: Any) -> Path:
    """Rewrites the graph with a fault in it, sidecar and all, as a wrong exporter would."""
    model, sidecar = graphfile.load(path), store.sidecar(path)
    fault(model)
    graphfile.save(model, path, sidecar.plain())
    return path


def node(model: ir.Model, op_type: str, which: int = 0) -> ir.Node:
    return [n for n in model.graph if n.op_type == op_type][which]


def strict_mask(model: ir.Model) -> None:
    """k < q instead of k ≤ q: a token no longer sees itself."""
    node(model, "LessOrEqual").op_type = "Less"


def lax_mask(model: ir.Model) -> None:
    """Padding is forgotten: the causal term alone."""
    masked = node(model, "And")
    masked.outputs[0].replace_all_uses_with(node(model, "LessOrEqual").outputs[0])
    model.graph.remove(masked, safe=True)


def future_mask(model: ir.Model) -> None:
    """The mask's diagonal is lost: padding alone, no causality."""
    masked = node(model, "And")
    masked.outputs[0].replace_all_uses_with(masked.inputs[1])
    model.graph.remove(masked, safe=True)


def swap(name: str, other: str) -> Any:
    """One weight reads the bytes of another of the same shape."""

    def fault(model: ir.Model) -> None:
        values = model.graph.initializers
        tensor = values[other].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        values[name].const_value = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=tensor.base_dir,
        )

    return fault


class ForgetfulCache(Runner):
    """A runner that loses a token of one layer's keys: the oldest comes back in the newest's place."""

    def __init__(self, inner: Runner) -> None:
        self.inner, self.path, self.inputs, self.outputs = inner, inner.path, inner.inputs, inner.outputs

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        outputs = self.inner.infer(feeds, wanted)
        outputs["present.1.key"] = np.roll(outputs["present.1.key"], 1, axis=2)
        return outputs
