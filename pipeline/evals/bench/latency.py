"""What a latency run found, row by row, and its table for a person."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Latency:
    """One contestant at one length.

    Attributes:
        artefact: its path, for what is shown beside it.
        name: the variant, with ' (torch)' or ' (optimum)' behind it where it is not the artefact itself.
        total: seconds for all sequences, as in the papers' tables: their number times the mean of the trusted samples.
        p50, p90, p99: milliseconds, of the trusted samples (clean ones where there are enough, else all).
        improvement: % of the base graph's median time that is saved (for PyTorch and optimum too: over our base).
        interval: its 95 % interval, %.
        ceiling: % that the removed FLOPs (prefill) or bytes (decode) allow; None where the config does not tell.
        share: improvement / ceiling; None where nothing is removed, and for PyTorch and optimum.
        above_ceiling: the whole interval lies above the ceiling: a bug in the measurement, or time that is no FLOP (byte).
        disturbed: samples found disturbed, repeats included.
        clean: sequences with an undisturbed sample.
        enough_clean: whether the results rest on clean samples alone.
        peak_mb, before_mb: resident memory of a fresh process that runs this artefact alone, and before it loads it.
    """

    artefact: str
    name: str
    kind: str
    length: int
    total: float
    p50: float
    p90: float
    p99: float
    improvement: float
    interval: tuple[float, float]
    ceiling: float | None
    share: float | None
    above_ceiling: bool
    disturbed: int
    clean: int
    enough_clean: bool
    peak_mb: float | None
    before_mb: float | None
    weight_mb: float | None
    cache_bytes_per_token: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of one run, and how it was run."""

    rows: list[Latency]
    conditions: dict[str, Any]
    results: list[str]

    def record(self) -> dict[str, Any]:
        return {
            "conditions": self.conditions,
            "rows": [asdict(row) for row in self.rows],
            "results": self.results,
        }


def table(report: Report) -> Table:
    """The report for a person; what a row does not have stays empty."""
    how = report.conditions
    words = f"{how['measure']}, {how['sequences']} sequences, batch {how['batch']}, {how['threads']} threads, {how['device']}"
    made = Table(title=words, caption=_caption(report))
    headings = (
        "variant",
        "tokens",
        "total s",
        "p50 ms",
        "p90",
        "p99",
        "saved %",
        "ceiling %",
        "of it",
        "peak MB",
        "weights MB",
    )
    for heading in (*headings, "KV B/token", "clean", "disturbed"):
        made.add_column(
            heading,
            justify="left" if heading == "variant" else "right",
            no_wrap=heading != "variant",
            overflow="fold",
        )
    for row in report.rows:
        share = "" if row.share is None else f"{row.share:.0%}" + (" !" if row.above_ceiling else "")
        made.add_row(
            row.name + ("" if row.enough_clean else " ?"), str(row.length), f"{row.total:.2f}", f"{row.p50:.1f}", f"{row.p90:.1f}",
            f"{row.p99:.1f}", f"{row.improvement:.1f}", _number(row.ceiling, ".1f"), share, _number(row.peak_mb, ".0f"),
            _number(row.weight_mb, ".0f"), _number(row.cache_bytes_per_token, "d"), f"{row.clean}/{how['sequences']}",
            str(row.disturbed),
        )  # fmt: skip
    return made


def short(report: Report) -> dict[str, dict[str, str]]:
    """Artefact → heading → its latencies in few words, to stand beside other measurements."""
    found: dict[str, dict[str, str]] = {}
    for row in report.rows:
        if row.kind == "artefact":
            saved = "" if row.ceiling is None else f"{row.improvement:.1f} ({row.ceiling:.1f})"
            words = {f"ms at {row.length}": f"{row.p50:.1f}", f"saved % (ceiling) at {row.length}": saved}
            found.setdefault(row.artefact, {}).update(words)
    return found


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _caption(report: Report) -> str:
    """What a reader must know before believing the table."""
    what = report.conditions["ceiling_of"]
    notes = [f"ceiling: what the removed {what} allow; of it: saved / ceiling, by medians against base"]
    if any(row.above_ceiling for row in report.rows):
        notes.append(
            f"! above its ceiling beyond noise: a bug in the measurement, or time that is not spent on {what}"
        )
    if any(not row.enough_clean for row in report.rows):
        notes.append(
            "? too few undisturbed samples: other work held the processors, so do not quote this row"
        )
    if not report.conditions["checked"]:
        notes.append("unchecked: nothing says that these artefacts compute the right thing")
    if report.conditions["foreign_load"] != "recognised":
        notes.append("whether other work disturbed the samples is not measured on this system")
    return "\n".join(notes)
