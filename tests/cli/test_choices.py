"""How a choice is printed."""

from __future__ import annotations

from pipeline.calib.selectors import Choice, ModelStatistics, Question
from pipeline.cli import choices
from pipeline.types import SkipSet


def test_a_choice_for_a_person() -> None:
    stays = tuple((f"mlp{layer}", 0.5 - layer / 10) for layer in range(7))
    choice = Choice(SkipSet(mlp=(8, 9)), "cosine; the largest goes", (("mlp8", 0.9), ("mlp9", 0.8)), stays)
    record = choices.record("cosine", Question("mlp", 2, 10, ModelStatistics()), choice)
    assert (record.skip, record.mlp, record.kind, record.count) == ("mlp8-9", (8, 9), "mlp", 2)
    assert choices.text(record).splitlines() == [
        "mlp8-9",
        "cosine; the largest goes",
        "  goes   mlp8         0.9000",
        "  goes   mlp9         0.8000",
        *(f"  stays  {name:<12} {value:.4f}" for name, value in stays[:5]),
    ]
