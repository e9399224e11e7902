"""The tensors of the file: what each is called there, how it is stored, and where its bytes come from.

Legend: C hidden size, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from pipeline.models.gguf.header import GgufTensor
from pipeline.models.quantisation import gguf_blocks
from pipeline.models.quantisation.blocks import Blocks
from pipeline.ship.gguf import kinds
from pipeline.ship.gguf.kinds import Array, FileKind, Kind
from pipeline.ship.pruned import QuantisedWeight

Way = Literal["copied", "kept", "converted", "new"]
_CHUNK = 1 << 24
"""Bytes that are copied at a time."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of the file.

    Attributes:
        name: in llama.cpp's words.
        shape: rows first.
        kind: how it is stored.
        way: 'copied' byte for byte from the user's own GGUF, 'kept' in the graph's own blocks, 'converted',
            or 'new': the model has no such tensor.
        chunks: its bytes, a part at a time.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    way: Way
    chunks: Callable[[], Iterator[bytes]]

    @property
    def size(self) -> int:
        """Bytes."""
        return kinds.size(self.shape, self.kind)


def copied(name: str, tensor: GgufTensor, order: Array | None = None) -> FileTensor:
    """A tensor of the user's own GGUF under another name, its rows in another order perhaps.

    Args:
        name: in the new file.
        tensor: of the GGUF.
        order: for each row of the new tensor its place in the old.
    """

    def chunks() -> Iterator[bytes]:
        rows = tensor.stored() if len(tensor.shape) > 1 else tensor.stored().reshape(tensor.shape[0], -1)
        step = max(1, _CHUNK // rows[0].size)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield (rows[part] if order is None else rows[order[part]]).tobytes()

    return FileTensor(name, tensor.shape, tensor.kind, "copied", chunks)


def converted(
    name: str, read: Callable[[], Array], shape: tuple[int, ...], kind: Kind, offset: float = 0.0
) -> FileTensor:
    """A tensor of the checkpoint.

    Args:
        name: in the new file, and for messages.
        read: gives its numbers when they are written.
        shape: rows first.
        kind: how it is stored.
        offset: what is added to each number.
    """

    def chunks() -> Iterator[bytes]:
        return kinds.converted(name, read(), kind, offset)

    return FileTensor(name, shape, kind, "converted", chunks)


def kept(name: str, weight: QuantisedWeight, order: Array | None = None) -> FileTensor:
    """A weight in the blocks that the graph reads: the same integers and scales, nothing is rounded.

    Args:
        name: in the new file.
        weight: in blocks of 32.
        order: for each row of the new tensor its place in the checkpoint's.
    """

    def chunks() -> Iterator[bytes]:
        own, outputs = weight.blocks(), np.arange(weight.shape[0]) if order is None else order
        step = max(1, _CHUNK // weight.shape[1])
        for start in range(0, len(outputs), step):
            part = outputs[start : start + step]
            piece = Blocks(own.values[:, part], own.scales[:, part])
            yield gguf_blocks.written(piece, weight.bits).tobytes()

    return FileTensor(name, weight.shape, gguf_blocks.KINDS[weight.bits], "kept", chunks)


def new(name: str, array: Array, kind: Kind) -> FileTensor:
    """A tensor that the model has not, of numbers that are at hand."""
    return FileTensor(name, array.shape, kind, "new", partial(kinds.converted, name, array, kind))


def zeros(name: str, shape: tuple[int, ...], how: FileKind) -> FileTensor:
    """A matrix of zeros: zero bytes, whatever its type."""
    kind = how.of(shape)
    whole = kinds.size(shape, kind)

    def chunks() -> Iterator[bytes]:
        for start in range(0, whole, _CHUNK):
            yield bytes(min(_CHUNK, whole - start))

    return FileTensor(name, shape, kind, "new", chunks)


def ones(name: str, width: int) -> FileTensor:
    """The norm [C] before what reads nothing of it."""
    return new(name, np.ones(width, np.float32), Kind.F32)
