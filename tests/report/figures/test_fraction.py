from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import collect
from pipeline.report.charts import Chart
from pipeline.report.figures import fraction
from tests import results

MODEL = "Llama-2-7b-hf"


def chart(name: str) -> Chart:
    return next(c for c in fraction.charts(collect.collect()) if c.name == name)


def test_points_are_in_percent_and_losses_as_they_are(workdir: Path) -> None:
    results.healed_grid(MODEL)
    collection = collect.collect()
    scores = {p.artefact.variant: p for p in fraction.points_of(collection, "mmlu")}
    assert {name: (p.percent, p.value, p.stderr) for name, p in scores.items()} == {
        "base": (0, 60, 1),
        "attn24-31": (25, 59.5, 1),
        "mlp24-31": (25, 50, 1),
        "block24-31": (25, pytest.approx(58.5), 1),
    }
    assert scores["attn24-31"].words == f"{MODEL} attn24-31.fp32: 59.50 ±1.00"
    losses = {
        p.artefact.variant: (p.value, p.artefact.mended) for p in fraction.points_of(collection, "c4-loss")
    }
    assert losses == {"base": (0.3, ""), "block24-31": (0.6, ""), "block24-31~heal": (0.4, "healed")}


def test_healed_variants_are_a_curve_of_their_own(workdir: Path) -> None:
    results.healed_grid(MODEL)
    loss = chart("c4-loss")
    traces = {t["name"]: t for t in loss.figure["data"]}
    assert list(traces) == [f"{MODEL}, base", f"{MODEL}, block", f"{MODEL}, block, healed"]
    healed = traces[f"{MODEL}, block, healed"]
    assert (healed["x"], healed["y"], healed["line"]["dash"]) == ([25], [0.4], "dot")
    assert loss.figure["layout"]["shapes"][0]["y0"] == 1 and "1 is a uniform guess" in loss.caption


def test_compensated_variants_are_curves_of_their_own_and_not_taken_for_healed(workdir: Path) -> None:
    results.compensated_grid(MODEL)
    traces = {t["name"].removeprefix(f"{MODEL}, "): t for t in chart("c4-loss").figure["data"]}
    seen = {name: (t["y"], t["line"]["dash"], t["marker"]["symbol"]) for name, t in traces.items()}
    assert seen == {
        "base": ([0.3], "solid", "star"),
        "MLP": ([0.6], "solid", "square"),
        "MLP, linear": ([0.45], "dash", "square-open"),
        "MLP, fold+rank16": ([0.5], "dash", "square-open"),
        "MLP, linear, healed": ([0.4], "dashdot", "square-open"),
    }


def test_chance_and_the_papers_band(workdir: Path) -> None:
    results.small_grid(MODEL)
    line, band = chart("mmlu").figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == 25 and (band["x0"], band["x1"]) == (44.5, 55.5)
    assert "section 4.1" in chart("mmlu").caption
    assert chart("arc").figure["layout"]["shapes"] == []


def test_several_variants_of_one_size_are_not_joined(workdir: Path) -> None:
    results.config("m", 4)
    for variant in ("attn1", "attn2-3"):
        results.score("m", variant, "arc", 0.5)
    assert chart("arc").figure["data"][0]["mode"] == "lines+markers"
    results.score("m", "attn3", "arc", 0.4)
    assert chart("arc").figure["data"][0]["mode"] == "markers"


def test_unknown_layers_are_a_gap(workdir: Path) -> None:
    results.score("unknown", "attn1", "arc", 0.5)
    assert "how many layers these models have is not known" in str(chart("arc").gap)
