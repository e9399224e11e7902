"""A cache in memory of the GPU that we own: of a TensorRT engine, whose steps read one and write the next.

A step of a growing cache reads one block of memory and writes another; when the cache before it is dropped,
its block is the next one's: two blocks take turns. A static cache is written in place: both caches are of one
block. Everything is queued on one stream, so that a block can be used anew before the work on it is done.

Legend: B rows, S new tokens, P cached tokens, T = P + S, N places of a static cache, G key/value heads, D
head dimension.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pipeline.runtime.cache import Array, Cache, resized

_ALIGNMENT = 256
"""Bytes: TensorRT wants tensors to begin at a multiple."""
_ROOM = 64
"""Tokens: a block has room for the next multiple, so that most steps find one of their size."""
_SPARE = 2
"""Blocks of a size that are kept when nothing uses them: one that a step reads, one that it writes."""
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = (ctypes.c_int(k) for k in (1, 2, 3))
"""cudaMemcpyKind."""


class DeviceMemory:
    """Blocks of the GPU's memory, one stream, and the copies on it, through Polygraphy's libcudart."""

    def __init__(self) -> None:
        from polygraphy import cuda

        self.cuda = cuda.wrapper()
        self.stream: int = self.cuda.create_stream()
        self.spare: dict[int, list[int]] = {}
        self.is_open = True

    def address(self, nbytes: int) -> int:
        """Memory of that size, spare or new.

        Raises:
            MemoryError: the GPU has none.
        """
        if spare := self.spare.get(nbytes):
            return spare.pop()
        try:
            return int(self.cuda.malloc(nbytes))
        except Exception:  # noqa: BLE001 - Polygraphy's, whatever the reason: what is spare may be what lacks
            self.trim()
        try:
            return int(self.cuda.malloc(nbytes))
        except Exception as error:
            raise MemoryError(f"the GPU has no {nbytes} bytes left") from error

    def give_back(self, address: int, nbytes: int) -> None:
        """Takes memory that nothing uses any more."""
        spare = self.spare.setdefault(nbytes, [])
        spare.append(address)
        if len(spare) > _SPARE or not self.is_open:
            self.cuda.free(spare.pop(0))

    def trim(self) -> None:
        """Frees all that is spare."""
        for addresses in self.spare.values():
            while addresses:
                self.cuda.free(addresses.pop())

    def upload(self, address: int, array: Array) -> None:
        """Queues a copy of a contiguous array, which must live until `synchronize`."""
        if array.nbytes:
            self.cuda.memcpy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE, self.stream)

    def download(self, address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Queues a copy to the host; its numbers are there after `synchronize`."""
        array = np.empty(shape, dtype)
        if array.nbytes:
            self.cuda.memcpy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST, self.stream)
        return array

    def copy_lines(self, target: Lines, source: Lines, width: int, height: int) -> None:
        """Queues a copy of lines of `width` bytes each."""
        if width and height:
            status = self.cuda.handle.cudaMemcpy2DAsync(
                ctypes.c_void_p(target.address),
                ctypes.c_size_t(target.pitch),
                ctypes.c_void_p(source.address),
                ctypes.c_size_t(source.pitch),
                ctypes.c_size_t(width),
                ctypes.c_size_t(height),
                _DEVICE_TO_DEVICE,
                ctypes.c_void_p(self.stream),
            )
            self.cuda.check(status)

    def zero(self, address: int, nbytes: int) -> None:
        """Queues zeros."""
        size, stream = ctypes.c_size_t(nbytes), ctypes.c_void_p(self.stream)
        self.cuda.check(
            self.cuda.handle.cudaMemsetAsync(ctypes.c_void_p(address), ctypes.c_int(0), size, stream)
        )

    def synchronize(self) -> None:
        """Waits until all that is queued is done."""
        self.cuda.stream_synchronize(self.stream)

    def close(self) -> None:
        """Frees what is spare; blocks that are still used are freed when they are dropped."""
        self.is_open = False
        self.synchronize()
        self.trim()


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of bytes in memory.

    Attributes:
        address: of the first.
        pitch: bytes from one's beginning to the next's.
    """

    address: int
    pitch: int


class Block:
    """Memory of the GPU that goes back when the object does.

    Args:
        memory: of the GPU.
        nbytes: that it holds at least.

    Attributes:
        caches: those that lie in it; several are stages of one static cache.
    """

    def __init__(self, memory: DeviceMemory, nbytes: int) -> None:
        self.nbytes = _aligned(max(nbytes, 1))  # a tensor without a number has an address, too
        self.address = memory.address(self.nbytes)
        self.caches = weakref.WeakSet[DeviceCache]()
        weakref.finalize(self, memory.give_back, self.address, self.nbytes).atexit = False


class CacheLayout:
    """Where the tensors of a cache lie in its block, one behind the other.

    Args:
        shapes: cache tensor → (G, D, its type).
        max_tokens: N; None where the cache grows.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int, np.dtype[Any]]], max_tokens: int | None = None
    ) -> None:
        self.shapes, self.max_tokens = dict(shapes), max_tokens
        self.token_bytes = sum(heads * dim * dtype.itemsize for heads, dim, dtype in shapes.values())

    def offsets(self, rows: int, tokens: int) -> tuple[dict[str, int], int]:
        """Tensor → its first byte, and the bytes of all."""
        room, offsets, end = self.max_tokens or _ROOM * math.ceil(tokens / _ROOM), {}, 0
        for name, (heads, dim, dtype) in self.shapes.items():
            offsets[name] = end
            end += _aligned(rows * heads * room * dim * dtype.itemsize)
        return offsets, end


class DeviceCache(Cache):
    """A cache in one block of the GPU's memory; its numbers are not set.

    Args:
        layout: of its tensors.
        memory: of the GPU.
        rows: B.
        tokens: P.
        block: that it lies in; one of its own by default.
    """

    def __init__(
        self, layout: CacheLayout, memory: DeviceMemory, rows: int, tokens: int, block: Block | None = None
    ) -> None:
        self.layout, self.memory, self.rows, self.tokens = layout, memory, rows, tokens
        offsets, nbytes = layout.offsets(rows, tokens)
        self.block = Block(memory, nbytes) if block is None else block
        self.addresses = {name: self.block.address + offset for name, offset in offsets.items()}
        if block is None and layout.max_tokens is not None:
            # What lies behind the tokens is masked, and a masked NaN is a NaN: 0 times it.
            memory.zero(self.block.address, self.block.nbytes)
        self.block.caches.add(self)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.rows * self.tokens * self.layout.token_bytes

    def shape(self, name: str) -> tuple[int, int, int, int]:
        """Of a tensor as an engine takes it: (B, G, P or N, D)."""
        heads, dim, _ = self.layout.shapes[name]
        return self.rows, heads, self._places, dim

    def before_and_after(self, new: int) -> tuple[Self, Self]:
        """(the cache that a step reads, the one of P + S tokens that it writes).

        A static cache is written over behind its P tokens, unless a cache that is still there has its own
        tokens there: then the step works on a copy.

        Args:
            new: S.

        Raises:
            MemoryError: there is no room.
        """
        tokens = self.tokens + new
        if self.layout.max_tokens is None:
            return self, type(self)(self.layout, self.memory, self.rows, tokens)
        is_last = all(cache.tokens <= self.tokens for cache in self.block.caches)
        before = self if is_last else self._cut(range(self.rows), 0, self.tokens)
        return before, type(self)(self.layout, self.memory, self.rows, tokens, before.block)

    def fill(self, arrays: Mapping[str, Array]) -> Self:
        """Itself, with the numbers of arrays [B, G, P or N, D]."""
        typed = {
            name: np.ascontiguousarray(resized(arrays[name], 2, self.layout.max_tokens), dtype)
            for name, (_, _, dtype) in self.layout.shapes.items()
            if arrays[name].size  # the first of an empty cache would be N places of zeros, which are there
        }
        for name, array in typed.items():
            self.memory.upload(self.addresses[name], array)
        self.memory.synchronize()
        return self

    def arrays(self) -> dict[str, Array]:
        """Copies on the host."""
        arrays = {
            name: self.memory.download(address, self.shape(name), self.layout.shapes[name][2])
            for name, address in self.addresses.items()
        }
        self.memory.synchronize()
        return {name: array[:, :, : self.tokens] for name, array in arrays.items()}

    @property
    def _places(self) -> int:
        """Tokens from one head to the next."""
        return self.layout.max_tokens or self.tokens

    def beside(self, others: Sequence[Self]) -> Self:
        """Copies every row once, into its place."""
        caches = [self, *others]
        tokens = max(cache.tokens for cache in caches)
        whole = type(self)(self.layout, self.memory, sum(cache.rows for cache in caches), tokens)
        if any(cache.tokens < tokens for cache in caches):
            self.memory.zero(whole.block.address, whole.block.nbytes)
        row = 0
        for cache in caches:
            for name in self.addresses:
                cache._copy(
                    name, 0, 0, whole._lines(name, row, tokens - cache.tokens), (cache.tokens, cache.rows)
                )
            row += cache.rows
        return whole

    def _cut(self, rows: Sequence[int], first: int, end: int) -> Self:
        part = type(self)(self.layout, self.memory, len(rows), end - first)
        for name in self.addresses:
            for k, row in enumerate(rows):
                self._copy(name, row, first, part._lines(name, k, 0), (end - first, 1))
        return part

    def _copy(self, name: str, row: int, token: int, target: Lines, sizes: tuple[int, int]) -> None:
        """Copies tokens of rows, `sizes` of each, from a place on: a head of a row is a line."""
        heads, dim, dtype = self.layout.shapes[name]
        tokens, rows = sizes
        width = tokens * dim * dtype.itemsize
        self.memory.copy_lines(target, self._lines(name, row, token), width, rows * heads)

    def _lines(self, name: str, row: int, token: int) -> Lines:
        """A tensor as lines of a head's numbers, from a row's token on."""
        heads, dim, dtype = self.layout.shapes[name]
        pitch = self._places * dim * dtype.itemsize
        return Lines(self.addresses[name] + row * heads * pitch + token * dim * dtype.itemsize, pitch)


def _aligned(nbytes: int) -> int:
    return math.ceil(nbytes / _ALIGNMENT) * _ALIGNMENT
