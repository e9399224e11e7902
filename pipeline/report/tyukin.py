"""Tables 1-10 of Tyukin et al. in their layout: our numbers beside the paper's."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.evals.score.benchmarks import PAPER
from pipeline.report import papers
from pipeline.report.gaps import Lookup
from pipeline.report.quality import average
from pipeline.report.rows import ArtefactResults, Collection, SourcedLatency, trust
from pipeline.report.selection import variant_for
from pipeline.report.tables import PaperTable, TableCell

HEADINGS = {
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "truthfulqa": "TruthfulQA",
    "mmlu": "MMLU",
    "average": "Average",
}
FRACTIONS = {"66": 0.33, "75": 0.25, "90": 0.10, "100": 0.0}
"""% kept, as the paper labels it → the fraction left out that it means."""
NAMES = {"block": "full layers", "attn": "attention sublayers", "mlp": "MLP sublayers"}
RULES = {"last": "the last ones", "last-but-final": "the last ones but the final layer"}
UNKNOWN_LAYERS = "not run: how many layers the model has is not known here"

Models = list[tuple[str, str | None]]
"""(our name of a model, or the paper's where it was not measured; the paper's name)."""


def tables(collection: Collection) -> list[PaperTable]:
    """Tables 1-10, with a row for each of our models and each of the paper's not measured here."""
    lookup, models = Lookup(collection), _models(collection)
    scores = [_scores(lookup, models, number) for number in range(1, 7)]
    return scores + [_latency(lookup, models, number) for number in range(7, 11)]


def _models(collection: Collection) -> Models:
    measured: Models = [(model, papers.name_of(model)) for model in collection.models()]
    names = {paper for _, paper in measured}
    return measured + [(m.name, m.name) for m in papers.sources()["tyukin"].models if m.name not in names]


def _rows(
    models: Models, cells: Callable[[str, str | None, str], list[TableCell]]
) -> list[tuple[str, list[TableCell]]]:
    return [(f"{model}-{kept}%", cells(model, paper, kept)) for model, paper in models for kept in FRACTIONS]


def _variant(lookup: Lookup, model: str, kind: str, kept: str, rule: str) -> str | None:
    """The variant that a row of the paper means; None where the model's layers are not known."""
    if kept == "100":
        return "base"
    layers = lookup.layers_of(model)
    return None if layers is None else variant_for(kind, FRACTIONS[kept], layers, rule)


# ---- tables 1-6 ------------------------------------------------------------------------------------------


def _scores(lookup: Lookup, models: Models, number: int) -> PaperTable:
    printed = {(row["model"], row["kept"]): row for row in papers.scores() if row["table"] == str(number)}
    one = next(iter(printed.values()))
    kind, rule = one["kind"], one["select"]

    def cells(model: str, paper: str | None, kept: str) -> list[TableCell]:
        variant = _variant(lookup, model, kind, kept, rule)
        row = printed.get((paper or "", kept), {})
        return [_score_cell(lookup, model, variant, name, _float(row.get(name))) for name in HEADINGS]

    return PaperTable(
        name=f"tyukin-{number:02d}",
        title=f"Without {NAMES[kind]}, {RULES[rule]} ({rule})",
        caption="Scores in %, ± standard error; n% is what is kept. "
        f"Beside: {papers.citation('tyukin', f'table {number}')}.",
        headings=tuple(HEADINGS.values()),
        rows=_rows(models, cells),
    )


def _score_cell(
    lookup: Lookup, model: str, variant: str | None, benchmark: str, paper: float | None
) -> TableCell:
    if variant is None:
        return TableCell(paper=paper, gap=UNKNOWN_LAYERS)
    artefacts = [one for one in lookup.of(model, variant) if not one.quantisation]  # the paper's are not
    if benchmark == "average":
        return _average_cell(artefacts, paper) or TableCell(
            paper=paper, gap=_average_gap(lookup, model, variant)
        )
    scores = [(a.precision == "fp16", one) for a in artefacts if (one := a.score(benchmark))]
    if not scores:
        return TableCell(paper=paper, gap=lookup.gap(model, variant, "score", benchmark))
    _, best = max(scores, key=lambda pair: (*trust(pair[1]), pair[0]))
    value, stderr = best.score.value, best.score.stderr
    spread = None if stderr is None else 100 * stderr
    return TableCell(100 * value, spread, paper=paper, source=best.source, notes=best.marks())


def _average_cell(artefacts: list[ArtefactResults], paper: float | None) -> TableCell | None:
    """The average of most documents; of equals that of an fp16 artefact, as the paper's is."""
    averages = [(a.precision == "fp16", mean) for a in artefacts if (mean := average(a))]
    if not averages:
        return None
    _, best = max(averages, key=lambda pair: (sum(one.score.n for one in pair[1].scores), pair[0]))
    return TableCell(best.percent, best.stderr, paper=paper, source=best.source, notes=best.marks())


def _average_gap(lookup: Lookup, model: str, variant: str) -> str:
    scored = {one.score.benchmark for a in lookup.of(model, variant) for one in a.scores}
    missing = [HEADINGS[name] for name in PAPER if name not in scored]
    if len(missing) == len(PAPER):
        return lookup.gap(model, variant, "score")
    return f"needs {', '.join(missing)}" if missing else "needs all four under one protocol and limit"


# ---- tables 7-10 -----------------------------------------------------------------------------------------


def _latency(lookup: Lookup, models: Models, number: int) -> PaperTable:
    printed = {(row["model"], row["kept"]): row for row in papers.latencies() if row["table"] == str(number)}
    one = next(iter(printed.values()))
    length, rule = int(one["length"]), one["select"]

    def cells(model: str, paper: str | None, kept: str) -> list[TableCell]:
        row, pairs = printed.get((paper or "", kept), {}), []
        for kind in ("block", "attn", "mlp"):
            variant = _variant(lookup, model, kind, kept, rule)
            seconds, saved = _float(row.get(f"{kind}_s")), _float(row.get(f"{kind}_saved"))
            pairs += _latency_cells(lookup, model, variant, length, (seconds, saved))
        return pairs

    return PaperTable(
        name=f"tyukin-{number:02d}",
        title=f"Time for 1 token on each of 1000 sequences of {length} tokens, "
        f"without {RULES[rule]} ({rule})",
        caption="Seconds, and % of the base's time saved with half of its 95 % interval; "
        "devices differ: compare the %. "
        f"Beside: {papers.citation('tyukin', f'table {number}')}.",
        headings=("Full, s", "Full, %", "Attention, s", "Attention, %", "ffwd, s", "ffwd, %"),
        rows=_rows(models, cells),
    )


def _latency_cells(
    lookup: Lookup,
    model: str,
    variant: str | None,
    length: int,
    paper: tuple[float | None, float | None],
) -> list[TableCell]:
    """Seconds for 1000 sequences, and % saved."""
    seconds, saved = paper
    best = _best_latency(lookup.of(model, variant), length) if variant else None
    if variant is None or best is None:
        gap = UNKNOWN_LAYERS if variant is None else lookup.gap(model, variant, "bench")
        return [
            TableCell(paper=seconds, digits=2, gap=gap),
            TableCell(paper=saved, digits=2, gap=gap),
        ]
    row, count = best.record, best.conditions.sequences
    device = (f"{model}: {best.device}",)
    scaled = () if count == 1000 else (f"scaled to 1000 from {count} sequences",)
    half = (row.interval[1] - row.interval[0]) / 2 if variant != "base" else None
    percent = row.improvement if variant != "base" else 0.0
    notes = (*best.marks(), *scaled, *device)
    return [
        TableCell(row.total * 1000 / count, None, 2, seconds, best.source, notes),
        TableCell(percent, half, 2, saved, best.source, best.marks()),
    ]


def _best_latency(artefacts: list[ArtefactResults], length: int) -> SourcedLatency | None:
    """Checked and undisturbed first; of equals an engine's, then that of most sequences."""
    latencies = [(a.runner != "graph", one) for a in artefacts if (one := a.latency(length))]
    ranked = max(
        latencies,
        key=lambda pair: (
            pair[1].conditions.checked,
            pair[1].record.enough_clean,
            pair[0],
            pair[1].conditions.sequences,
        ),
        default=None,
    )
    return ranked[1] if ranked else None


def _float(text: str | None) -> float | None:
    return float(text) if text else None
