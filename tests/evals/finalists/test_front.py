"""The front of hand-made points, and of random ones as its definition has it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evals.finalists.front import front


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1.0, 1.0)], [True]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], [True, True, True]),
        ([(1.0, 3.0), (2.0, 4.0), (3.0, 1.0)], [True, False, True]),
        ([(3.0, 1.0), (1.0, 3.0), (3.0, 3.0)], [True, True, False]),  # the last is beaten by both
        ([(1.0, 2.0), (1.0, 1.0), (2.0, 1.0)], [False, True, False]),  # ties on either axis
        ([(1.0, 1.0), (1.0, 1.0), (0.5, 2.0)], [True, True, True]),  # equal points
        ([(2.0, 1.0), (2.0, 1.0), (1.0, 1.0)], [False, False, True]),  # equal, and both beaten
        ([(1.0, 0.0), (2.0, -1.0), (2.0, -0.5)], [True, True, False]),
    ],
)
def test_what_nothing_beats(points: list[tuple[float, float]], expected: list[bool]) -> None:
    assert front(points) == expected


def test_it_is_what_the_definition_says() -> None:
    """A few values on each axis, so that ties and equal points are many."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = [(float(x), float(y)) for x, y in rng.integers(0, 6, (12, 2))]
        beaten = [any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]
        assert front(points) == [not one for one in beaten]
