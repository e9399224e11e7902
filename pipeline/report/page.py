"""The page: one HTML file that needs no network. It names its scripts by digest: a browser runs no other."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any, NamedTuple

from pipeline.report.charts import LABELS, Chart
from pipeline.report.content import ReportContent
from pipeline.report.rows import KINDS, ArtefactResults, SourcedLatency, SourcedScore
from pipeline.types import UserError


def html(content: ReportContent) -> str:
    """index.html. Jinja escapes all that comes from files; data for the script is JSON without a `<`.

    Raises:
        UserError: plotly is not installed.
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipeline.report", "web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    scripts = {"plotly": _plotly(), "page": _part("page.js")}
    collection = content.collection
    text = environment.get_template("page.html.j2").render(
        content=content,
        collection=collection,
        policy=_policy(scripts),
        style=Markup(_part("page.css")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        data={name: Markup(_json(part)) for name, part in _parts(content).items()},
        kinds={kind: LABELS[kind] for kind in KINDS if any(a.kind == kind for a in collection.artefacts)},
        open_jobs=[job for job in collection.jobs if job.record.state != "done"],
    )
    return text + "\n"


def _policy(scripts: dict[str, str]) -> str:
    """The content security policy; 'unsafe-eval' because Plotly compiles its WebGL drawing."""
    digests = " ".join(_digest(text) for text in scripts.values())
    return (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; form-action 'none'; "
        f"base-uri 'none'; script-src 'unsafe-eval' {digests}"
    )


def _plotly() -> str:
    """plotly.js as the Python package has it."""
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


def _parts(content: ReportContent) -> dict[str, Any]:
    """What the script reads: the files, the rows of the table, and each chart by itself.

    A chart is parsed only when it is drawn. Files are named by their place in the list of files, so that a
    path behind ten numbers is written once.
    """
    places = {source.copy: k for k, source in enumerate(content.collection.sources)}
    rows = [_row(artefact, places) for artefact in content.collection.artefacts]
    charts = {f"data-{chart.name}": _chart(chart, places) for chart in content.charts if not chart.gap}
    return {"files": list(places), "rows": rows, **charts}


def _chart(chart: Chart, places: dict[str, int]) -> dict[str, Any]:
    data = [
        trace | {"customdata": [places.get(file) for file in trace["customdata"]]}
        if "customdata" in trace
        else trace
        for trace in chart.figure["data"]
    ]
    return {"data": data, "layout": chart.figure["layout"]}


class Link(NamedTuple):
    """A number in the page's table.

    Attributes:
        file: the file behind it.
        device: where it was measured.
        marks: what must be known before believing it.
    """

    text: str
    file: str | None = None
    device: str = ""
    marks: str = ""


def _row(artefact: ArtefactResults, places: dict[str, int]) -> list[Any]:
    """One artefact: model, name, kind, % left out, then links to check, scores and latencies."""
    check = Link(artefact.check or "not run", artefact.check_source.copy if artefact.check_source else None)
    scores = [_score_link(one) for one in artefact.scores] or [Link("not run")]
    latencies = [_latency_link(artefact, one) for one in artefact.latencies] or [
        Link(artefact.unproven or "not run")
    ]
    fraction = "" if artefact.fraction is None else f"{100 * artefact.fraction:.0f}"
    links = [
        [(link.text, places.get(link.file or ""), link.device, link.marks) for link in column]
        for column in ([check], scores, latencies)
    ]
    return [artefact.model, artefact.name, artefact.kind, fraction, *links]


def _score_link(one: SourcedScore) -> Link:
    text = f"{one.score.benchmark} {one.score.text}"
    return Link(text, one.source.copy, f"n {one.score.n}, {one.device}", "; ".join(one.marks()))


def _latency_link(artefact: ArtefactResults, one: SourcedLatency) -> Link:
    row, is_base = one.record, artefact.kind == "base"
    workload = one.workload + ("" if row.kind == "artefact" else f" ({row.kind})")
    ceiling = "" if row.ceiling is None or is_base else f", ceiling {row.ceiling:.1f}"
    saved = f", {row.improvement:.1f} % saved{ceiling}"
    if is_base and row.kind == "artefact":
        saved = ""
    if row.over_plain:
        saved += f", {row.over_plain.improvement:.1f} % of {row.over_plain.base}"
    text = f"{workload}: {row.p50:.1f} ms{saved}"
    return Link(text, one.source.copy, one.device, "; ".join(one.marks()))
