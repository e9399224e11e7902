from __future__ import annotations

from pipeline.report import charts
from pipeline.report.charts import MANY, Point, Series


def points(count: int, spread: float | None = 0.5) -> list[Point]:
    return [Point(float(k), 1.0, f"<{k}>", None, spread) for k in range(count)]


def test_a_trace_has_its_points_and_the_filters_words() -> None:
    trace = charts.trace_of(points(3), Series.of("<m>", "attn", ", p50"))
    assert trace["x"] == [0, 1, 2] and trace["customdata"] == [None] * 3
    assert trace["name"] == "&lt;m&gt;, attention, p50" and trace["text"][0] == "&lt;0&gt;"
    assert trace["meta"] == {"model": "<m>", "kind": "attn"} and trace["mode"] == "markers"
    assert trace["error_y"]["array"] == [0.5] * 3
    assert "error_y" not in charts.trace_of(points(3, None), Series.of("m", "attn"))
    joined = charts.trace_of(points(3), Series("m", "m", "attn", "red", "circle", lines=True))
    assert joined["mode"] == "lines+markers"


def test_many_points_are_drawn_by_webgl_without_bars() -> None:
    few, many = (charts.trace_of(points(n), Series.of("m", "mlp")) for n in (MANY, MANY + 1))
    assert (few["type"], many["type"]) == ("scatter", "scattergl") and "error_y" not in many


def test_kinds_differ_in_colour_and_in_marker() -> None:
    colours, markers = zip(*charts.STYLE.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(charts.STYLE) == len(charts.LABELS)


def test_words_of_a_workload() -> None:
    assert charts.workload_text(False, 50) == "prefill of 50 tokens"
    assert charts.workload_text(True, 1) == "decode on 1 tokens"
