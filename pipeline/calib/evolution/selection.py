"""One generation: mutations of the parent, compared on few sequences, the best few again on all of them.

The scheme is EvoPress's (Sieberling et al. 2024, arXiv:2410.14649, algorithm 1) with two rounds of
selection; the parent takes part in the last one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.calib.evolution.divergences import Divergences
from pipeline.calib.evolution.space import Space
from pipeline.store.records import EvoGeneration
from pipeline.types import SkipSet

OFFSPRING = 16
FINALISTS = 4
TRIES = 30
"""Mutations that are drawn for each offspring that is wanted, at most: most may be known."""


def offspring(
    space: Space, parent: SkipSet, known: Mapping[str, float], generator: np.random.Generator
) -> list[SkipSet]:
    """Distinct mutations of the parent that no generation has measured to the end; OFFSPRING at most.

    What was measured to the end was no better than what is the parent now, so it is not drawn again.
    """
    drawn: dict[SkipSet, None] = {}
    for _ in range(TRIES * OFFSPRING):
        child = space.mutated(parent, generator)
        if child.name not in known:
            drawn[child] = None
        if len(drawn) == OFFSPRING:
            break
    return list(drawn)


def next_generation(
    space: Space,
    known: Mapping[str, float],
    parent: tuple[str, float],
    divergences: Divergences,
    generator: np.random.Generator,
) -> EvoGeneration | None:
    """The generation after a parent; None where no mask is left.

    Args:
        space: of the masks.
        known: name → KL of what was measured on all sequences.
        parent: (name, KL) of the best so far.
        divergences: measures.
        generator: of this generation alone.
    """
    children = offspring(space, SkipSet.parse(parent[0]), known, generator)
    if not children:
        return None
    samples = len(divergences.tokens)
    rows = sorted(int(row) for row in generator.permutation(samples)[: first_rows(samples)])
    coarse = divergences.measure(children, rows).mean(axis=1)
    finalists = [children[k] for k in np.argsort(coarse, kind="stable")[:FINALISTS]]
    values = divergences.measure(finalists).mean(axis=1)
    measured = sorted(
        ((skip.name, float(value)) for skip, value in zip(finalists, values, strict=True)),
        key=lambda pair: pair[1],
    )
    best, value = min(parent, measured[0], key=lambda pair: pair[1])  # of equal ones the parent
    return EvoGeneration(best=best, value=value, measured=tuple(measured))


def first_rows(samples: int) -> int:
    """Of so many sequences, on how many offspring are first compared: an eighth."""
    return max(1, samples // 8)
