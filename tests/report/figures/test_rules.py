from __future__ import annotations

from pathlib import Path

from pipeline.report import collect
from pipeline.report.figures import rules
from tests import results


def test_a_curve_for_each_rule(workdir: Path) -> None:
    results.config("m", 32)
    for variant in ("block24-31", "block24-31~heal", "block20-27", "base"):
        results.score("m", variant, "mmlu", 0.5)
    results.ledger(
        [
            results.job("score", "m", "done", variant="block24-31", select="angular"),
            results.job("score", "m", "done", variant="block20-27", select="angular"),
        ]
    )
    (chart,) = rules.charts(collect.collect())
    assert chart.name == "rules-mmlu" and chart.title.endswith("by the rule that chose what is left out")
    traces = {t["name"]: t for t in chart.figure["data"]}
    assert {name: len(t["x"]) for name, t in traces.items()} == {
        "m, block, angular": 2,
        "m, block, angular, healed": 1,
        "m, block, last": 1,
        "m, block, last, healed": 1,
    }
    colours = {name: t["line"]["color"] for name, t in traces.items()}
    assert colours["m, block, angular"] == colours["m, block, angular, healed"] == rules.COLOURS[0]
    assert colours["m, block, last"] == rules.COLOURS[1]


def test_a_compensated_variant_is_of_the_rule_that_chose_its_cut(workdir: Path) -> None:
    results.config("m", 32)
    for variant in ("mlp24-31", "mlp24-31~linear", "mlp24-31~linear~heal"):
        results.score("m", variant, "mmlu", 0.5)
    (chart,) = rules.charts(collect.collect())
    assert [t["name"] for t in chart.figure["data"]] == [
        "m, MLP, last",
        "m, MLP, last, linear",
        "m, MLP, last, linear, healed",
    ]


def test_without_a_known_rule_there_is_no_chart(workdir: Path) -> None:
    results.config("m", 32)
    results.score("m", "block3_9", "mmlu", 0.5)
    assert rules.charts(collect.collect()) == []
