"""`pipeline ship GRAPH --to gguf OUT.gguf`: a variant as a GGUF file, which stock llama.cpp runs.

Whole blocks leave a model of its own architecture with fewer layers. Everything else is llama.cpp's `deci`,
whose layers have counts of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.models.compensation import MapPlace
from pipeline.models.gguf import origins
from pipeline.models.gguf.dialects import architecture
from pipeline.models.gguf.layers import NOUGHTS
from pipeline.models.gguf.origins import Origin
from pipeline.models.gguf.stored import FLOATS
from pipeline.models.quantisation.names import requested
from pipeline.ship import pruned
from pipeline.ship.gguf import choice, heads, keys, kinds, output, readback, refusals, words
from pipeline.ship.gguf.entries import FileTensor
from pipeline.ship.gguf.kinds import SOURCE, FileKind
from pipeline.ship.gguf.layers import Layer, MapShape, layers
from pipeline.ship.gguf.shipment import GgufShipment
from pipeline.ship.gguf.tensors import VariantTensors
from pipeline.ship.pruned import PrunedModel
from pipeline.types import UserError

_OWN_KEYS = ("general.architecture", "general.file_type", "general.alignment", "general.quantization_version")
"""Keys of a GGUF that are not taken over: they say how that file is stored."""


@dataclass(frozen=True)
class _Plan:
    """What is written.

    Attributes:
        model: the variant.
        how: the type.
        origin: the user's own GGUF, whatever the type.
        layers: of `deci`; None: the architecture is the model's own.
        maps: that the layers hold.
        config: config.json of the layers that are left, as llama.cpp runs them.
        own_head: the head of a tied model is written beside the embedding.
    """

    model: PrunedModel
    how: FileKind
    origin: Origin | None
    layers: tuple[Layer, ...] | None
    maps: dict[MapPlace, MapShape]
    config: dict[str, Any]
    own_head: bool

    @property
    def arch(self) -> str:
        return keys.DECI if self.layers is not None else str(architecture(self.config["model_type"]))

    @property
    def indices(self) -> tuple[int, ...]:
        """For each layer of the file, the layer of the whole model."""
        return tuple(one.index for one in self.layers) if self.layers is not None else self.model.layers

    @property
    def digest(self) -> str:
        return self.model.digest(self.how.name)

    def model_keys(self) -> dict[str, Any]:
        """What says the model's sizes."""
        if self.layers is None:
            return keys.of_whole_layers(self.arch, self.config)
        return keys.of_sublayers(self.config, self.layers, self.maps)

    def tensors(self) -> list[FileTensor]:
        copied = self.origin if self.how.is_source else None
        head = self.own_head
        return VariantTensors(self.model, self.how, copied, self.layers, self.maps, head).entries()


def ship(graph: Path, file: Path, kind: str | None = None, unchecked: bool = False) -> GgufShipment:
    """Writes a variant as a GGUF file. Weights that the graph reads in blocks keep them, bit for bit.

    Args:
        graph: of the variant.
        file: OUT.gguf.
        kind: of what the graph reads in no blocks: llama.cpp's name of a type in lower case, or 'source';
            None for what loses nothing.
        unchecked: also a graph that has passed no check.

    Raises:
        UserError: llama.cpp has no form for it, the file is there and is something else, a type is not made
            here, or the disk is full. Nothing is left then.
    """
    output.refuse_name(file)
    plan = _plan(pruned.read(graph, unchecked, in_blocks=True), kind)
    tensors = plan.tensors()
    is_new = not output.is_there(file, plan.digest, plan.model_keys(), tensors)
    fields, notes = _fields(plan, tensors) if is_new else ({}, ())
    if is_new:
        output.refuse_no_room(file, tensors)
        with output.beside(file) as temporary:
            output.write(temporary, plan.arch, fields, tensors)
            _refuse_other(plan, temporary, tensors)
    checked = store.check_passed(graph, None, None)
    return _shipment(plan, file, tensors, checked, is_new, (*_notes(plan), *notes))


def _shipment(
    plan: _Plan,
    file: Path,
    tensors: list[FileTensor],
    checked: bool,
    is_new: bool,
    notes: tuple[str, ...],
) -> GgufShipment:
    """What is said of a file that is there."""
    ways = [tensor.way for tensor in tensors]
    return GgufShipment(
        file=str(file),
        variant=plan.model.variant.name,
        architecture=plan.arch,
        type=plan.how.main,
        bytes=file.stat().st_size,
        num_layers=plan.model.num_layers,
        layers=plan.indices,
        copied=ways.count("copied"),
        converted=ways.count("converted"),
        new=ways.count("new"),
        checked=checked,
        written=is_new,
        notes=notes,
        kept=ways.count("kept"),
        rest=plan.how.name if plan.how.blocks else None,
    )


def _plan(model: PrunedModel, kind: str | None) -> _Plan:
    (precision,) = requested(model.record.precision_name)
    if reason := refusals.refusal(model.config, model.skip, model.maps, precision):
        raise UserError(f"{model.graph} cannot be written as GGUF: {reason}")
    origin = origins.of_checkpoint(model.checkpoint)
    form = precision.weights
    how = replace(choice.chosen(kind, model, origin), blocks=f"q{form.bits}_0" if form else None)
    shapes = {place: _shape(one) for place, one in model.maps.items()}
    is_deci = refusals.is_deci(model.skip, model.maps)
    own = layers(model.skip, model.num_layers, shapes) if is_deci else None
    given = origin if isinstance(origin, Origin) else None
    own_head = heads.is_apart(model, given if how.is_source else None)
    config = keys.cut(model.config, model.layers)
    config["tie_word_embeddings"] = config["tie_word_embeddings"] and not own_head
    return _Plan(model, how, given, own, shapes, config, own_head)


def _shape(one: pruned.StoredMap) -> MapShape:
    ranks = {0: 0, 1: None, 2: one.factors[0].shape[1] if one.factors else 0}
    return MapShape(ranks[len(one.factors)], bool(np.any(one.bias.array())))


def _fields(plan: _Plan, tensors: list[FileTensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys, and what a person should know of the tokenizer."""
    model, folder = plan.model, plan.model.checkpoint.folder
    if plan.origin:
        given = {
            key: value
            for key, value in plan.origin.fields.items()
            if key.startswith(("general.", "tokenizer.")) and key not in _OWN_KEYS
        }
        tokens = words.Words({**given, **words.ends(folder, given)})
    else:
        tokens = words.of_checkpoint(folder, model.config, model.checkpoint.model)
    own = {
        output.VARIANT: model.variant.name,
        output.NUM_LAYERS: model.num_layers,
        output.LAYERS: list(plan.indices),
        output.FORM: plan.how.name,
        output.DIGEST: plan.digest,
    }
    return {**_storage(plan, tensors), **tokens.fields, **plan.model_keys(), **own}, tokens.notes


def _storage(plan: _Plan, tensors: list[FileTensor]) -> dict[str, Any]:
    """How the file is stored, in the keys that llama.cpp has for it."""
    given = plan.origin.fields.get("general.file_type") if plan.origin else None
    number = given if plan.how.main == SOURCE else plan.how.file_type
    has_blocks = any(tensor.kind not in FLOATS for tensor in tensors)
    return {
        **({"general.file_type": number} if isinstance(number, int) else {}),
        **({"general.quantization_version": output.QUANTISATION} if has_blocks else {}),
    }


def _refuse_other(plan: _Plan, written: Path, tensors: list[FileTensor]) -> None:
    """Refuses a file that does not say, read back, what was meant."""
    header, expected = output.read_back(written, tensors), plan.config
    if len(plan.model.skip.mlp) == plan.model.num_layers:  # their width is in none of the file's layers
        expected = {**expected, "intermediate_size": NOUGHTS}
    if not plan.maps and (reason := readback.difference(header, expected)):
        raise UserError(f"{plan.model.graph} cannot be written as GGUF: {reason}")


def _notes(plan: _Plan) -> list[str]:
    context, whole = plan.config["max_position_embeddings"], plan.model.config["max_position_embeddings"]
    notes = []
    if context < whole:
        notes.append(
            f"the context is {context} of {whole} tokens, the model's window: llama.cpp's {plan.arch} has "
            "no windows"
        )
    if f"{plan.arch}.{keys.PATTERN}" in plan.model_keys():
        notes.append(
            "which layers have a window is said by a key that llama.cpp b11434 reads and old ones pass over"
        )
    if plan.how.is_source and plan.model.replaced:
        notes.append(
            f"{len(plan.model.replaced)} tensors were changed by a compensation or an adapter: they are f16"
        )
    if plan.how.is_quantised and plan.origin and (own := kinds.type_name(plan.origin.fields)):
        of_rest, of_all = ("what is in no blocks was", "is"), ("the weights were", "are")
        what, be = of_rest if plan.how.blocks else of_all
        notes.append(f"{what} {own} before, and {be} rounded once more")
    return notes
