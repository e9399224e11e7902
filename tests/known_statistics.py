"""Statistics made by hand, whose answers are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.calib import selectors, similarity
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.store.records import EvoRecord, EvoStop, GreedyRecord, Removal, TextSource
from pipeline.types import SkipSet
from tests import tiny

L = 6


class Known(selectors.ModelStatistics):
    """Cosines and distances made by hand."""

    similarity = similarity.Similarity(
        tiny.similarity_record(),
        {
            "cosine_layer": np.array([[0.5, 0.9, 0.8, 0.9, 0.7, 0.1]]),
            "cosine_attn": np.array([[0.1, 0.2, 0.95, 0.96, 0.97, 0.3]]),
            "cosine_mlp": np.array([[0.1, 0.9, 0.4, 0.5, 0.98, 0.2]]),
            "angular": np.abs(
                np.subtract.outer(np.array([0, 3, 5, 5.5, 6, 9, 20]), np.array([0, 3, 5, 5.5, 6, 9, 20]))
            )
            / 100,
            "angular_mean": np.zeros((1, L + 1, L + 1)),
        },
        {},
    )

    def removals(self, kind: str, count: int) -> GreedyRecord:
        steps = tuple(
            Removal(removed=f"{kind}{L - 1 - k}", loss=1.0 + k, others=((f"{kind}0", 9.0, 4),))
            for k in range(L)
        )
        return GreedyRecord(
            model="tiny", weights="abc", kind=kind, samples=4, length=8, every=2, doubt=1.5,
            texts=TextSource(origin="words"), base_loss=0.5, steps=steps, flops=1.0, plain_flops=3.0,
        )  # fmt: skip

    def compensated_removals(self, kind: str, count: int) -> GreedyRecord:
        order = self.removals(kind, count)
        return order.replaced(steps=order.steps[::-1])

    def evolved(
        self, space: Space, start: Callable[[], SkipSet], seed: int, options: EvoOptions
    ) -> EvoRecord:
        return evolution(space, start().name, seed, "exhausted")

    def residuals(self, kind: str) -> dict[str, float]:
        return {f"{kind}{layer}": value for layer, value in enumerate((0.3, 0.02, 0.2, 0.01, 0.4, 0.02))}


def evolution(space: Space, start: str, seed: int, stopped: EvoStop) -> EvoRecord:
    """A search that has only measured its start."""
    return EvoRecord(
        model="tiny", weights="abc", contents="0" * 64, kinds=space.kinds, front=space.front, start=start,
        seed=seed, samples=4, length=8, every=4, first=1, offspring=2, finalists=1,
        texts=TextSource(origin="words"),
        start_value=1.0, stopped=stopped,
    )  # fmt: skip


def chosen(name: str, kind: str, count: int, layers: int = L, **more) -> selectors.Choice:
    return selectors.choose(
        name, selectors.Question(kind, count, layers, more.pop("statistics", Known()), **more)
    )
