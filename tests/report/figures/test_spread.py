from __future__ import annotations

from pathlib import Path

from pipeline.report import collect
from pipeline.report.figures import spread
from tests import results


def test_three_percentiles_of_every_latency(workdir: Path) -> None:
    results.bench("m", "base", 0.0, lengths=(100, 50))
    (chart,) = spread.charts(collect.collect())
    traces = {t["name"]: t for t in chart.figure["data"]}
    assert list(traces) == ["m, base, p50", "m, base, p90", "m, base, p99"]
    assert traces["m, base, p50"]["x"] == [100, 200] and traces["m, base, p99"]["x"] == [120, 240]
    assert traces["m, base, p90"]["y"] == ["prefill of 50 tokens", "prefill of 100 tokens"]
    assert len({t["marker"]["symbol"] for t in traces.values()}) == 3
    text = f"m base.fp32 (artefact), prefill of 50 tokens: p90 105.0 ms, {results.DEVICE}, 2 threads"
    assert traces["m, base, p90"]["text"][0] == text
