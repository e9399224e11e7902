from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.evals.score import benchmarks
from pipeline.evals.score.evaluation import Evaluation
from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.loglikelihoods import ScoringError
from tests.scoring import DATA, needs_data, write_rows

TASKS = ["arc", "hellaswag", "truthfulqa", "mmlu_anatomy", "mmlu_virology", "boolq", "c4-loss", "smoke"]


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("task", TASKS)
def test_reuse_changes_nothing(task: str, project: Path, graphs: list[Path]) -> None:
    """On real questions of every task: with and without the cached prefixes the same log-likelihoods."""
    for kind, questions in Evaluation(benchmarks.find(task), DATA, "lm-eval", 3).instances().items():
        models = [PipelineLM(graphs[1], journal=False, reuse=reuse, memory_mb=8) for reuse in (True, False)]
        answers = [
            [a[0] if isinstance(a, tuple) else a for a in getattr(model, kind)(questions)] for model in models
        ]
        assert answers[0] == pytest.approx(answers[1], rel=1e-4)
        if task != "c4-loss":
            assert models[0].work.tokens < models[1].work.tokens == models[1].work.asked


def results(metric: str, **rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "results": {
            name: {f"{metric},none": row["value"], f"{metric}_stderr,none": row["error"]}
            for name, row in rows.items()
        },
        "n-samples": {name: {"original": 9, "effective": row["n"]} for name, row in rows.items()},
    }


def test_several_tasks_are_averaged_and_their_errors_pooled(workdir: Path) -> None:
    smoke = Evaluation(benchmarks.find("smoke"), None, "lm-eval", 1)
    rows = {"results": {}, "n-samples": {}}
    for part, value, error in zip(smoke.benchmark.parts, (0.2, 0.4, 0.9), (0.03, 0.04, 0.12), strict=True):
        one = results(
            part.definition.metric.partition(",")[0], **{part.name: {"value": value, "error": error, "n": 5}}
        )
        rows = {key: rows[key] | one[key] for key in rows}
    value = smoke.value(rows)
    assert value.value == pytest.approx(0.5) and value.documents == 15
    assert value.stderr == pytest.approx(math.sqrt(0.03**2 + 0.04**2 + 0.12**2) / 3)


@pytest.mark.parametrize("error", ["N/A", math.nan])
def test_without_a_standard_error_there_is_none(error: Any, workdir: Path) -> None:
    boolq = Evaluation(benchmarks.find("boolq"), write_rows(workdir / "data"), "lm-eval", 1)
    value = boolq.value(results("acc", boolq={"value": 1.0, "error": error, "n": 1}))
    assert (value.metric, value.value, value.stderr, value.documents) == ("acc", 1.0, None, 1)
    with pytest.raises(ScoringError, match="acc is not a finite number"):
        boolq.value(results("acc", boolq={"value": math.nan, "error": 0.1, "n": 1}))


def test_a_familys_value_is_lm_evals_own(workdir: Path) -> None:
    family = Evaluation(benchmarks.find("mmlu_anatomy"), write_rows(workdir / "data"), "lm-eval", None)
    rows = results("acc", mmlu_anatomy={"value": 0.1, "error": 0.1, "n": 7})
    rows["groups"] = {"mmlu_anatomy": {"acc,none": 0.3, "acc_stderr,none": 0.05}}
    assert family.value(rows).value == 0.3 and family.value(rows).stderr == 0.05
    assert family.complete() is False and family.sources["mmlu_anatomy"]["test"].rows == 7


def test_a_task_of_lm_evals_own_gives_its_normalised_accuracy(workdir: Path) -> None:
    evaluation = Evaluation(benchmarks.find("boolq"), write_rows(workdir / "data"), "lm-eval", 1)
    evaluation.benchmark = benchmarks.Benchmark("x", "x", "", "", (), None)
    rows = {
        "results": {"x": {"alias": "x", "acc,none": 0.1, "acc_norm,none": 0.2, "acc_norm_stderr,none": 0.01}},
        "n-samples": {"x": {"effective": 4}},
    }
    assert evaluation.value(rows).metric == "acc_norm" and evaluation.value(rows).value == 0.2
