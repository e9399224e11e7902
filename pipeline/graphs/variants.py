"""Stage: a base graph + a skip set → a variant graph, by surgery. Cutting reads no weights.

A sublayer is left out by putting, in the place of its residual `Add`, what the `Add` added it to; then what nothing
reaches is removed. What another layer still uses stays because it is reached. Layers keep their indices.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, InvariantError

from pipeline import store
from pipeline.graphs import graphfile
from pipeline.graphs.passes.all_logits import AllLogitsPass
from pipeline.graphs.passes.graft import GraftPass
from pipeline.graphs.passes.skip import SkipPass
from pipeline.types import SkipSet, UserError, Variant

log = logging.getLogger(__name__)


def cut(base: Path, skip: SkipSet) -> Path:
    """Writes the variant's graph beside the base graph, or finds it there.

    Raises:
        UserError: the file is no base graph, a layer does not exist, or the graph has another form than expected.
    """
    record = store.read_sidecar(base)
    variant = store.variant_of(record)
    if variant.skip or variant.adapter or variant.head == "all":
        raise UserError(
            f"{base} is not a base graph; cut variants from {base.with_name(f'base.{variant.precision}.onnx')}"
        )
    skip.within(record["num_layers"])
    if not skip:
        return base
    return _derive(base, record, replace(variant, skip=skip), SkipPass(skip, record["num_layers"]))


def cut_all_logits(graph: Path) -> Path:
    """Writes the twin of a graph that gives the logits of every position, [B, S, V], which is what optimum loads."""
    record = store.read_sidecar(graph)
    variant = store.variant_of(record)
    if variant.head == "all" or record["contract"] != "authored":
        return graph
    return _derive(graph, record, replace(variant, head="all"), AllLogitsPass())


def graft(graph: Path, healed: Path, adapter: str) -> Path:
    """Writes the twin of a variant whose adapter's tensors come from another file in the folder; all others stay where they are.

    Args:
        healed: safetensors with the merged tensors under the checkpoint's names (`adapters.merge`).
        adapter: its name; the twin is called `<variant>~<adapter>`.

    Raises:
        UserError: the graph was authored elsewhere, or lacks a tensor.
    """
    record = store.read_sidecar(graph)
    if record["contract"] != "authored":
        raise UserError(
            f"{graph} was exported elsewhere and keeps its weights in another form; adapters need an authored graph"
        )
    variant = replace(store.variant_of(record), adapter=adapter)
    digest = store.sha256(healed)
    return _derive(
        graph, record, variant, GraftPass(healed, digest), healed={"file": healed.name, "sha256": digest}
    )


def _derive(
    source: Path, record: dict[str, Any], variant: Variant, surgery: InPlacePass, **more: Any
) -> Path:
    """Writes what the surgery makes of a graph beside it, or finds it there; `more` goes into the sidecar."""
    path = store.graph_path(source.parent, variant)
    kept = {key: record.get(key) for key in ("contract", "weights", "tokenizer", "tools", "num_layers")}
    wanted = {
        **store.variant_record(variant),
        **kept,
        "base": {"file": source.name, "sha256": record["sha256"]},
    }
    wanted |= {key: record[key] for key in ("healed",) if key in record} | more
    with store.lock(source.parent):
        if store.is_current(path, wanted):
            log.info("%s is there and matches; nothing to do", path)
            return path
        model = graphfile.load(source)
        _apply(surgery, model)
        graphfile.save(model, path, {**wanted, "source": record.get("source")})
    return path


def _apply(surgery: InPlacePass, model: ir.Model) -> None:
    """Runs a pass; our own refusals come out as they went in, onnx-ir wraps what pre- and postconditions raise."""
    try:
        surgery(model)
    except InvariantError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
