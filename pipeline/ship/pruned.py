"""A variant as other engines take it: what is left of its tensors, and what stands in for the rest.

Legend: C hidden size, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline import store
from pipeline.evals import passed
from pipeline.models import compensation, identity, provenance, safetensors_index
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.config import Config
from pipeline.models.quantisation import files
from pipeline.models.quantisation.blocks import Blocks
from pipeline.models.quantisation.files import StoredBlocks
from pipeline.models.sizes import SizeRules, rules_of
from pipeline.models.tensor_names import is_left_out, is_table
from pipeline.store.records import EngineRecord, GraphRecord
from pipeline.types import SkipSet, TensorSlice, UserError, Variant

Array = npt.NDArray[Any]
EXPORTED_ELSEWHERE = "it was exported elsewhere and keeps its weights in another form; export its checkpoint"
QUANTISED = "its weights are quantised for ONNX; ship its fp32 twin, which other engines quantise themselves"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        file: safetensors.
        slice: its byte range there.
    """

    file: Path
    slice: TensorSlice

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        return self.slice.shape

    def array(self) -> Array:
        """Its numbers, in the type of the file; read from the disk when they are used."""
        return safetensors_index.numbers(self.file, self.slice)


@dataclass(frozen=True, slots=True)
class StoredMap:
    """What stands in for a skipped sublayer: h · factors[0] (· factors[1]) + bias, of its normed input h.

    Attributes:
        factors: none, [C, C], or [C, R] and [R, C].
        bias: [C].
    """

    factors: tuple[StoredTensor, ...]
    bias: StoredTensor


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """Where a weight lies that the graph reads in blocks.

    Attributes:
        file: of the model's quantised weights.
        place: of its parts there.
    """

    file: Path
    place: StoredBlocks

    @property
    def bits(self) -> int:
        """4 or 8."""
        return self.place.bits

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), as the checkpoint has it."""
        return self.place.shape[1], self.place.shape[0]

    def blocks(self) -> Blocks:
        """Its numbers and scales, read from the disk when they are used."""
        return files.blocks_of(self.file, self.place)


@dataclass(frozen=True)
class PrunedModel:
    """A variant, by the tensors of its checkpoint.

    Attributes:
        graph: of the variant.
        record: the graph's sidecar.
        checkpoint: that it was cut from.
        everything: name → tensor of the whole model, where a fold or an adapter changed one the changed one.
        replaced: names of those that were changed.
        maps: what stands in for skipped sublayers, or for runs of whole layers.
        blocks: name → weight of the whole model, of those that the graph reads in blocks; a tied head is
            there under the head's own name.
    """

    graph: Path
    record: GraphRecord
    checkpoint: Checkpoint
    everything: Mapping[str, StoredTensor]
    replaced: frozenset[str]
    maps: Mapping[MapPlace, StoredMap]
    blocks: Mapping[str, QuantisedWeight] = field(default_factory=dict)

    @property
    def variant(self) -> Variant:
        """What it is."""
        return self.record.as_variant()

    @property
    def skip(self) -> SkipSet:
        """What is left out."""
        return self.record.skip_set

    @property
    def config(self) -> Config:
        """config.json of the whole model, normalised."""
        return self.checkpoint.config

    @property
    def rules(self) -> SizeRules:
        """What its architecture's tensors are called."""
        return rules_of(self.config["model_type"])

    @property
    def num_layers(self) -> int:
        """L of the whole model."""
        return self.record.num_layers

    @property
    def whole_blocks(self) -> bool:
        """Whether nothing but whole layers goes, and nothing stands in for them."""
        return self.skip.attention == self.skip.mlp and not self.maps

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of which something is left or mapped, by their indices in the whole model."""
        mapped = {one for place in self.maps for one in place.sublayers}
        return tuple(
            i
            for i in range(self.num_layers)
            if any((i, kind) not in self.skip or (i, kind) in mapped for kind in ("attn", "mlp"))
        )

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Name → tensor, of those that are left."""
        return {
            name: tensor
            for name, tensor in self.everything.items()
            if not is_left_out(name, self.skip, self.rules)
        }

    def norm(self, place: MapPlace) -> StoredTensor:
        """The norm [C] whose output a map of one sublayer reads."""
        kind: Any = place.kind
        return self.everything[f"{self.rules.layers}.{place.first}.{self.rules.norms(kind)[0]}.weight"]

    def digest(self, form: str) -> str:
        """What a file of a form that is made of it depends on, as one number."""
        return provenance.digest(self.graph, form)


def read(graph: Path, unchecked: bool = False, in_blocks: bool = False) -> PrunedModel:
    """The variant of a graph, whose weights are still those that it was checked with.

    Args:
        graph: of any variant, compensated and healed ones too; no engine, and no merged graph.
        unchecked: also one that has passed no check.
        in_blocks: also one whose weights are quantised.

    Raises:
        UserError: another artefact, one that has passed no check, or one whose weights are not those of a
            checkpoint, or quantised and not asked for; or a file is damaged.
    """
    record = store.sidecar(graph, quick=True)
    if isinstance(record, EngineRecord):
        raise UserError(f"{graph} is an engine; name the graph that it was built from, {record.graph.file}")
    if not isinstance(record, GraphRecord):
        raise UserError(f"{graph} is a merged graph; name one of its variants: {', '.join(record.variants)}")
    passed.variants(graph, unchecked, provider=None)  # hashes the graph, refuses a static cache
    if record.contract != "authored":
        raise UserError(f"{graph}: {EXPORTED_ELSEWHERE}")
    if record.quantisation and not in_blocks:
        raise UserError(f"{graph}: {QUANTISED}")
    store.refuse_damaged(graph)
    identity.refuse_other_sums(graph.parent, store.weights.states(store.weight_paths(graph), full=True))
    checkpoint, overlays = open_checkpoint(graph.parent), store.overlays(graph)
    everything, maps = _tensors(checkpoint), dict[MapPlace, StoredMap]()
    replaced, blocks = set[str](), dict[str, QuantisedWeight]()
    for file in overlays:
        tensors = overlay_tensors(file)
        if files.is_quantised(tensors):
            read_so = files.in_blocks(files.stored(file), record.precision)
            blocks |= {name: QuantisedWeight(file, place) for name, place in read_so.items()}
            continue
        changed = {name: one for name, one in tensors.items() if not compensation.is_map(name)}
        everything |= changed
        replaced |= set(changed)
        maps |= stored_maps(tensors, file)
        for place in maps:
            compensation.refuse_kept(place, record.skip_set, file)
    return PrunedModel(graph, record, checkpoint, everything, frozenset(replaced), maps, blocks)


def overlay_tensors(file: Path) -> dict[str, StoredTensor]:
    """Name → tensor of an overlay."""
    return {name: StoredTensor(file, one) for name, one in safetensors_index.read_index([file]).items()}


def stored_maps(tensors: Mapping[str, StoredTensor], file: Path) -> dict[MapPlace, StoredMap]:
    """The maps among the tensors of an overlay.

    Raises:
        UserError: as `compensation.places`.
    """
    places = compensation.places(tensors, file)
    return {
        place: StoredMap(tuple(tensors[name] for name in factors), tensors[place.tensor("bias")])
        for place, factors in places.items()
    }


def _tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors that the model reads: no tables, and no second copy of a tied embedding."""
    head = f"{rules_of(checkpoint.config['model_type']).head}.weight"
    return {
        name: StoredTensor(checkpoint.folder / one.file, one)
        for name, one in checkpoint.tensors.items()
        if not is_table(name) and not (name == head and checkpoint.config["tie_word_embeddings"])
    }
