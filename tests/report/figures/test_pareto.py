from __future__ import annotations

import html
from pathlib import Path

import pytest

from pipeline.report import collect, markdown
from pipeline.report.charts import Chart
from pipeline.report.content import ReportContent
from pipeline.report.figures import pareto
from pipeline.store.records import OverPlain
from tests import results

MODEL = "SmolLM2-135M-Instruct"


def charts() -> dict[str, Chart]:
    return {chart.name: chart for chart in pareto.charts(collect.collect())}


def test_every_variant_is_a_point_and_the_best_are_joined(workdir: Path) -> None:
    results.small_grid(MODEL)
    traces = {t["name"]: t for t in charts()["pareto-saved"].figure["data"]}
    own = {name: (t["x"], t["y"]) for name, t in traces.items() if name.startswith(MODEL)}
    assert own == {
        f"{MODEL}, base": ([0], [pytest.approx(60)]),
        f"{MODEL}, attention": ([8], [pytest.approx(59.5)]),
        f"{MODEL}, MLP": ([18], [pytest.approx(50)]),
        f"{MODEL}, block": ([25], [pytest.approx(58.5)]),
    }
    frontier = traces["frontier"]
    assert frontier["x"] == [25, 8, 0] and frontier["y"] == pytest.approx([58.5, 59.5, 60])
    text = html.unescape(traces[f"{MODEL}, attention"]["text"][0])
    assert text == f"{MODEL} attn24-31.fp32: average 59.5 ±0.5, 8.0 % of the base's time saved"
    paper = traces["Tyukin et al. 7B, attention"]
    assert dict(zip(paper["x"], paper["y"], strict=True))[14.02] == 53.6


def test_quantised_variants_stand_by_what_they_save_of_the_plain_base(workdir: Path) -> None:
    """Against two bases on one axis a front would say nothing; without the plain base they have no place."""
    for variant, saved, value in (("base", 0.0, 0.78), ("attn24-31", 8.0, 0.775)):
        results.bench(MODEL, variant, saved)
        results.score(MODEL, variant, "smoke", value)
    plain = OverPlain(base="base.fp32", improvement=54.0, interval=(53.0, 55.0))
    results.bench(MODEL, "base", 0.0, precision="int4-fp32", over_plain=plain)
    results.bench(MODEL, "attn24-31", 9.0, precision="int8-fp32")
    for variant, precision in (("base", "int4-fp32"), ("attn24-31", "int8-fp32")):
        results.score(MODEL, variant, "smoke", 0.7, precision=precision)
    chart = charts()["pareto-saved"]
    traces = {t["name"].removeprefix(f"{MODEL}, "): t["x"] for t in chart.figure["data"]}
    assert traces["base, int4"] == [54] and traces["frontier"] == [54, 8, 0]
    assert not any("int8" in name for name in traces)
    assert "they save of the base with the checkpoint's own" in chart.caption
    text = markdown.markdown(ReportContent.of(collect.collect()))
    assert "ms, 0.0 % saved, 54.0 % of base.fp32]" in text and "ms, 9.0 % saved]" in text


def test_less_is_better_for_the_other_costs(workdir: Path) -> None:
    results.small_grid(MODEL)
    latency, weights = charts()["pareto-latency"], charts()["pareto-weights"]
    frontier = next(t for t in latency.figure["data"] if t["name"] == "frontier")
    assert frontier["x"] == [150, 184, 200]  # ms at 100 tokens
    assert not any("Tyukin" in t["name"] for t in latency.figure["data"])
    assert next(t["x"] for t in weights.figure["data"] if t["meta"]["kind"] == "attn") == [492]


def test_the_papers_averages_stand_beside_averages_only(workdir: Path) -> None:
    for variant, saved, value in (("base", 0.0, 0.78), ("attn24-31", 8.0, 0.775)):
        results.bench(MODEL, variant, saved)
        results.score(MODEL, variant, "smoke", value)
    chart = charts()["pareto-saved"]
    assert not any("Tyukin" in t["name"] for t in chart.figure["data"])
    assert chart.caption.startswith("Up is better: smoke in %")


def test_compensated_variants_are_marked_and_the_front_without_them_is_there(workdir: Path) -> None:
    results.compensated_grid(MODEL)
    chart = charts()["pareto-loss"]
    traces = {t["name"].removeprefix(f"{MODEL}, "): t for t in chart.figure["data"]}
    assert traces["MLP, linear"]["marker"]["symbol"] == "square-open"
    assert traces["MLP"]["marker"]["symbol"] == "square"
    front, without = traces["frontier"], traces["frontier without compensation"]
    # Down is better for a loss: the fastest and worst first, at 2 ms for each % of time that is not saved.
    assert list(zip(front["x"], front["y"], strict=True)) == [(164, 60), (168, 40), (200, 30)]
    assert list(zip(without["x"], without["y"], strict=True)) == [(164, 60), (200, 30)]
    assert without["line"]["dash"] == "dot" and "dotted line is the front without them" in chart.caption
    assert chart.caption.startswith("Down is better for a loss: c4-loss")
    assert chart.figure["layout"]["yaxis"]["title"]["text"] == "100 × loss over log V"


def test_a_loss_that_is_the_yardstick_has_its_front_below(workdir: Path) -> None:
    """It was drawn through the highest losses."""
    for variant, saved, value in (("base", 0.0, 0.3), ("mlp24-31", 18.0, 0.6), ("attn24-31", 8.0, 0.7)):
        results.bench(MODEL, variant, saved)
        results.score(MODEL, variant, "c4-loss", value)
    assert "pareto-loss" not in charts()  # `pareto-latency` is that chart
    front = next(t for t in charts()["pareto-latency"].figure["data"] if t["name"] == "frontier")
    assert front["x"] == [164, 200] and front["y"] == pytest.approx([60, 30])


def test_decoding_has_a_front_of_its_own(workdir: Path) -> None:
    """Few bits are worth their bytes there, and little in a prefill; the two are never on one axis."""
    grid = {
        "base": ("fp32", 0.0, 0.30),
        "attn24-31": ("fp32", 10.0, 0.36),
        "mlp24-31": ("int4-fp32", 50.0, 0.33),
    }
    for variant, (precision, saved, loss) in grid.items():
        results.bench(MODEL, variant, 0.0, precision=precision)
        results.bench(MODEL, variant, saved, precision=precision, decode=True)
        results.score(MODEL, variant, "smoke", 0.7, precision=precision)
        results.score(MODEL, variant, "c4-loss", loss, precision=precision)
    chart = charts()["pareto-loss-decode"]
    traces = {t["name"].removeprefix(f"{MODEL}, "): t for t in chart.figure["data"]}
    assert traces["MLP, int4"]["x"] == [10] and traces["attention"]["x"] == [18]
    assert list(zip(traces["frontier"]["x"], traces["frontier"]["y"], strict=True)) == [(10, 33), (20, 30)]
    assert chart.title == "Loss against decode time"
    assert next(t for t in charts()["pareto-loss"].figure["data"] if "int4" in t["name"])["x"] == [200]
    assert next(t for t in charts()["pareto-decode"].figure["data"] if "int4" in t["name"])["x"] == [10]


def test_a_decode_front_without_measurements_names_its_command(workdir: Path) -> None:
    results.small_grid(MODEL)
    assert "`pipeline bench GRAPH… --decode --tasks smoke`" in (charts()["pareto-decode"].gap or "")
