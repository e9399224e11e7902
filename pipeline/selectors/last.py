"""The last n of the kind (Tyukin et al. 2024, §2.1)."""

from __future__ import annotations

from pipeline.types import SkipSet


def choose(kind: str, count: int, num_layers: int) -> SkipSet:
    return SkipSet.of(kind, range(num_layers - count, num_layers))
