"""The layers of a GGUF file: which sublayers each has, and which layer of the original model it is.

A pruned model of Llama's form has llama.cpp's architecture `deci`: one count a layer, of heads and of the
feed-forward's width, and 0 where that sublayer is not there. llama.cpp leaves the attention out too where the
width is 0, so a skipped MLP alone is written as a feed-forward of noughts, narrower than the others.
Source: llama.cpp's `src/models/deci.cpp` and `conversion/deci.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.models.gguf import originals
from pipeline.models.gguf.header import GgufHeader, GgufTensor
from pipeline.models.gguf.numbers import TAKE, Numbers
from pipeline.models.gguf.stored import values
from pipeline.types import BASE, SkipSet, UserError

HEADS, GROUPS, WIDTH = "attention.head_count", "attention.head_count_kv", "feed_forward_length"
_MAP = "a map that stands in for a skipped sublayer is not read back: take the variant that it was fitted to"
NOUGHTS = 32
"""Rows of a feed-forward that adds nothing: the least that a quantised type has."""
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a GGUF file.

    Attributes:
        heads: of queries, where there is attention.
        groups: heads of keys and values, there.
        width: of the feed-forward, where there is one that does anything.
        numbers: for each layer of the file, its index in the original model, ascending.
        total: L of the original model.
        absent: of the file's layers, those without attention, and those without an MLP.
        noughts: layer of the file → the width of a feed-forward that adds nothing.
        hollow: layers of the file whose attention is a linear map that adds nothing.
    """

    heads: int
    groups: int
    width: int
    numbers: tuple[int, ...]
    total: int
    absent: SkipSet = BASE
    noughts: Mapping[int, int] = field(default_factory=dict)
    hollow: tuple[int, ...] = ()

    @property
    def skip(self) -> SkipSet:
        """What the original model has, and the file has not."""
        gone = set(range(self.total)) - set(self.numbers)
        return SkipSet(
            tuple({*gone, *(self.numbers[i] for i in self.absent.attention)}),
            tuple({*gone, *(self.numbers[i] for i in self.absent.mlp)}),
        )

    def of_original(self, config: dict[str, Any]) -> dict[str, Any]:
        """config.json of the original model without these sublayers.

        Args:
            config: of a model with the file's layers alone.
        """
        if not self.skip:
            return config
        whole = {**config, "num_hidden_layers": self.total}
        if "layer_types" in config:  # a layer that is not there has any
            types = dict(zip(self.numbers, config["layer_types"], strict=True))
            whole["layer_types"] = [types.get(i, "full_attention") for i in range(self.total)]
        lists = {"drop_attn_list": list(self.skip.attention), "drop_mlp_list": list(self.skip.mlp)}
        return {**whole, **lists}


def of(header: GgufHeader, arch: str) -> Layers:
    """The layers of a file.

    Args:
        header: of the file.
        arch: its architecture, which is read.

    Raises:
        UserError: the counts are none, differ otherwise than by a sublayer that is not there, contradict the
            tensors, or say something that llama.cpp does not run; a map stands in for a sublayer.
    """
    numbers = Numbers(header.file, header.fields, arch)
    count = numbers.size("block_count")
    given = [header.fields.get(f"{arch}.{key}") for key in (HEADS, GROUPS, WIDTH)]
    if arch == "deci" and any(isinstance(one, list) for one in given):
        layers = _pruned(header, numbers, count)
    else:
        heads = numbers.size(HEADS, layers=count)
        groups, width = numbers.size(GROUPS, heads, count), numbers.size(WIDTH, layers=count)
        layers = Layers(heads, groups, width, (), count)
    present = {tensor.name.split(".")[1] for tensor in header.tensors if tensor.name.startswith("blk.")}
    empty = set(layers.absent.attention) & set(layers.absent.mlp) - {*layers.noughts, *layers.hollow}
    wanted = count - len(empty)
    if len(present) != wanted:  # before anything loops over what a scalar claims
        raise UserError(
            f"{header.file}: {arch}.block_count is {count:,}"
            f"{f', of which {wanted} have anything' if wanted != count else ''}, and it has tensors of "
            f"{len(present)}"
        )
    total, indices = originals.read(header, count)
    return replace(layers, numbers=indices, total=total)


def _pruned(header: GgufHeader, numbers: Numbers, count: int) -> Layers:
    """The layers of a file that has one count a layer; their places in the original model are left open."""
    for key in (HEADS, GROUPS, WIDTH):  # before a scalar is repeated as often as the file claims
        if isinstance(header.fields.get(f"{numbers.arch}.{key}"), list):
            numbers.sizes(key, count)
    heads = numbers.sizes(HEADS, count)
    groups = numbers.sizes(GROUPS, count, heads)
    widths = numbers.sizes(WIDTH, count)
    stored = {tensor.name: tensor for tensor in header.tensors}
    for i in range(count):
        _refuse_odd(numbers, i, heads[i], groups[i], widths[i])
    hollow = tuple(i for i in range(count) if heads[i] and not groups[i])
    for i in hollow:
        if not _is_nought(stored.get(f"blk.{i}.attn_output.weight")):
            raise UserError(f"{header.file}: blk.{i} has a linear map in the place of attention; {_MAP}")
    attention = [i for i in range(count) if groups[i]]
    if not attention or not any(widths):
        raise UserError(f"{header.file}: no layer of it has {'an MLP' if attention else 'attention'}; {TAKE}")
    for key, counts in ((HEADS, heads), (GROUPS, groups)):
        if len({counts[i] for i in attention}) > 1:
            raise UserError(f"{header.file}: {numbers.arch}.{key}: layers differ, {counts!r:.60}; {TAKE}")
    width = max(widths)
    noughts = _noughts(stored, numbers, widths, width)
    absent = SkipSet(
        tuple(i for i in range(count) if not groups[i]),
        tuple(i for i in range(count) if not widths[i] or i in noughts),
    )
    return Layers(heads[attention[0]], groups[attention[0]], width, (), count, absent, noughts, hollow)


def _refuse_odd(numbers: Numbers, i: int, heads: int, groups: int, width: int) -> None:
    """Refuses counts of one layer that contradict each other, or that llama.cpp does not run."""
    place = f"{numbers.file}: {numbers.arch}.{HEADS}"
    if groups and not heads:
        raise UserError(f"{place} is 0 in layer {i} and {GROUPS} is {groups}: is its attention there or not?")
    if heads and not width:
        raise UserError(
            f"{place} is {heads} in layer {i} and {WIDTH} is 0: the file has attention there, which "
            "llama.cpp leaves out with the MLP; write the MLP as a feed-forward of noughts, or leave both out"
        )


def _noughts(
    stored: Mapping[str, GgufTensor], numbers: Numbers, widths: list[int], width: int
) -> dict[int, int]:
    """Layer → width of its feed-forward, of those that are narrower than the others and add nothing.

    Where every MLP is left out, all have the width of one that adds nothing.
    """
    narrow = {i: one for i, one in enumerate(widths) if 0 < one < width}
    if width == NOUGHTS:
        there = {i: one for i, one in enumerate(widths) if one}
        downs = (stored.get(f"blk.{i}.ffn_down.weight") for i in there)
        narrow = there if all(map(_is_nought, downs)) else narrow
    for i in narrow:
        weights = [stored.get(f"blk.{i}.{part}.weight") for part in (*_FEED_FORWARD, "ffn_norm")]
        if not any(_is_nought(weight) for weight in weights[:-1]):
            raise UserError(
                f"{numbers.file}: {numbers.arch}.{WIDTH}: layers differ, {widths!r:.60}, and blk.{i}, of "
                f"another width, does something; {TAKE}"
            )
        biases = (stored.get(f"blk.{i}.{part}.bias") for part in _FEED_FORWARD)
        if not all(bias is None or _is_nought(bias) for bias in biases):
            raise UserError(f"{numbers.file}: blk.{i} has biases or a map in the place of an MLP; {_MAP}")
        for weight in weights:  # of a product with 0, infinity makes NaN
            if weight is not None:
                values(weight)
    return narrow


def _is_nought(tensor: GgufTensor | None) -> bool:
    """Whether a tensor is there and holds nothing but noughts."""
    return tensor is not None and not values(tensor).any()
