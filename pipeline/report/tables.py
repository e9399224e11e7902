"""The papers' tables in the papers' layout: each cell beside the paper's own number, or a gap that says why it is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.report import papers
from pipeline.report.collect import variant_for
from pipeline.report.rows import Artefact, Findings, Job, Scored, Source

PAPER = ("arc", "hellaswag", "truthfulqa", "mmlu")
"""Whose mean is the `average` of Tyukin et al.'s tables."""
HEADINGS = {
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "truthfulqa": "TruthfulQA",
    "mmlu": "MMLU",
    "average": "Average",
}
FRACTIONS = {"66": 0.33, "75": 0.25, "90": 0.10, "100": 0.0}
"""% kept, as the paper labels it, and the fraction left out that it means."""
NAMES = {"block": "full layers", "attn": "attention sublayers", "mlp": "MLP sublayers"}
STAGES = {"last": "the last ones", "last-but-final": "the last ones but the final layer"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number, or the reason why there is none.

    Attributes:
        value, stderr: in the table's unit.
        digits: after the point.
        paper: the paper's number; `difference` is ours less the paper's.
        notes: what must be known before believing it.
        gap: why there is no number of ours.
    """

    value: float | None = None
    stderr: float | None = None
    digits: int = 1
    paper: float | None = None
    source: Source | None = None
    notes: tuple[str, ...] = ()
    gap: str | None = None

    @property
    def difference(self) -> float | None:
        return None if self.value is None or self.paper is None else self.value - self.paper

    def text(self) -> str:
        """'52.1 ±1.4 *', or the gap in words."""
        if self.value is None:
            return self.gap or "not run"
        spread = "" if self.stderr is None else f" ±{self.stderr:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{spread}" + (" *" if self.notes else "")

    def beside(self) -> str:
        """'paper 53.1, difference −1.0'; '' where the paper has no number."""
        if self.paper is None:
            return ""
        words = f"paper {self.paper:.{self.digits}f}"
        return words if self.difference is None else f"{words}, difference {self.difference:+.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of any kind: the first column heads its rows."""

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]

    def notes(self) -> list[str]:
        """What the asterisks mean."""
        return list(dict.fromkeys(note for _, cells in self.rows for cell in cells for note in cell.notes))


class Lookup:
    """Artefacts and jobs by variant."""

    def __init__(self, found: Findings) -> None:
        self.artefacts: dict[tuple[str, str], list[Artefact]] = {}
        self.jobs: dict[tuple[str, str], list[Job]] = {}
        layers = {a.model: a.layers for a in found.artefacts}
        self.layers = layers | {m: papers.layers(m) for m in found.models() if layers.get(m) is None}
        for artefact in found.artefacts:
            self.artefacts.setdefault((artefact.model, artefact.variant), []).append(artefact)
        for job in found.jobs:
            if variant := job.variant or self._planned(job):
                self.jobs.setdefault((job.model, variant), []).append(job)

    def _planned(self, job: Job) -> str | None:
        layers = self.layers.get(job.model)
        if job.frac == 0:
            return "base"
        if None in (layers, job.kind, job.frac) or job.select not in STAGES:
            return None
        return variant_for(str(job.kind), float(job.frac or 0), int(layers or 0), str(job.select))

    def gap(self, model: str, variant: str, stage: str, task: str | None = None) -> str:
        """Why there is no number: 'failed: …', 'needs a GPU', 'not run yet', 'not run'."""
        jobs = [j for j in self.jobs.get((model, variant), []) if j.state != "done"]
        mine = [j for j in jobs if j.stage == stage and (task is None or j.task in (None, task))]
        for job in mine:
            if job.state == "failed":
                return f"failed: {job.error or 'no reason is written'}"
        for job in jobs:
            if job.state == "failed" and job.stage not in ("score", "bench", "heal"):
                return f"not run: its {job.stage} failed: {job.error or 'no reason is written'}"
        for artefact in self.artefacts.get((model, variant), []):
            if artefact.check and artefact.check.startswith("failed"):
                return f"not run: its check {artefact.check}"
        if mine:
            return {"running": "running"}.get(mine[0].state, "not run yet")
        unproven = [
            a.unproven for a in self.artefacts.get((model, variant), []) if a.unproven and not a.times
        ]
        return unproven[0] if unproven and stage == "bench" else "not run"


def average(artefact: Artefact) -> tuple[float, float | None, list[Scored]] | None:
    """(mean, standard error, the four scores) in %, all four under one protocol and limit; None unless all are there."""
    by_way: dict[tuple[str, int | None], list[Scored]] = {}
    for score in artefact.scores:
        if score.benchmark in PAPER and score.num_fewshot is None:
            by_way.setdefault((score.protocol, score.limit), []).append(score)
    whole = [scores for scores in by_way.values() if {s.benchmark for s in scores} == set(PAPER)]
    if not whole:
        return None
    scores = max(
        whole,
        key=lambda four: (all(s.checked for s in four), all(s.whole for s in four), sum(s.n for s in four)),
    )
    errors = [s.stderr for s in scores]
    spread = (
        None if None in errors else 100 * math.sqrt(sum(e * e for e in errors if e is not None)) / len(PAPER)
    )
    return 100 * sum(s.value for s in scores) / len(PAPER), spread, scores


def tyukin(found: Findings) -> list[Table]:
    """Tables 1-10, with a row for each of our models and for each of the paper's that was not measured here."""
    lookup = Lookup(found)
    models = _models(found)
    return [_scores(lookup, models, n) for n in range(1, 7)] + [
        _latency(lookup, models, n) for n in range(7, 11)
    ]


def _models(found: Findings) -> list[tuple[str, str | None]]:
    """(our name or the paper's, the paper's name)."""
    mine: list[tuple[str, str | None]] = [(model, papers.name_of(model)) for model in found.models()]
    named = {paper for _, paper in mine}
    return mine + [
        (m["name"], m["name"]) for m in papers.sources()["tyukin"]["models"] if m["name"] not in named
    ]


def _rows(
    models: list[tuple[str, str | None]], make: Callable[[str, str | None, str], list[Cell]]
) -> list[tuple[str, list[Cell]]]:
    return [(f"{model}-{kept}%", make(model, paper, kept)) for model, paper in models for kept in FRACTIONS]


def _variant(lookup: Lookup, model: str, kind: str, kept: str, rule: str) -> str | None:
    layers = lookup.layers.get(model) or papers.layers(model)
    return (
        "base"
        if kept == "100"
        else None
        if layers is None
        else variant_for(kind, FRACTIONS[kept], layers, rule)
    )


def _scores(lookup: Lookup, models: list[tuple[str, str | None]], number: int) -> Table:
    theirs = {(row["model"], row["kept"]): row for row in papers.scores() if row["table"] == str(number)}
    one = next(iter(theirs.values()))
    kind, rule = one["kind"], one["select"]

    def cells(model: str, paper: str | None, kept: str) -> list[Cell]:
        variant = _variant(lookup, model, kind, kept, rule)
        row = theirs.get((paper or "", kept), {})
        return [_score_cell(lookup, model, variant, name, _float(row.get(name))) for name in HEADINGS]

    return Table(
        name=f"tyukin-{number:02d}",
        title=f"Without {NAMES[kind]}, {STAGES[rule]} ({rule})",
        caption=f"Scores in %, ± standard error; n% is what is kept. Beside: {papers.citation('tyukin', f'table {number}')}.",
        headings=tuple(HEADINGS.values()),
        rows=_rows(models, cells),
    )


def _score_cell(lookup: Lookup, model: str, variant: str | None, benchmark: str, paper: float | None) -> Cell:
    if variant is None:
        return Cell(paper=paper, gap="not run: how many layers the model has is not known here")
    mine = lookup.artefacts.get((model, variant), [])
    if benchmark == "average":
        means = [(a, mean) for a in mine if (mean := average(a))]
        if not means:
            return Cell(paper=paper, gap=_average_gap(lookup, model, variant, mine))
        _, (value, spread, scores) = max(
            means, key=lambda pair: (sum(s.n for s in pair[1][2]), pair[0].precision == "fp16")
        )
        notes = tuple(dict.fromkeys(note for s in scores for note in s.marks()))
        return Cell(value, spread, paper=paper, source=scores[0].source, notes=notes)
    told = [(a.precision == "fp16", s) for a in mine if (s := a.score(benchmark))]
    if not told:
        return Cell(paper=paper, gap=lookup.gap(model, variant, "score", benchmark))
    _, best = max(told, key=lambda pair: (pair[1].checked, pair[1].whole, pair[1].n, pair[0]))
    spread = None if best.stderr is None else 100 * best.stderr
    return Cell(100 * best.value, spread, paper=paper, source=best.source, notes=best.marks())


def _average_gap(lookup: Lookup, model: str, variant: str, mine: list[Artefact]) -> str:
    scored = {s.benchmark for a in mine for s in a.scores}
    missing = [HEADINGS[name] for name in PAPER if name not in scored]
    if len(missing) == len(PAPER):
        return lookup.gap(model, variant, "score")
    return f"needs {', '.join(missing)}" if missing else "needs all four under one protocol and limit"


def _latency(lookup: Lookup, models: list[tuple[str, str | None]], number: int) -> Table:
    theirs = {(row["model"], row["kept"]): row for row in papers.latencies() if row["table"] == str(number)}
    one = next(iter(theirs.values()))
    length, rule = int(one["length"]), one["select"]

    def cells(model: str, paper: str | None, kept: str) -> list[Cell]:
        row, made = theirs.get((paper or "", kept), {}), []
        for kind in ("block", "attn", "mlp"):
            variant = _variant(lookup, model, kind, kept, rule)
            made += _time_cells(
                lookup, model, variant, length, _float(row.get(f"{kind}_s")), _float(row.get(f"{kind}_saved"))
            )
        return made

    return Table(
        name=f"tyukin-{number:02d}",
        title=f"Time for 1 token on each of 1000 sequences of {length} tokens, without {STAGES[rule]} ({rule})",
        caption="Seconds, and % of the base's time saved with half of its 95 % interval; devices differ: compare the %. "
        f"Beside: {papers.citation('tyukin', f'table {number}')}.",
        headings=("Full, s", "Full, %", "Attention, s", "Attention, %", "ffwd, s", "ffwd, %"),
        rows=_rows(models, cells),
    )


def _time_cells(
    lookup: Lookup, model: str, variant: str | None, length: int, seconds: float | None, saved: float | None
) -> list[Cell]:
    if variant is None:
        gap = "not run: how many layers the model has is not known here"
        return [Cell(paper=seconds, digits=2, gap=gap), Cell(paper=saved, digits=2, gap=gap)]
    times = [
        (a.runner != "graph", t) for a in lookup.artefacts.get((model, variant), []) if (t := a.time(length))
    ]
    if not times:
        gap = lookup.gap(model, variant, "bench")
        return [Cell(paper=seconds, digits=2, gap=gap), Cell(paper=saved, digits=2, gap=gap)]
    _, best = max(times, key=lambda pair: (pair[1].checked, pair[1].enough_clean, pair[0], pair[1].sequences))
    device = (f"{model}: {best.device}",)
    scaled = () if best.sequences == 1000 else (f"scaled to 1000 from {best.sequences} sequences",)
    half = (best.interval[1] - best.interval[0]) / 2 if variant != "base" else None
    value = best.saved if variant != "base" else 0.0
    return [
        Cell(
            best.total * 1000 / best.sequences,
            None,
            2,
            seconds,
            best.source,
            (*best.marks(), *scaled, *device),
        ),
        Cell(value, half, 2, saved, best.source, best.marks()),
    ]


def _float(text: str | None) -> float | None:
    return float(text) if text else None


def numbers(tables: Iterable[Table]) -> list[tuple[str, str, str, Cell]]:
    """(table, row, column, cell) of every cell."""
    return [
        (table.name, head, column, cell)
        for table in tables
        for head, cells in table.rows
        for column, cell in zip(table.headings, cells, strict=True)
    ]
