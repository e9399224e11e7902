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
from onnx_ir.passes import InPlacePass, InvariantError, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline import anatomy, graphfile, safetensors_index, store
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
        raise UserError(f"{base} is not a base graph; cut variants from {base.with_name(f'base.{variant.precision}.onnx')}")
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
    return _derive(graph, record, variant, GraftPass(healed, digest), healed={"file": healed.name, "sha256": digest})


def _derive(source: Path, record: dict[str, Any], variant: Variant, surgery: InPlacePass, **more: Any) -> Path:
    """Writes what the surgery makes of a graph beside it, or finds it there; `more` goes into the sidecar."""
    path = store.graph_path(source.parent, variant)
    kept = {key: record.get(key) for key in ("contract", "weights", "tokenizer", "tools", "num_layers")}
    wanted = {**store.variant_record(variant), **kept, "base": {"file": source.name, "sha256": record["sha256"]}}
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


class SkipPass(InPlacePass):
    """Leaves the sublayers of a skip set out of a base graph."""

    def __init__(self, skip: SkipSet, num_layers: int) -> None:
        super().__init__()
        self.skip = skip
        self.num_layers = num_layers

    def requires(self, model: ir.Model) -> None:
        """Exactly one attention and one MLP join the stream in every layer."""
        self.joins = anatomy.find(model, self.num_layers, SkipSet())

    def call(self, model: ir.Model) -> PassResult:
        for join in self.joins:
            if join.sublayer in self.skip:
                add = anatomy.join_node(join.branch)
                add.outputs[0].replace_all_uses_with(anatomy.other_operand(add, join.branch), replace_graph_outputs=True)
                # The Add goes at once: left in place it would read the branch of its parallel sibling a second time.
                model.graph.remove(add, safe=True)
        _drop_cache_outputs(model, self.skip)
        RemoveUnusedNodesPass()(model)
        _drop_cache_inputs(model, self.skip)
        return PassResult(model, modified=bool(self.skip))

    def ensures(self, model: ir.Model) -> None:
        """Just the skipped sublayers are gone, and no cache tensor of theirs is left."""
        anatomy.find(model, self.num_layers, self.skip)
        left = [v.name for v in (*model.graph.inputs, *model.graph.outputs) if _cache_layer(v) in self.skip.attention]
        if left:
            raise UserError(f"cache tensor {left[0]} is still used after its attention was left out; this graph is not cut")


class AllLogitsPass(InPlacePass):
    """Takes `logits_positions` out: the head reads every position."""

    def call(self, model: ir.Model) -> PassResult:
        gather = next((node for node in model.graph if node.op_type == "GatherND"), None)
        positions = next((value for value in model.graph.inputs if value.name == "logits_positions"), None)
        if gather is None or positions is None or gather.inputs[0] is None:
            raise UserError("the graph has no logits_positions to take out")
        gather.outputs[0].replace_all_uses_with(gather.inputs[0])
        RemoveUnusedNodesPass()(model)
        model.graph.inputs.remove(positions)
        logits = next(value for value in model.graph.outputs if value.name == "logits")
        vocabulary = logits.shape[2] if logits.shape else None
        logits.shape = ir.Shape(["batch", "sequence", vocabulary])
        return PassResult(model, modified=True)


class GraftPass(InPlacePass):
    """Points the weights that a safetensors file holds at that file.

    Its SHA-256, `digest`, goes into the model's metadata: another adapter makes another graph, and no check, score or engine of
    the one passes for the other's.
    """

    def __init__(self, healed: Path, digest: str) -> None:
        super().__init__()
        self.healed, self.digest = healed, digest

    def call(self, model: ir.Model) -> PassResult:
        for name, tensor in safetensors_index.read_index([self.healed]).items():
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None or tuple(value.const_value.shape.numpy()) != tensor.shape:
                raise UserError(f"{self.healed} holds {name} {list(tensor.shape)}, and the graph has no such weight")
            value.const_value = ir.ExternalTensor(
                tensor.file, tensor.offset, tensor.nbytes, value.const_value.dtype, shape=ir.Shape(tensor.shape), name=name,
                base_dir=self.healed.parent,
            )  # fmt: skip
        model.metadata_props["healed_sha256"] = self.digest
        return PassResult(model, modified=True)


def _cache_layer(value: ir.Value) -> int | None:
    """Which layer's keys or values a graph input or output holds."""
    parts = (value.name or "").split(".")
    return int(parts[1]) if parts[0] in ("past_key_values", "present") and len(parts) == 3 and parts[1].isdigit() else None


def _drop_cache_outputs(model: ir.Model, skip: SkipSet) -> None:
    for value in [v for v in model.graph.outputs if _cache_layer(v) in skip.attention]:
        model.graph.outputs.remove(value)


def _drop_cache_inputs(model: ir.Model, skip: SkipSet) -> None:
    """Removes the inputs; a tracer hangs the mask's length on the cache of layer 0, which then moves to another layer."""
    gone = [v for v in model.graph.inputs if _cache_layer(v) in skip.attention]
    heir = next((v for v in model.graph.inputs if _cache_layer(v) is not None and v not in gone), None)
    for value in gone:
        if value.uses() and heir is not None and all(use.node.op_type == "Shape" for use in value.uses()):
            value.replace_all_uses_with(heir)
        if not value.uses():
            model.graph.inputs.remove(value)
