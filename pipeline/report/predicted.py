"""Tables 7-10 of Tyukin et al. beside what launches and what bytes predict, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from pipeline.evals import roofline
from pipeline.evals.gpus import Gpu
from pipeline.evals.predict import launches
from pipeline.evals.predict.predict import PRECISION, saved_percent
from pipeline.models.config import Config
from pipeline.models.costs import Workload
from pipeline.models.named_configs import NamedConfig
from pipeline.report import papers
from pipeline.report.tyukin import FRACTIONS, NAMES
from pipeline.types import BASE, SkipSet, count_of

AIM = 3.0
"""Points of %: nearer than that, a cell is taken for predicted."""


@dataclass(frozen=True, slots=True)
class PredictedCell:
    """One cell of the paper's.

    Attributes:
        table, length, select: of the paper: its number, tokens of a sequence, which layers are left out.
        kept: % of the layers, as the paper labels it.
        kind: 'block', 'attn' or 'mlp'.
        count: layers that are left out.
        paper: % of the time that it saved.
        launches, roofline: % that they predict.
    """

    table: str
    length: int
    select: str
    kept: str
    kind: str
    count: int
    paper: float
    launches: float
    roofline: float

    @property
    def launches_off(self) -> float:
        """Points by which launches predict more than was measured."""
        return self.launches - self.paper

    @property
    def roofline_off(self) -> float:
        """Points by which the roofline predicts more than was measured."""
        return self.roofline - self.paper

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "launches_off": self.launches_off, "roofline_off": self.roofline_off}


@dataclass(frozen=True, slots=True)
class PaperComparison:
    """All of the paper's cells of one model.

    Attributes:
        gpu: of the roofline; the paper does not name its own.
        base_launches: kernels of the whole model.
        base_ms: (tokens of a sequence, ms that the paper's base took for 1 token).
        cells: in the paper's order.
    """

    gpu: Gpu
    base_launches: int
    base_ms: tuple[tuple[int, float], ...]
    cells: tuple[PredictedCell, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": papers.citation("tyukin", "tables 7-10"),
            "aim": AIM,
            "base_launches": self.base_launches,
            "base_ms": dict(self.base_ms),
            "cells": [cell.plain() for cell in self.cells],
        }


def comparison(model: NamedConfig, gpu: Gpu) -> PaperComparison | None:
    """The paper's cells of a model; None where there are none, or it has other layers than the paper's.

    Args:
        model: by its name.
        gpu: of the roofline.
    """
    name, config = papers.name_of(model.name), model.config
    rows = [row for row in papers.latencies() if row["model"] == name]
    if not rows or config.get("num_hidden_layers") != papers.layers(model.name):
        return None
    cells = [
        _cell(config, gpu, row, kind)
        for row in rows
        for kind in NAMES
        if row[f"{kind}_s"] and row["kept"] != "100"
    ]
    base = {int(row["length"]): float(row["block_s"]) for row in rows if row["kept"] == "100"}
    return PaperComparison(gpu, launches.count(config, BASE, decode=False), tuple(base.items()), tuple(cells))


def _cell(config: Config, gpu: Gpu, row: dict[str, str], kind: str) -> PredictedCell:
    """Which layers are left out changes nothing in a Llama: all cost the same."""
    layers, length = config["num_hidden_layers"], int(row["length"])
    count = count_of(FRACTIONS[row["kept"]], layers)
    skip = SkipSet.of(kind, range(layers - count, layers))

    def saved(cost: Callable[[SkipSet], float]) -> float:
        return saved_percent(cost(skip), cost(BASE))

    return PredictedCell(
        table=row["table"],
        length=length,
        select=row["select"],
        kept=row["kept"],
        kind=kind,
        count=count,
        paper=float(row[f"{kind}_saved"]),
        launches=saved(lambda one: launches.count(config, one, decode=False)),
        roofline=saved(lambda one: roofline.traffic(config, one, PRECISION, Workload(length)).seconds(gpu)),
    )


def spread(cells: tuple[PredictedCell, ...]) -> float:
    """Largest difference, in points, of two of the paper's cells that have the same work to do."""
    groups: dict[tuple[int, str, int], list[float]] = {}
    for cell in cells:
        groups.setdefault((cell.length, cell.kind, cell.count), []).append(cell.paper)
    return max((max(group) - min(group) for group in groups.values()), default=0.0)


def table(one: PaperComparison) -> Table:
    """For a person: a row for each cell of the paper's, and by how much each prediction is off."""
    rows = Table(title=f"% of the time saved: {papers.citation('tyukin', 'tables 7-10')}")
    rows.caption = _caption(one)
    for heading in ("table", "tokens", "left out"):
        rows.add_column(heading, no_wrap=True)
    for heading in ("paper", "launches", "off", "bytes", "off"):
        rows.add_column(heading, justify="right", no_wrap=True)
    last = None
    for cell in one.cells:
        if last not in (None, cell.table):
            rows.add_section()
        last = cell.table
        rows.add_row(
            cell.table,
            str(cell.length),
            f"{cell.count} {cell.kind}, {cell.select}",
            f"{cell.paper:.1f}",
            f"{cell.launches:.1f}",
            _words(cell.launches_off),
            f"{cell.roofline:.1f}",
            _words(cell.roofline_off),
        )
    return rows


def _words(off: float) -> str:
    return f"{off:+.1f}" + (" " if abs(off) <= AIM else "*")


def _caption(one: PaperComparison) -> str:
    near = {
        "launches": sum(abs(cell.launches_off) <= AIM for cell in one.cells),
        "bytes": sum(abs(cell.roofline_off) <= AIM for cell in one.cells),
    }
    base = " and ".join(
        f"{ms:.2f} ms at {length} tokens ({1e3 * ms / one.base_launches:.1f} µs a launch)"
        for length, ms in one.base_ms
    )
    lines = (
        f"off: points; * more than {AIM:g}. Of {len(one.cells)} cells, launches are within {AIM:g} in "
        f"{near['launches']}, bytes in {near['bytes']}",
        f"two of the paper's cells with the same work differ by up to {spread(one.cells):.1f} points",
        f"its base took {base}: {one.base_launches} launches",
        f"bytes: roofline of {one.gpu.name}; the paper names no GPU",
    )
    return "\n".join(lines)
