"""Stage: several variants of one base → one graph in which what they share is computed once (value numbering).

Two nodes are one when they have the same operator, attributes and inputs. A cache tensor is shared by the variants whose
new keys or values are the same value: the trunk has one cache, and above a fork each variant has its own, named
`past_key_values.{i}.key.<variant>`. Each variant keeps its own `logits.<variant>`. Outputs are bit-identical to the
separate graphs, because each value is computed by the same node on the same inputs.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pipeline import store
from pipeline.graphs import graphfile
from pipeline.types import UserError


def merge(graphs: list[Path]) -> Path:
    """Writes `<variant>&<variant>….merged.onnx` beside the graphs, or finds it there.

    Raises:
        UserError: fewer than two graphs, or graphs of different bases, precisions or contracts.
    """
    if len(set(graphs)) < 2:
        raise UserError("merging takes at least two different graphs of one model")
    records = [store.read_sidecar(path) for path in graphs]
    for path, record in zip(graphs, records, strict=True):
        for key in ("model", "precision", "contract", "weights", "head"):
            if record.get(key) != records[0].get(key):
                raise UserError(
                    f"{path} and {graphs[0]} differ in {key}: only variants of one base can be merged"
                )
    names = [store.variant_of(record).name for record in records]
    digest = store.text_digest("\n".join(sorted(names)))
    path = graphs[0].parent / f"merged-{len(names)}-{digest[:12]}.{records[0]['precision']}.onnx"
    wanted = {
        "artefact": "merged",
        **{
            key: records[0][key]
            for key in ("model", "precision", "contract", "weights", "head", "tools", "num_layers")
        },
        "tokenizer": records[0].get("tokenizer"),
        "variants": {name: record["sha256"] for name, record in zip(names, records, strict=True)},
    }
    with store.lock(path.parent):
        if not store.is_current(path, wanted):
            model = merge_models(dict(zip(names, (graphfile.load(p) for p in graphs), strict=True)))
            graphfile.save(model, path, wanted)
    return path


def merge_models(models: dict[str, ir.Model]) -> ir.Model:
    """The merged graph of the variants' graphs, by name."""
    numbering = _Numbering()
    for name, model in models.items():
        numbering.add(name, model)
    first = next(iter(models.values()))
    graph = ir.Graph(
        numbering.inputs,
        numbering.outputs,
        nodes=numbering.nodes,
        initializers=numbering.initializers,
        opset_imports=first.graph.opset_imports,
        name=f"{first.graph.name}.merged",
    )
    return ir.Model(graph, ir_version=first.ir_version, producer_name="skip-pipeline")


class _Numbering:
    """Value numbering: what has been computed, by what it is."""

    def __init__(self) -> None:
        self.known: dict[Hashable, list[ir.Value]] = {}
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.taken: set[str] = set()

    def add(self, variant: str, model: ir.Model) -> None:
        """Adds one variant: only what no earlier variant computes becomes new nodes."""
        mine: dict[ir.Value | None, ir.Value | None] = {None: None}
        for value in model.graph.initializers.values():
            mine[value] = self._initializer(value, variant)
        for value in model.graph.inputs:
            if not _is_cache(value):
                mine[value] = self._input(value, ("input", value.name), variant)
        for node in model.graph:
            for cache in {v for v in node.inputs if v is not None and v not in mine}:
                # A cache is what its new part says it is: shared when that is shared.
                rest = tuple(id(mine[v]) for v in node.inputs if v in mine)
                mine[cache] = self._input(cache, ("cache", cache.name, rest), variant)
            for theirs, ours in zip(
                node.outputs, self._node(node, [mine[v] for v in node.inputs], variant), strict=True
            ):
                mine[theirs] = ours
        for value in model.graph.outputs:
            self._output(value, mine[value], variant)

    def _name(self, name: str | None, variant: str) -> str:
        """The name itself while it is free, then with the variant's name behind it."""
        name = name or "value"
        unique = name if name not in self.taken else f"{name}.{variant}"
        self.taken.add(unique)
        return unique

    def _initializer(self, value: ir.Value, variant: str) -> ir.Value:
        tensor = value.const_value
        if tensor is None:
            raise UserError(f"initializer {value.name!r} has no data; this graph is not merged")
        where: Hashable = (
            tensor.tobytes()
            if not isinstance(tensor, ir.ExternalTensor)
            else (tensor.location, tensor.offset)
        )
        key = ("initializer", str(tensor.dtype), tuple(tensor.shape.numpy()), where)
        if key not in self.known:
            name = self._name(value.name, variant)
            new = ir.Value(name=name, const_value=tensor, type=value.type, shape=value.shape)
            self.known[key] = [new]
            self.initializers.append(new)
        return self.known[key][0]

    def _input(self, value: ir.Value, key: Hashable, variant: str) -> ir.Value:
        if key not in self.known:
            new = ir.Value(name=self._name(value.name, variant), type=value.type, shape=value.shape)
            self.known[key] = [new]
            self.inputs.append(new)
        return self.known[key][0]

    def _node(self, node: ir.Node, inputs: list[ir.Value | None], variant: str) -> list[ir.Value]:
        attributes = tuple(
            sorted((name, _attribute_key(attribute)) for name, attribute in node.attributes.items())
        )
        key = (node.domain, node.op_type, attributes, tuple(id(v) for v in inputs), len(node.outputs))
        if key not in self.known:
            new = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                node.attributes.values(),
                num_outputs=len(node.outputs),
                name=self._name(node.name, variant),
            )
            for theirs, ours in zip(node.outputs, new.outputs, strict=True):
                ours.name = (
                    self._name(theirs.name, variant)
                    if not theirs.is_graph_output()
                    else f"{new.name}:{theirs.index()}"
                )
                ours.type, ours.shape = theirs.type, theirs.shape
            self.known[key] = list(new.outputs)
            self.nodes.append(new)
        return self.known[key]

    def _output(self, value: ir.Value, ours: ir.Value | None, variant: str) -> None:
        if ours is None:
            raise UserError(
                f"output {value.name!r} of {variant} is computed by no node; this graph is not merged"
            )
        if value.name == "logits":
            if ours in self.outputs:  # two variants with the same content
                ours = self._identity(ours)
            ours.name = f"logits.{variant}"
            self.outputs.append(ours)
        elif ours not in self.outputs:
            ours.name = self._name(value.name, variant)
            self.outputs.append(ours)

    def _identity(self, value: ir.Value) -> ir.Value:
        node = ir.Node(
            "", "Identity", [value], num_outputs=1, name=self._name("identity", str(len(self.nodes)))
        )
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        self.nodes.append(node)
        return node.outputs[0]


def _is_cache(value: ir.Value) -> bool:
    return bool(value.name and value.name.startswith("past_key_values."))


def _attribute_key(attribute: ir.Attr) -> Any:
    """A hashable form of an attribute's value."""
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return (str(value.dtype), tuple(value.shape.numpy()), value.tobytes())
    return tuple(value) if isinstance(value, (list, tuple)) else value
