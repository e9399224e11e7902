"""The tables of `make bench-select`, as Markdown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.types import SkipSet

Row = dict[str, Any]
PAIRED = ("kl", "kl_linear", "loss", "loss_linear")
"""What a row holds for each sequence, so that two rules can be compared sequence by sequence."""
MEASURE = "greedy"
"""The rule that the others are compared with, at equal count."""


class Cost(NamedTuple):
    """What a set had to cost: a fraction of a kind's sublayers, or what makes the model so much faster."""

    kind: str
    fraction: float | None
    speedup: float | None

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.fraction:.0%}" if self.speedup is None else f"{self.kind} {self.speedup:g}x"
        )

    @classmethod
    def of(cls, row: Row) -> Cost:
        """Of a row."""
        return cls(row["kind"], row["fraction"], row.get("speedup"))


def rows(out: Path) -> list[Row]:
    """What has been measured."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def markdown(every: list[Row]) -> str:
    """All tables of all models."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in every):
        own = [row for row in every if row["model"] == model]
        for read in dict.fromkeys(row["texts"] for row in own):
            same = [row for row in own if row["texts"] == read]
            parts += [_means(same, value) for value in PAIRED] + [_differences(same), _seconds(same)]
        parts.append(_stability(own))
    return "\n".join(parts)


def _costs(measured: list[Row]) -> list[Cost]:
    """What sets had to cost, in order."""
    return sorted(
        {Cost.of(row) for row in measured}, key=lambda one: (one.speedup or 0, one.kind, one.fraction)
    )


def _rule(row: Row) -> str:
    """The rule without its seed."""
    return str(row["rule"].split(" ")[0])


def _values(measured: Iterable[Row], rule: str, cost: Cost, value: str) -> npt.NDArray[np.float64] | None:
    """[N] of each sequence, of `random` the mean of its seeds; None where it was not measured."""
    found = [row[value] for row in measured if _rule(row) == rule and Cost.of(row) == cost and value in row]
    return np.mean(found, axis=0) if found else None


def _text(each: npt.NDArray[np.float64] | None) -> str:
    """Mean ± standard error over sequences."""
    return "" if each is None else f"{each.mean():.3f} ± {each.std(ddof=1) / len(each) ** 0.5:.3f}"


def _means(measured: list[Row], value: str) -> str:
    """Rules down, costs across."""
    costs = _costs(measured)
    cells = [
        (rule, *(_text(_values(measured, rule, cost, value)) for cost in costs))
        for rule in dict.fromkeys(_rule(row) for row in measured if value in row)
    ]
    return _table(f"{_of(measured)}: {value}, nats a token", ("rule", *map(str, costs)), cells)


def _differences(measured: list[Row]) -> str:
    """KL less that of MEASURE at the same cost; of one kind less that of both kinds at the same time."""
    cells = []
    for cost, rule in itertools.product(_costs(measured), dict.fromkeys(map(_rule, measured))):
        timed = cost.speedup is not None
        against = (rule, cost._replace(kind="any")) if timed else (MEASURE, cost)
        if (rule, cost) == against:
            continue
        pairs = [
            (_values(measured, rule, cost, value), _values(measured, *against, value))
            for value in ("kl", "kl_linear")
        ]
        differences = [None if a is None or b is None else a - b for a, b in pairs]
        if any(one is not None for one in differences):
            cells.append((str(cost), rule, f"{against[0]} of {against[1]}", *map(_text, differences)))
    headings = ("cost", "rule", "less", "KL", "KL with maps")
    return _table(f"{_of(measured)}: differences, sequence by sequence", headings, cells)


def _seconds(measured: list[Row]) -> str:
    """Processor seconds of each choice; what a rule had from one before is not in it."""
    costs = _costs(measured)
    spent = {(_rule(row), Cost.of(row)): f"{row['seconds']:.0f}" for row in measured}
    rules = dict.fromkeys(map(_rule, measured))
    cells = [(rule, *(spent.get((rule, cost), "") for cost in costs)) for rule in rules]
    return _table(f"{_of(measured)}: processor seconds", ("rule", *map(str, costs)), cells)


def _stability(measured: list[Row]) -> str:
    """Of rules whose choice was made on several texts: how alike the sets are, and how far KL varies."""
    cells = []
    for rule, cost in dict.fromkeys((row["rule"], Cost.of(row)) for row in measured):
        own = [row for row in measured if row["rule"] == rule and Cost.of(row) == cost]
        if len(own) < 2:
            continue
        sets = [_sublayers(SkipSet.parse(row["skip"])) for row in own]
        alike = [len(one & other) / len(one | other) for one, other in itertools.combinations(sets, 2)]
        ranges = (", ".join(f"{np.mean(row[value]):.3f}" for row in own) for value in ("kl", "kl_linear"))
        cells.append((rule, str(cost), f"{len(own)}", f"{np.mean(alike):.2f}", *ranges))
    headings = ("rule", "cost", "texts", "Jaccard", "KL of each", "KL with maps of each")
    return _table(f"{measured[0]['model']}: choices on several texts", headings, cells)


def _sublayers(skip: SkipSet) -> set[tuple[str, int]]:
    return {("attn", layer) for layer in skip.attention} | {("mlp", layer) for layer in skip.mlp}


def _of(measured: list[Row]) -> str:
    return f"{measured[0]['model']}, chosen on {measured[0]['texts']}"


def _table(title: str, headings: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])
