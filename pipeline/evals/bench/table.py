"""All rows of one measurement, and their table for a person."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.evals.bench import device_notes as device
from pipeline.store.records import Conditions, Latency

COLUMNS = ("variant", "tokens", "p50 ms", "saved %", "ceiling %", "of it", "peak MB", "KV\nB/token")
"""What a reader needs, in 100 columns; --json and the result files have everything."""
BY_BYTES = "by\nbytes %"
"""Stands behind `ceiling %` where bytes bind a prefill."""
VS_PLAIN = "vs base\n{} %"
"""Stands behind `saved %` where quantised weights were timed beside the checkpoint's own; {}: 'fp32'."""
ON_GPU = "GPU\nMB"
"""Stands in the place of `peak MB` where a GPU ran."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All rows of one run, how it was run, and the result files."""

    rows: tuple[Latency, ...]
    conditions: Conditions
    results: tuple[Path, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "conditions": self.conditions.plain(),
            "rows": [row.plain() for row in self.rows],
            "results": [str(path) for path in self.results],
        }


def table(report: BenchReport) -> Table:
    """The report for a person; what a row does not have stays empty."""
    how = report.conditions
    title = (
        f"{how.measure}, {how.sequences} sequences, batch {how.batch}, {how.threads} threads, {how.device}"
    )
    rows = Table(title=title, caption=_caption(report))
    has_bytes = any(row.byte_ceiling is not None for row in report.rows)
    has_gpu = any(row.device_mb is not None for row in report.rows)
    plain = _plain_bases(report)
    for heading in _headings(plain, has_bytes, has_gpu):
        is_name = heading == "variant"
        rows.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for row in report.rows:
        rows.add_row(
            row.name + ("" if row.enough_clean else " ?"),
            str(row.length),
            f"{row.p50:.2f}" if has_gpu else f"{row.p50:.1f}",
            f"{row.improvement:.1f}",
            *([_over_plain(row)] if plain else []),
            _number(row.ceiling, ".1f"),
            *([_number(row.byte_ceiling, ".1f")] if has_bytes else []),
            _number(row.share, ".0%") + (" !" if row.above_ceiling else ""),
            _number(row.device_mb if has_gpu else row.peak_mb, ".0f"),
            _number(row.cache_bytes_per_token, "d"),
        )
    return rows


def _plain_bases(report: BenchReport) -> list[str]:
    """Names of the bases with the checkpoint's own weights that quantised ones are compared with."""
    return list(dict.fromkeys(row.over_plain.base for row in report.rows if row.over_plain))


def _over_plain(row: Latency) -> str:
    """What is saved of such a base, and, where it is known, what the bytes allow."""
    if row.over_plain is None:
        return ""
    ceiling = row.over_plain.ceiling
    return f"{row.over_plain.improvement:.1f}" + ("" if ceiling is None else f" ({ceiling:.1f})")


def _headings(plain: list[str], has_bytes: bool, has_gpu: bool) -> list[str]:
    headings = [ON_GPU if has_gpu and one == "peak MB" else one for one in COLUMNS]
    if plain:
        precisions = dict.fromkeys(re.sub(r".*[.-]", "", base) for base in plain)
        headings.insert(headings.index("ceiling %"), VS_PLAIN.format(", ".join(precisions)))
    if has_bytes:
        headings.insert(headings.index("ceiling %") + 1, BY_BYTES)
    # One column more leaves little for the names: what may stand in two lines does.
    return [one.replace(" ", "\n") if plain and "\n" not in one else one for one in headings]


def short(report: BenchReport) -> dict[str, dict[str, str]]:
    """Artefact → heading → what is saved at the longest length, to stand beside scores."""
    longest = max(row.length for row in report.rows)
    return {
        row.artefact: {
            f"saved %\n(ceiling)\nat {longest}": (
                "" if row.ceiling is None else f"{row.improvement:.1f} ({_binding(row):.1f})"
            )
        }
        for row in report.rows
        if row.kind == "artefact" and row.length == longest
    }


def _binding(row: Latency) -> float:
    """The ceiling of what binds the time."""
    return (row.ceiling or 0.0) if row.byte_ceiling is None else row.byte_ceiling


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _caption(report: BenchReport) -> str:
    """What a reader must know before believing the table."""
    how = report.conditions
    notes = [
        f"ceiling: what the removed {how.ceiling_of} allow; of it: saved / ceiling, by medians against "
        f"{how.against}"
    ]
    if any(row.byte_ceiling is not None for row in report.rows):
        notes.append(
            "by bytes %: what the removed bytes allow; where it stands, they bind, not FLOPs, and `of it` is "
            "of this"
        )
    if plain := _plain_bases(report):
        allowed = " (what the bytes allow)" if how.decode else ""
        notes.append(
            f"vs base: saved of {', '.join(plain)}, which has the checkpoint's own weights{allowed}; "
            "`saved %` is of the base with the variant's own"
        )
    if how.against != "base":
        notes.append(f"the checkpoint's files hold no base; all is measured against {how.against}")
    if any(row.above_ceiling for row in report.rows):
        notes.append(
            "! above its ceiling beyond noise: a bug in the measurement, or time that is not spent on "
            f"{how.ceiling_of}"
        )
    problems = {int(length): load.problems for length, load in how.gpu.items() if load.problems}
    if any(not row.enough_clean and row.length not in problems for row in report.rows):
        notes.append(
            "? too few undisturbed samples: other work used the processors, so do not quote this row"
        )
    notes += [
        f"? at {length} tokens the GPU was disturbed, so do not quote these rows: {'; '.join(words)}"
        for length, words in problems.items()
    ]
    notes += device.notes(report.rows, how)
    if not how.checked:
        notes.append("unchecked: nothing says that these artefacts compute the right thing")
    if how.foreign_load != RECOGNISED:
        notes.append("whether other work disturbed the samples is not measured on this system")
    return "\n".join(notes)


RECOGNISED = "recognised"
