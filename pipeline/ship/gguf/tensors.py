"""Which tensors the file of a variant has.

Legend: C hidden size, H query heads, G key/value heads, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.models.compensation import MapPlace
from pipeline.models.gguf import tensors as gguf
from pipeline.models.gguf.dialects import DIALECTS, Dialect, architecture
from pipeline.models.gguf.layers import NOUGHTS
from pipeline.models.gguf.origins import Origin
from pipeline.ship.gguf import entries, keys
from pipeline.ship.gguf.entries import FileTensor
from pipeline.ship.gguf.kinds import Array, FileKind, Kind
from pipeline.ship.gguf.layers import Layer, LayerPart, MapShape
from pipeline.ship.pruned import PrunedModel
from pipeline.types import UserError

_OPEN = 1.2784645427610738
"""A gate that lets everything through: silu of it is 1."""
_MLP = ("ffn_", "post_ffw_")
"""How llama.cpp's names of an MLP's tensors begin, its norms included; the others are the attention's."""


@dataclass(frozen=True)
class VariantTensors:
    """The tensors of a variant's file.

    Attributes:
        model: the variant.
        how: what `--type` asks for.
        origin: the user's own GGUF, where tensors are copied from it.
        layers: that are written; None: the architecture is the model's own, and whole layers are left.
        maps: that the layers hold.
        own_head: a tied head is written beside the embedding (`heads`).
    """

    model: PrunedModel
    how: FileKind
    origin: Origin | None
    layers: tuple[Layer, ...] | None
    maps: dict[MapPlace, MapShape]
    own_head: bool = False

    @cached_property
    def dialect(self) -> Dialect:
        """Of the model's own architecture."""
        arch = architecture(self.model.config["model_type"])
        assert arch is not None, "refused before"
        return DIALECTS[arch]

    @cached_property
    def stored(self) -> dict[str, str]:
        """llama.cpp's name of a tensor of the whole model → Hugging Face's."""
        config = self.model.config
        tied = config["tie_word_embeddings"] and not self.own_head
        places = gguf.places({**config, "tie_word_embeddings": tied}, self.dialect)
        return {name: theirs for name, (theirs, _) in places.items()}

    def entries(self) -> list[FileTensor]:
        """The tensors, in the order of the file.

        Raises:
            UserError: a tensor of the checkpoint has no place in it, or is missing.
        """
        _refuse_unknown(self.model, set(self.stored.values()))
        outside = [self.own(name, name) for name in self.stored if not name.startswith("blk.")]
        inside = self.whole_layers() if self.layers is None else self.sublayers(self.layers)
        return [*outside, *self.tables(), *inside]

    def tables(self) -> Iterator[FileTensor]:
        """How the rope is scaled, where tensors say it."""
        given = self.origin.tensors if self.origin else {}
        for name, factors in keys.tables(self.model.config).items():
            yield entries.copied(name, given[name]) if name in given else entries.new(name, factors, Kind.F32)

    def whole_layers(self) -> Iterator[FileTensor]:
        """Of the layers that are left, one after another."""
        for number, layer in enumerate(self.model.layers):
            for name in self.of_layer(layer):
                yield self.own(f"blk.{layer}.{name}", f"blk.{number}.{name}")

    def sublayers(self, layers: tuple[Layer, ...]) -> Iterator[FileTensor]:
        """Of the layers of llama.cpp's `deci`."""
        for number, layer in enumerate(layers):
            before = f"blk.{number}."
            if layer.attention:
                yield from self.attention(before, layer.index, layer.attention)
            yield from self.feed_forward(before, layer.index, layer.feed_forward)

    def of_layer(self, layer: int) -> list[str]:
        """llama.cpp's names of the tensors of a layer, without the layer; biases as far as they are there."""
        before = f"blk.{layer}."
        return [
            name.removeprefix(before)
            for name, theirs in self.stored.items()
            if name.startswith(before) and (name.endswith(".weight") or theirs in self.model.everything)
        ]

    def attention(self, before: str, layer: int, part: LayerPart) -> Iterator[FileTensor]:
        """What the attention's place of a layer holds; `before` is before the names of its tensors."""
        width = self.model.config["hidden_size"]
        if part.form == "own":
            for name in self.of_layer(layer):
                if not name.startswith(_MLP):
                    yield self.own(f"blk.{layer}.{name}", before + name)
        elif part.form == "linear" and part.place:
            yield self.norm(f"{before}attn_norm.weight", part.place)
            yield self.factor(f"{before}attn_output.weight", part.place, 0)
        else:
            yield entries.ones(f"{before}attn_norm.weight", width)
            yield entries.zeros(f"{before}attn_output.weight", (width, width), self.how)

    def feed_forward(self, before: str, layer: int, part: LayerPart) -> Iterator[FileTensor]:
        """What the feed-forward's place of a layer holds."""
        width = self.model.config["hidden_size"]
        if part.form == "own":
            for name in self.of_layer(layer):
                if name.startswith(_MLP):
                    yield self.own(f"blk.{layer}.{name}", before + name)
            return
        rank = self.maps[part.place].rank if part.form == "low rank" and part.place else None
        rows = keys.width(rank) if rank else NOUGHTS
        yield entries.zeros(f"{before}ffn_gate.weight", (rows, width), self.how)
        if rank and part.place:
            yield self.norm(f"{before}ffn_norm.weight", part.place)
            yield entries.new(f"{before}ffn_gate.bias", np.full(rows, _OPEN, np.float32), Kind.F32)
            yield self.factor(f"{before}ffn_up.weight", part.place, 0, (rows, width))
            yield self.factor(f"{before}ffn_down.weight", part.place, 1, (width, rows))
        else:
            yield entries.ones(f"{before}ffn_norm.weight", width)
            yield entries.zeros(f"{before}ffn_up.weight", (rows, width), self.how)
            yield entries.zeros(f"{before}ffn_down.weight", (width, rows), self.how)
        if part.place:
            bias = self.model.maps[part.place].bias
            yield entries.converted(f"{before}ffn_down.bias", bias.array, bias.shape, Kind.F32)

    def own(self, name: str, new: str) -> FileTensor:
        """A tensor of the model.

        Args:
            name: llama.cpp's, in the whole model.
            new: its name in the file.
        """
        theirs = self.stored[name]
        if weight := self.model.blocks.get(theirs):
            return entries.kept(new, weight, self.order(theirs, weight.shape[0]))
        tensor = self.model.everything.get(theirs)
        if tensor is None:
            raise UserError(f"{self.model.checkpoint.folder} holds no tensor {theirs}")
        if self.origin and theirs not in self.model.replaced and name in self.origin.tensors:
            order = None if self.dialect.permuted else self.order(theirs, tensor.shape[0])
            return entries.copied(new, self.origin.tensors[name], order)
        order = self.order(theirs, tensor.shape[0])
        is_output = name == ("output.weight" if "output.weight" in self.stored else "token_embd.weight")
        offset = self.dialect.norm_offset if theirs.endswith("norm.weight") else 0.0
        kind = self.how.of(tensor.shape, is_output)

        def read() -> Array:
            return tensor.array() if order is None else tensor.array()[order]

        return entries.converted(new, read, tensor.shape, kind, offset)

    def order(self, theirs: str, rows: int) -> Array | None:
        """How the rows of q and k go, from Hugging Face's order into that of `llama` and `deci`."""
        if not self.dialect.permuted and self.layers is None:
            return None
        heads = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
        key = next((key for part, key in heads.items() if part in theirs), None)
        return gguf.row_order(rows, self.model.config[key]) if key else None

    def norm(self, name: str, place: MapPlace) -> FileTensor:
        """The norm whose output a map reads."""
        tensor = self.model.norm(place)
        return entries.converted(name, tensor.array, tensor.shape, Kind.F32)

    def factor(
        self, name: str, place: MapPlace, number: int, shape: tuple[int, int] | None = None
    ) -> FileTensor:
        """A factor of a map, which reads rows: h · factor. Here a matrix stands before what it reads.

        Args:
            name: in the file.
            place: of the map.
            number: which of its factors.
            shape: of the matrix; larger than the factor's, it is filled up with zeros.
        """
        factor = self.model.maps[place].factors[number]
        whole = shape or (factor.shape[1], factor.shape[0])

        def read() -> Array:
            array = np.zeros(whole, np.float32)
            array[: factor.shape[1], : factor.shape[0]] = factor.array().T
            return array

        return entries.converted(name, read, whole, self.how.of(whole))


def _refuse_unknown(model: PrunedModel, known: set[str]) -> None:
    """Refuses a model of which something would be dropped."""
    for name in model.tensors:
        if name not in known:
            raise UserError(
                f"{model.checkpoint.folder} holds the tensor {name}, which has no place in a GGUF of "
                f"{model.config['model_type']}"
            )
