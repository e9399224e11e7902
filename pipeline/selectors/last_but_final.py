"""The n before the final layer, which stays (Tyukin et al. 2024, §3.2; the simple heuristic of Gromov et al. 2024, §4.4)."""

from __future__ import annotations

from pipeline.types import SkipSet, UserError


def choose(kind: str, count: int, num_layers: int) -> SkipSet:
    if count > num_layers - 1:
        raise UserError(
            f"last-but-final keeps the final layer: at most {num_layers - 1} of {num_layers} layers can go, not {count}"
        )
    return SkipSet.of(kind, range(num_layers - 1 - count, num_layers - 1))
