"""A figure is one file: what it has decides where it is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import collect, figures
from pipeline.report.charts import Chart
from pipeline.store import Project
from pipeline.types import UserError
from tests import results

MODEL = "Llama-2-7b-hf"


def test_charts_are_figures_that_plotly_takes(workdir: Path) -> None:
    import plotly.graph_objects as go

    results.healed_grid(MODEL)
    results.statistics(MODEL, 5)
    charts = figures.charts(collect.collect())
    assert [c.name for c in charts if c.gap] == ["pareto-decode"]
    for chart in charts:
        go.Figure(chart.figure)  # refuses what is no attribute of plotly.js
    names = [c.name for c in charts]
    fronts = [f"pareto-{name}" for name in ("saved", "latency", "decode", "cache", "weights", "loss")]
    first = [*fronts, "ceiling", "latency-spread"]
    assert names[:8] == first and names[-3:] == ["cosine-0", "angular-0", "heatmap-0"]
    assert {"mmlu", "c4-loss", "rules-mmlu", "rules-c4-loss"} <= set(names[8:-3])


def test_charts_without_a_measurement_name_the_command(workdir: Path) -> None:
    results.check(MODEL, "base")
    charts = figures.charts(collect.collect())
    assert len(charts) == 7 and all(c.gap and "pipeline bench" in c.gap for c in charts)


def test_the_papers_figures_and_their_gaps() -> None:
    def chart(name: str, gap: str | None = None) -> Chart:
        return Chart(name, f"title of {name}", "", {}, gap)

    shown = figures.paper_figures([chart("cosine-0"), chart("cosine-1"), chart("mmlu", "no layers")])
    assert [(one.figure.split(":")[0], one.words, one.chart) for one in shown[:4]] == [
        ("Tyukin et al., Figure 1", "title of cosine-0", "cosine-0"),
        ("Tyukin et al., Figure 1", "title of cosine-1", "cosine-1"),
        ("Gromov et al., Figure 1c", "not run: `pipeline calibrate MODEL`", None),
        ("Gromov et al., Figure 2", "no layers", None),
    ]
    assert [one.figure for one in shown[4:]] == [
        "Gromov et al., Figure 3: C4 loss before and after healing",
        "Gromov et al., Figure 4: heat map of the angular distance",
        "Gromov et al., Figure 5, MMLU: angular beside last-but-final",
        "Gromov et al., Figure 5, BoolQ: angular beside last-but-final",
        "Gromov et al., Figure 5, C4 loss: angular beside last-but-final",
        *(
            f"Gromov et al., Figure 6, {name}"
            for name in ("qmsum", "cot-mmlu", "boolq", "gsm8k", "hellaswag")
        ),
    ]


def test_a_figure_is_one_file(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file draws on the page, to files, or both, and nothing else is edited."""
    (workdir / "pie_chart.py").write_text(
        "from pipeline.report import drawing\n"
        "from pipeline.report.charts import Chart\n"
        "PLACE = 15\n"
        "def charts(collection):\n"
        "    return [Chart('pie', 'Pie', '', {'data': [], 'layout': {}})]\n"
        "def draw(model, project):\n"
        "    return drawing.Drawing(drawing.axes(model, 'x', 'y')[0], ('x',), [(1,)])\n"
    )
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(workdir)])
    results.check("m", "base")
    names = [chart.name for chart in figures.charts(collect.collect())]
    assert names.index("pie") == names.index("ceiling") - 1 and "pie-chart" in figures.names()
    written = figures.write("m", "pie-chart")
    assert written[0] == Path("evals/figures/m/pie-chart.png") and written[0].is_file()


def test_unknown_figures_are_refused(workdir: Path) -> None:
    with pytest.raises(UserError, match="no figure 'pie'; choose from angular, cosine, heatmap, loss"):
        figures.write("tiny", "pie")
    assert not Project().figures("tiny").exists()
