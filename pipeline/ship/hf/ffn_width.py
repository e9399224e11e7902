"""The one number by which nemotron-nas says the width of an MLP.

Legend: C hidden size, F width of the MLP.

Source: vLLM `model_executor/models/nemotron_nas.py`, mlx-lm `models/nemotron-nas.py`, which rounds the number
to six decimals first.
"""

from __future__ import annotations

STEP = 256
"""Every width is a multiple of it."""


def width(ffn_mult: float, hidden: int) -> int:
    """F that the engines make of a number: ⌈⌊2 · ffn_mult · C / 3⌋ / 256⌉ · 256."""
    return -(-int(2 * ffn_mult * hidden / 3) // STEP) * STEP


def multiplier(intermediate: int, hidden: int) -> float | None:
    """The number that gives exactly F, whole and rounded to six decimals; None where no number does.

    3F / 2C where that serves, as the published models have it: 4.03125 of Llama 2 7B, 5.25 of Llama 3 8B.

    Args:
        intermediate: F.
        hidden: C.
    """
    if intermediate % STEP:
        return None
    exact, inside = (3 * size / (2 * hidden) for size in (intermediate, intermediate - STEP // 2))
    return next(n for n in (exact, inside) if width(n, hidden) == width(round(n, 6), hidden) == intermediate)
