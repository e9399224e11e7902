"""Keys and values of the tokens so far, wherever a backend keeps them.

Whoever generates or scores holds a cache, hands it back for the next pass, and puts caches of several texts
together; what is in it stays with the backend.

Legend: B rows, P cached tokens, G key/value heads, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Cache(ABC):
    """Keys and values of P tokens in each of B rows. It never changes: what is made of it is another cache.

    Attributes:
        rows: B.
        tokens: P, padding included.
    """

    rows: int
    tokens: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that its keys and values take, where they lie."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """On the host, copied there if need be: past_key_values.{i}.key|value → [B, G, P, D]."""

    @abstractmethod
    def beside(self, others: Sequence[Self]) -> Self:
        """Its rows, then those of the others; all are padded on the left with zeros to the longest.

        Raises:
            MemoryError: there is no room.
        """

    @abstractmethod
    def _cut(self, rows: Sequence[int], first: int, end: int) -> Self:
        """As `part`, where that is not the whole."""

    def part(self, rows: Sequence[int], first: int = 0, end: int | None = None) -> Self:
        """Some of its rows, and of each the tokens from `first` until before `end`.

        Args:
            rows: numbers of rows, in any order; one may stand there twice.
            first: a place in 0 … P.
            end: likewise; P by default.

        Raises:
            MemoryError: there is no room.
        """
        end = self.tokens if end is None else end
        if list(rows) == list(range(self.rows)) and (first, end) == (0, self.tokens):
            return self
        return self._cut(rows, first, end)


AnyCache = TypeVar("AnyCache", bound=Cache)


def joined(caches: Sequence[AnyCache]) -> AnyCache:
    """All rows of caches of one runner, in order. One that stands there several times is copied once.

    Args:
        caches: one or more; shorter ones are padded on the left.

    Raises:
        MemoryError: there is no room.
    """
    starts, distinct, rows = dict[int, int](), list[AnyCache](), 0
    for cache in caches:
        if id(cache) not in starts:
            starts[id(cache)] = rows
            distinct.append(cache)
            rows += cache.rows
    whole = distinct[0].beside(distinct[1:]) if len(distinct) > 1 else distinct[0]
    return whole.part([starts[id(cache)] + row for cache in caches for row in range(cache.rows)])


def resized(array: Array, axis: int, size: int | None) -> Array:
    """The array with `size` places along an axis: cut, or widened with zeros; itself where that is None."""
    if size is None or size == array.shape[axis]:
        return array
    if size < array.shape[axis]:
        return array.take(np.arange(size), axis)
    more = size - array.shape[axis]
    return np.pad(array, [(0, more if here == axis else 0) for here in range(array.ndim)])


class HostCache(Cache):
    """A cache in numpy arrays: of a runner that takes and gives arrays.

    Args:
        tensors: past_key_values.{i}.key|value → [B, G, P, D].
        rows: B; a model without any attention has no tensor to tell it by.
        tokens: P.
    """

    def __init__(self, tensors: Mapping[str, Array], rows: int, tokens: int) -> None:
        self.tensors, self.rows, self.tokens = dict(tensors), rows, tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.tensors.values())

    def arrays(self) -> dict[str, Array]:
        """The arrays themselves."""
        return dict(self.tensors)

    def beside(self, others: Sequence[Self]) -> Self:
        """Copies every row once, into its place."""
        caches = [self, *others]
        rows, tokens = sum(cache.rows for cache in caches), max(cache.tokens for cache in caches)
        tensors = {}
        for name, array in self.tensors.items():
            whole = np.zeros((rows, array.shape[1], tokens, array.shape[3]), array.dtype)
            row = 0
            for cache in caches:
                whole[row : row + cache.rows, :, tokens - cache.tokens :] = cache.tensors[name]
                row += cache.rows
            tensors[name] = whole
        return type(self)(tensors, rows, tokens)

    def _cut(self, rows: Sequence[int], first: int, end: int) -> Self:
        """A list of rows makes numpy copy: a view would keep all rows in memory."""
        tensors = {name: array[list(rows), :, first:end] for name, array in self.tensors.items()}
        return type(self)(tensors, len(rows), end - first)
