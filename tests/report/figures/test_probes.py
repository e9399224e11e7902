from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.report import collect, figures
from pipeline.report.charts import Chart
from pipeline.report.figures import probes
from pipeline.types import UserError
from tests import results

MODEL = "m"
LAYERS = 20


def put(variant: str, probe: str, value: float, stderr: float | None = 0.03, **changes: object) -> None:
    results.score(MODEL, variant, f"probe-{probe}", value, stderr, **{"chance": 0.25, **changes})


def grid() -> None:
    """Copy falls at 10 % of the attention, facts at 20 % of it and at 10 % of the MLPs."""
    results.config(MODEL, LAYERS)
    for probe, values in {
        "copy": {"base": 0.80, "attn18-19": 0.60, "attn16-19": 0.30, "mlp18-19": 0.75},
        "facts": {"base": 0.90, "attn18-19": 0.85, "attn16-19": 0.70, "mlp18-19": 0.50},
    }.items():
        for variant, value in values.items():
            put(variant, probe, value)


def chart() -> Chart:
    (one,) = probes.charts(collect.collect())
    return one


def test_a_panel_a_kind_and_a_curve_a_probe(workdir: Path) -> None:
    grid()
    page = chart()
    layout = page.figure["layout"]
    drawn = {(t["xaxis"], t["name"]): (t["x"], t["y"], t["error_y"]["array"]) for t in page.figure["data"]}
    assert drawn == {
        ("x", "m, copy"): ([0, 10, 20], [80, 60, 30], [3, 3, 3]),
        ("x", "m, facts"): ([0, 10, 20], [90, 85, 70], [3, 3, 3]),
        ("x2", "m, copy"): ([0, 10], [80, 75], [3, 3]),
        ("x2", "m, facts"): ([0, 10], [90, 50], [3, 3]),
    }
    assert [t["meta"]["kind"] for t in page.figure["data"]] == ["attn", "attn", "mlp", "mlp"]
    assert [t["showlegend"] for t in page.figure["data"]] == [True, True, False, False]
    assert [(shape["xref"], shape["y0"], shape["line"]["dash"]) for shape in layout["shapes"]] == [
        ("x domain", 25, "dash"), ("x2 domain", 25, "dash")
    ]  # fmt: skip
    assert [title["text"] for title in layout["annotations"]] == ["attention", "MLP"]
    domains = [layout["xaxis"]["domain"], layout["xaxis2"]["domain"]]
    assert domains[0][1] < domains[1][0] and page.gap is None


def test_the_caption_says_what_falls_first(workdir: Path) -> None:
    grid()
    assert chart().caption.endswith("attention copy at 10.0 %; MLP facts at 10.0 %.")
    put("block18-19", "copy", 0.78)
    assert chart().caption.endswith("MLP facts at 10.0 %; block none.")
    put("block18-19", "copy", 0.10)
    put("block18-19", "facts", 0.10)
    assert chart().caption.endswith("block copy and facts at 10.0 %.")


@pytest.mark.parametrize(("errors", "falls"), [(1.99, False), (2.01, True)])
def test_a_fall_is_more_than_two_standard_errors_of_the_difference(
    errors: float, falls: bool, workdir: Path
) -> None:
    results.config(MODEL, LAYERS)
    put("base", "copy", 0.80, 0.03)
    put("attn18-19", "copy", 0.80 - errors * math.hypot(0.03, 0.04), 0.04)
    (curve,) = probes.curves_of(collect.collect(), MODEL)
    assert curve.fall == (10 if falls else None)


def test_of_one_size_the_best_counts_and_what_was_mended_does_not(workdir: Path) -> None:
    results.config(MODEL, LAYERS)
    for variant, value in {"base": 0.8, "attn0-1": 0.3, "attn18-19": 0.7, "attn18-19~heal": 0.9}.items():
        put(variant, "copy", value)
    put("attn16-17", "copy", 0.95, precision="fp16")  # beside no base of its own
    (curve,) = probes.curves_of(collect.collect(), MODEL)
    assert [point.artefact.variant for point in curve.points] == ["base", "attn18-19"]


def test_one_variant_of_a_size_counts_for_all_probes(workdir: Path) -> None:
    """Each probe's own best (80, 90) would be a model that nobody has."""
    results.config(MODEL, LAYERS)
    for probe, values in {
        "copy": {"base": 0.8, "attn0-1": 0.8, "attn18-19": 0.7, "attn16-17": 1.0},
        "facts": {"base": 0.9, "attn0-1": 0.3, "attn18-19": 0.9},  # one was not asked for facts
    }.items():
        for variant, value in values.items():
            put(variant, probe, value)
    curves = probes.curves_of(collect.collect(), MODEL)
    assert [[(p.artefact.variant, p.value) for p in curve.points[1:]] for curve in curves] == [
        [("attn18-19", 70)], [("attn18-19", 90)]
    ]  # fmt: skip


def test_without_a_base_or_a_variant_there_is_a_gap(workdir: Path) -> None:
    results.config(MODEL, LAYERS)
    results.score(MODEL, "base", "arc", 0.5)
    assert probes.charts(collect.collect()) == []
    put("base", "copy", 0.8)
    assert "`pipeline score … --tasks probes`" in str(chart().gap)
    with pytest.raises(UserError, match=r"`pipeline score graphs/m/\*\.fp32\.onnx --tasks probes`"):
        figures.write(MODEL, "probes")


def test_the_file_has_the_charts_numbers(workdir: Path) -> None:
    grid()
    png, svg, table = figures.write(MODEL, "probes")
    assert png.read_bytes()[:4] == b"\x89PNG" and "which ability goes first" in svg.read_text()
    rows = results.csv_rows(table)
    assert len(rows) == 10 and {row["chance"] for row in rows} == {"25.0"}
    numbers = [(row["kind"], row["probe"], row["variant"], float(row["value"])) for row in rows]
    assert numbers[:3] == [
        ("attn", "copy", "base", 80), ("attn", "copy", "attn18-19", 60), ("attn", "copy", "attn16-19", 30)
    ]  # fmt: skip
    assert all(float(row["stderr"]) == 3 for row in rows)
