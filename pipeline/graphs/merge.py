"""Stage: several variants of one base → one graph in which what they share is computed once.

The graphs are laid side by side on the same inputs and weights. Then onnx-ir's common-subexpression
elimination makes one node of nodes with the same operator, attributes and inputs. Each value is computed by
the same node on the same inputs as before: outputs of authored graphs are bit-identical to those of the
separate graphs. Each variant keeps its own `logits.<variant>`.

Caches are inputs too. Side by side, all variants read `past_key_values.{i}.key`. Where their
`present.{i}.key` is one value afterwards, they go on sharing it: one value means that all below it is one as
well, the caches of lower layers included. Above a fork the values differ, and a variant gets a cache of its
own, named `past_key_values.{i}.key.<variant>`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from pipeline import store
from pipeline.graphs import graphfile
from pipeline.store.records import GraphRecord
from pipeline.types import UserError

_SAME = ("model", "precision", "quantisation", "contract", "weights", "head")
"""Fields in which graphs that are merged must agree."""
_ONE_BASE = (*_SAME, "tools", "num_layers", "tokenizer")
"""Fields of a merged graph's sidecar that are its graphs' own."""
_ANY_SIZE = 2**62
"""Numbers in a `Constant` node up to which two of them are compared."""


def merge(graphs: Sequence[Path]) -> Path:
    """Writes `merged-<count>-<digest of the names>.<precision>.onnx` beside the graphs, or finds it there.

    Raises:
        UserError: fewer than two graphs, or graphs of different bases, precisions or contracts.
    """
    if len(set(graphs)) < 2:
        raise UserError("merging takes at least two different graphs of one model")
    records = [store.graph_sidecar(path) for path in graphs]
    _refuse_other_bases(graphs, records)
    names = [record.variant for record in records]
    digest = store.text_digest("\n".join(sorted(names)))
    path = graphs[0].parent / f"merged-{len(names)}-{digest[:12]}.{records[0].precision_name}.onnx"
    fields = records[0].plain()
    wanted = {
        "artefact": "merged",
        **{key: fields[key] for key in _ONE_BASE},
        "variants": {record.variant: record.sha256 for record in records},
    }
    with store.lock(path.parent):
        if not store.is_current(path, wanted):
            models = [graphfile.load(graph) for graph in graphs]
            merged = merge_models(dict(zip(names, models, strict=True)))
            overlays = {one.file: one.plain() for record in records for one in record.overlays}
            graphfile.save(
                merged, path, {**wanted, "files": fields["files"], "healed": list(overlays.values())}
            )
    return path


def _refuse_other_bases(graphs: Sequence[Path], records: Sequence[GraphRecord]) -> None:
    first = records[0]
    for path, record in zip(graphs, records, strict=True):
        if record.max_tokens is not None:
            raise UserError(f"{path} has a static cache, and such graphs are not merged; merge their twins")
        for key in _SAME:
            if getattr(record, key) != getattr(first, key):
                raise UserError(
                    f"{path} and {graphs[0]} differ in {key}: only variants of one base can be merged"
                )


def merge_models(models: dict[str, ir.Model]) -> ir.Model:
    """The merged graph of the variants' graphs, by name; the graphs are used up.

    Raises:
        UserError: a cache is read in another way than by the node that appends to it.
    """
    model, outputs = _side_by_side(models)
    # A node holds the outputs meanwhile: the pass would add an Identity for every output that variants share.
    holder = ir.node("Outputs", [output.value for output in outputs], domain="skip-pipeline")
    model.graph.append(holder)
    CommonSubexpressionEliminationPass(size_limit=_ANY_SIZE)(model)
    values = [value for value in holder.inputs if value is not None]
    model.graph.remove(holder, safe=True)
    for output, value in zip(outputs, values, strict=True):
        _add_output(model.graph, _Output(output.variant, output.name, value))
    _check_caches(model.graph)
    return model


@dataclass(frozen=True, slots=True)
class _Output:
    """An output of one variant, under the name that it has in the variant's own graph."""

    variant: str
    name: str
    value: ir.Value


def _side_by_side(models: dict[str, ir.Model]) -> tuple[ir.Model, list[_Output]]:
    """All nodes in one graph without outputs, and the outputs. The first variant's names stay as they are."""
    inputs: dict[Hashable, ir.Value] = {}
    weights: dict[Hashable, ir.Value] = {}
    nodes: list[ir.Node] = []
    outputs: list[_Output] = []
    for variant, model in models.items():
        graph, suffix = model.graph, f".{variant}" if nodes else ""
        for value in graph.inputs:
            _share(value, value.name, inputs, suffix="")
        for value in list(graph.initializers.values()):  # a renamed value changes the keys
            _share(value, _content(value), weights, suffix)
        outputs += [_Output(variant, value.name or "", value) for value in graph.outputs]
        graph.outputs.clear()
        own = list(graph)
        graph.remove(own)
        for node in own if suffix else ():
            node.name = f"{node.name}{suffix}"
            for value in node.outputs:
                value.name = f"{value.name}{suffix}" if value.name else value.name
        nodes += own
        graph.inputs.clear()
        graph.initializers.clear()
    first = next(iter(models.values()))
    merged = ir.Graph(
        list(inputs.values()),
        [],
        nodes=nodes,
        initializers=list(weights.values()),
        opset_imports=first.graph.opset_imports,
        name=f"{first.graph.name}.merged",
    )
    functions = list(first.functions.values())
    model = ir.Model(merged, ir_version=first.ir_version, producer_name="skip-pipeline", functions=functions)
    return model, outputs


def _share(value: ir.Value, key: Hashable, known: dict[Hashable, ir.Value], suffix: str) -> None:
    """Puts the value known under the key in this one's place; if none is, this one is from now on."""
    if key in known:
        value.replace_all_uses_with(known[key])
    else:
        value.name = f"{value.name}{suffix}"
        known[key] = value


def _content(value: ir.Value) -> Hashable:
    """What two initializers have in common when they hold the same numbers; no weight is read."""
    tensor = value.const_value
    if tensor is None:
        raise UserError(f"initializer {value.name!r} has no data; this graph is not merged")
    form = (str(tensor.dtype), tuple(tensor.shape.numpy()))
    if isinstance(tensor, ir.ExternalTensor):
        return (*form, str(tensor.location), tensor.offset)
    return (*form, tensor.tobytes())


def _add_output(graph: ir.Graph, output: _Output) -> None:
    """Adds an output of one variant, unless an earlier one has it; another cache gets its own input."""
    name, value = output.name, output.value
    if name == "logits":
        if value in graph.outputs:  # two variants with the same content
            same = ir.node("Identity", [value], name=f"logits.{output.variant}/Identity")
            same.outputs[0].type, same.outputs[0].shape = value.type, value.shape
            graph.append(same)
            value = same.outputs[0]
        name = f"logits.{output.variant}"
    elif value in graph.outputs:
        return
    elif any(other.name == name for other in graph.outputs):
        _separate_cache(graph, output)
        name = f"{name}.{output.variant}"
    value.name = name
    graph.outputs.append(value)


def _separate_cache(graph: ir.Graph, output: _Output) -> None:
    """Gives the node that makes `present.{i}.*` of one variant a cache input of its own."""
    name = output.name.replace("present.", graphfile.CACHE_INPUT, 1)
    shared = next(value for value in graph.inputs if value.name == name)
    node = output.value.producer()
    if node is None or shared not in node.inputs:
        raise UserError(
            f"{output.name} of {output.variant} is not appended to {name}; this graph is not merged"
        )
    own = ir.Value(name=f"{name}.{output.variant}", type=shared.type, shape=shared.shape)
    graph.inputs.append(own)
    node.replace_input_with(node.inputs.index(shared), own)


def _check_caches(graph: ir.Graph) -> None:
    """One node appends to each cache; others may ask for its shape, which is the same for all variants."""
    for value in filter(graphfile.is_cache, graph.inputs):
        readers = {use.node for use in value.uses() if use.node.op_type != "Shape"}
        if len(readers) > 1:
            names = sorted(str(node.name) for node in readers)
            raise UserError(f"{value.name} is read by {names[0]} and {names[1]}; this graph is not merged")
