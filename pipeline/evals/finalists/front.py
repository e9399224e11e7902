"""The Pareto front: what nothing else beats on both of two axes."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each point whether it is on the front, where less is better on both axes.

    A point is beaten by one that is no worse on either axis and better on one. So equal points stay together,
    and of those that tie on one axis only the best on the other stays.

    Args:
        points: (cost, cost) each, finite.
    """
    on_it = [False] * len(points)
    least, its_cost = float("inf"), float("inf")
    for k in sorted(range(len(points)), key=points.__getitem__):
        cost, other = points[k]
        if other < least or (other == least and cost == its_cost):
            least, its_cost, on_it[k] = other, cost, True
    return on_it
