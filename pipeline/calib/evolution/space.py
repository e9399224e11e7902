"""The masks of a fixed cost that a search goes through, and its steps from one to another.

By count the cost is the number of sublayers that go. By time it is what they take: of two kinds, so many of
one need so many of the other, and a step may put some back of one kind and leave out some of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.calib.latency_budget import OutOfReach
from pipeline.store.records import SublayerTimes
from pipeline.types import BASE, SkipSet, UserError

MOST_SWAPS = 3
"""A mutation has min(a, b) swaps, a and b drawn from 1 … 3: small steps more often than large ones."""
Counts = tuple[int, ...]
"""Of each kind, how many go."""
Move = tuple[tuple[int, int], ...]
"""Of each kind, how many are put back and how many are left out."""


@dataclass(frozen=True, slots=True)
class Space:
    """Masks of one cost.

    Attributes:
        kinds: what goes: ('attn',), ('mlp',), ('block',), or ('attn', 'mlp') together.
        num_layers: L.
        front: how many of each kind may go together, in the order of the first kind's numbers. No fewer of
            either would save as much.
    """

    kinds: tuple[str, ...]
    num_layers: int
    front: tuple[Counts, ...]

    @classmethod
    def by_count(cls, kind: str, count: int, num_layers: int) -> Space:
        """The masks without `count` sublayers of a kind, attn, mlp or block (whole layers)."""
        return cls((kind,), num_layers, ((count,),))

    @classmethod
    def by_time(cls, kind: str, times: SublayerTimes, saved: float, num_layers: int) -> Space:
        """The masks that save a time, and no more than they must.

        Args:
            kind: attn, mlp, block, or any for attention and MLP together.
            times: seconds of a sublayer of each kind.
            saved: seconds to save.
            num_layers: L.

        Raises:
            OutOfReach: all of the kind together save less.
        """
        kinds = kinds_of(kind)
        *other, last = (times.of(SkipSet.of(one, [0])) for one in kinds)
        need = saved - 1e-6 * times.whole  # what latency_budget.solve takes for enough
        front: list[Counts] = []
        for count in range(num_layers + 1 if other else 1):
            fewest = _fewest(last, need - sum(other) * count, num_layers)
            if fewest is not None and (not front or fewest < front[-1][-1]):
                front.append((count, fewest) if other else (fewest,))
        if not front:
            raise OutOfReach(f"leaving out every {' and '.join(kinds)} saves less than {saved:.3g} s")
        return cls(kinds, num_layers, tuple(front))

    def __contains__(self, skip: SkipSet) -> bool:
        """Whether a set has this cost, and is of these layers and kinds."""
        genes = self._genes(skip)
        is_there = max((*skip.attention, *skip.mlp, 0)) < self.num_layers
        return is_there and self._skip(genes) == skip and self._counts(genes) in self.front

    def mutated(self, skip: SkipSet, generator: np.random.Generator) -> SkipSet:
        """A mask some swaps away from one of the space; the same one where nothing can be swapped.

        What a swap has touched stays as it is, so that no swap undoes another.
        """
        genes = self._genes(skip)
        touched = [set[int]() for _ in self.kinds]
        for _ in range(int(generator.integers(1, MOST_SWAPS + 1, size=2).min())):
            moves = self._moves(genes, touched)
            if not moves:
                break
            move = moves[int(generator.integers(len(moves)))]
            for layers, fixed, (back, out) in zip(genes, touched, move, strict=True):
                gone = sorted(layers - fixed)
                there = sorted(set(range(self.num_layers)) - layers - fixed)
                returning = {int(layer) for layer in generator.choice(gone, back, replace=False)}
                leaving = {int(layer) for layer in generator.choice(there, out, replace=False)}
                layers -= returning
                layers |= leaving
                fixed |= returning | leaving
        return self._skip(genes)

    def completed(self, skip: SkipSet, damage: Mapping[SkipSet, float]) -> SkipSet:
        """The mask of the space that is the fewest changes away from a set; the least damage is left out.

        Args:
            skip: any set of these kinds.
            damage: of each sublayer alone.

        Raises:
            UserError: the set has what this space leaves in.
        """
        refuse_others(self.kinds, skip)
        genes = self._genes(skip)
        counts = self._counts(genes)
        wanted = min(self.front, key=lambda one: sum(abs(a - b) for a, b in zip(one, counts, strict=True)))
        for kind, layers, count in zip(self.kinds, genes, wanted, strict=True):
            order = sorted(range(self.num_layers), key=lambda layer: damage[SkipSet.of(kind, [layer])])
            ranked = [layer for layer in order if layer in layers] + [i for i in order if i not in layers]
            layers.clear()
            layers.update(ranked[:count])
        return self._skip(genes)

    def _genes(self, skip: SkipSet) -> list[set[int]]:
        return _genes(self.kinds, skip)

    def _skip(self, genes: list[set[int]]) -> SkipSet:
        return _skip(self.kinds, genes)

    @staticmethod
    def _counts(genes: list[set[int]]) -> Counts:
        return tuple(len(layers) for layers in genes)

    def _moves(self, genes: list[set[int]], touched: list[set[int]]) -> list[Move]:
        """The swaps that can be made: within a kind, or to a neighbour on the front."""
        still = tuple((0, 0) for _ in self.kinds)
        moves = [(*still[:k], (1, 1), *still[k + 1 :]) for k in range(len(self.kinds))]
        here = self.front.index(counts := self._counts(genes))
        neighbours = self.front[max(0, here - 1) : here] + self.front[here + 1 : here + 2]
        moves += [
            tuple((max(0, a - b), max(0, b - a)) for a, b in zip(counts, there, strict=True))
            for there in neighbours
        ]
        free = [
            (len(layers - fixed), self.num_layers - len(layers | fixed))
            for layers, fixed in zip(genes, touched, strict=True)
        ]

        def is_possible(move: Move) -> bool:
            pairs = zip(move, free, strict=True)
            return all(back <= gone and out <= left for (back, out), (gone, left) in pairs)

        return [move for move in moves if is_possible(move)]


def kinds_of(kind: str) -> tuple[str, ...]:
    """What goes for a time: attn, mlp or block alone, or attention and MLP together for any."""
    return ("attn", "mlp") if kind == "any" else (kind,)


def refuse_others(kinds: tuple[str, ...], skip: SkipSet) -> None:
    """Refuses a set that leaves out what is not of some kinds.

    Raises:
        UserError: it does.
    """
    if _skip(kinds, _genes(kinds, skip)) != skip:
        raise UserError(f"{skip.name:.200} leaves out more than {' and '.join(kinds)} sublayers")


def _genes(kinds: tuple[str, ...], skip: SkipSet) -> list[set[int]]:
    """Of each kind, the layers that go."""
    return [set(skip.mlp if kind == "mlp" else skip.attention) for kind in kinds]


def _skip(kinds: tuple[str, ...], genes: list[set[int]]) -> SkipSet:
    """The set that leaves out layers of each kind."""
    skip = BASE
    for kind, layers in zip(kinds, genes, strict=True):
        skip |= SkipSet.of(kind, layers)
    return skip


def _fewest(seconds: float, need: float, most: int) -> int | None:
    """How many sublayers of so many seconds each save a time; None where `most` are too few."""
    if need <= 0:
        return 0
    if seconds <= 0:
        return None
    count = math.ceil(need / seconds)
    return count if count <= most else None
