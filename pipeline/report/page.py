"""The page: one HTML file that needs no network. Its scripts are named by their digests, so that a browser runs no other."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from pipeline.report.charts import LABELS, Chart
from pipeline.report.recommend import Recommendation
from pipeline.report.rows import KINDS, Artefact, Findings
from pipeline.report.tables import Table
from pipeline.types import UserError


def html(
    found: Findings,
    tables: list[Table],
    recommended: list[Recommendation],
    drawn: list[Chart],
    figures: list[tuple[str, str, str | None]],
) -> str:
    """index.html. Jinja escapes all that comes from files; data for the script stands in JSON without a `<`."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipeline.report", "web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    scripts = {"plotly": _plotly(), "page": _part("page.js")}
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
        f"script-src 'unsafe-eval' {' '.join(_digest(text) for text in scripts.values())}"  # Plotly compiles its WebGL drawing
    )
    text = environment.get_template("page.html.j2").render(
        policy=policy,
        style=Markup(_part("page.css")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        charts=drawn,
        data={name: Markup(_json(part)) for name, part in _parts(found, drawn).items()},
        models=found.models(),
        kinds={kind: LABELS[kind] for kind in KINDS if any(a.kind == kind for a in found.artefacts)},
        tables=tables,
        recommended=recommended,
        figures=figures,
        open_jobs=[job for job in found.jobs if job.state != "done"],
        problems=found.problems,
        sources=len(found.sources),
        artefacts=len(found.artefacts),
    )
    return text + "\n"


def _plotly() -> str:
    """plotly.js as the Python package carries it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise UserError(
            "the page's charts need plotly, which is not installed; `pip install plotly` adds it"
        ) from None


def _part(name: str) -> str:
    return resources.files("pipeline.report").joinpath("web", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _parts(found: Findings, drawn: list[Chart]) -> dict[str, Any]:
    """What the script reads: the files, the rows of the table, and each chart by itself, so that it is parsed when it is drawn.

    Files are named by their place in the list of files: the same path behind ten numbers stands there once.
    """
    places = {source.copy: k for k, source in enumerate(found.sources)}
    rows = [
        [*row[:4], *([[text, places.get(file), *more] for text, file, *more in part] for part in row[4:])]
        for row in map(_row, found.artefacts)
    ]
    parts: dict[str, Any] = {"files": list(places), "rows": rows}
    for chart in drawn:
        if not chart.gap:
            data = [
                t | {"customdata": [places.get(file) for file in t["customdata"]]} if "customdata" in t else t
                for t in chart.figure["data"]
            ]
            parts[f"data-{chart.name}"] = {"data": data, "layout": chart.figure["layout"]}
    return parts


Link = tuple[str, str | None, str, str]
"""(text, the file behind it, where it was measured, what must be known before believing it)."""


def _row(a: Artefact) -> list[Any]:
    """One artefact for the page's table: model, name, kind, % left out, then links to check, scores and latencies."""
    check: Link = (a.check or "not run", a.checked_in.copy if a.checked_in else None, "", "")
    scores = [
        (
            f"{s.benchmark} {s.text}",
            s.source.copy,
            f"n {s.n}, {s.device}",
            "; ".join(s.marks()),
        )
        for s in a.scores
    ]
    times = []
    for t in a.times:
        what = t.what + ("" if t.contestant == "artefact" else f" ({t.contestant})")
        ceiling = "" if t.ceiling is None or a.kind == "base" else f", ceiling {t.ceiling:.1f}"
        saved = "" if a.kind == "base" and t.contestant == "artefact" else f", {t.saved:.1f} % saved{ceiling}"
        times.append((f"{what}: {t.p50:.1f} ms{saved}", t.source.copy, t.device, "; ".join(t.marks())))
    nothing: Link = (a.unproven or "not run", None, "", "")
    fraction = "" if a.fraction is None else f"{100 * a.fraction:.0f}"
    return [
        a.model,
        a.name,
        a.kind,
        fraction,
        [check],
        scores or [("not run", None, "", "")],
        times or [nothing],
    ]
