"""A benchmark with its rows, limit and protocol: makes the questions, and a value of a model's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from pipeline import store
from pipeline.evals.score import tasks, token_loss
from pipeline.evals.score.benchmarks import Benchmark
from pipeline.evals.score.loglikelihoods import ScoringError
from pipeline.evals.score.tasks import HarnessResults


@dataclass(frozen=True, slots=True)
class Value:
    """The number of a benchmark that is reported.

    Attributes:
        metric: lm-eval's name of it, without its filter.
        value, stderr: as a fraction (a loss as it is), and its standard error, None where lm-eval gives none.
        documents: behind it.
    """

    metric: str
    value: float
    stderr: float | None
    documents: int


class Evaluation:
    """One benchmark over its rows.

    Args:
        benchmark: its definition.
        data: folder of local rows; None takes them from the hub.
        protocol: 'lm-eval' or 'v1'.
        limit: documents a task at most; None is all of them.
        project: where prompts are kept; by default the current directory.

    Raises:
        UserError: rows are missing, malformed, or cannot be fetched.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        data: Path | None,
        protocol: str,
        limit: int | None,
        project: store.Project | None = None,
    ) -> None:
        self.benchmark, self.protocol, self.limit = benchmark, protocol, limit
        self.rows: tasks.LoadedTasks | token_loss.LossTexts = (
            token_loss.load(benchmark, data, limit)
            if benchmark.metric == "loss"
            else tasks.load(benchmark, data, protocol, project)
        )

    def instances(self) -> dict[str, list[Instance]]:
        """Kind of request → the questions, as lm-eval makes them."""
        return self.rows.instances(self.limit)

    def evaluate(self, model: LM) -> HarnessResults:
        """lm-eval's results of the model; a token loss in the same form."""
        return self.rows.evaluate(model, self.limit)

    @property
    def sources(self) -> tasks.Sources:
        """Where the rows came from."""
        return self.rows.sources

    @property
    def shots(self) -> str | None:
        """Where few-shot examples came from, if not from the split that they should come from."""
        return self.rows.shots

    def complete(self) -> bool | None:
        """Whether all rows of the published set are there; None where they came from the hub."""
        return self.rows.complete()

    def value(self, results: HarnessResults) -> Value:
        """The number that is reported: a family's own, or the mean over tasks.

        Raises:
            ScoringError: the metric is not a finite number.
        """
        counts = results["n-samples"]
        metric, _, chosen_filter = (self.benchmark.metric or _first_metric(results["results"])).partition(",")
        groups = results.get("groups") or {}
        if self.benchmark.name in groups:
            rows = {self.benchmark.name: groups[self.benchmark.name]}
        else:
            rows = {task: results["results"][task] for task in counts}
        own = {part.name: part.definition.metric.partition(",")[0] for part in self.benchmark.parts}
        values, errors = [], []
        for task, row in rows.items():
            key = metric if len(rows) == 1 else own.get(task, metric)
            values.append(float(row[f"{key},{chosen_filter or 'none'}"]))
            errors.append(_number(row.get(f"{key}_stderr,{chosen_filter or 'none'}")))
        if not all(map(math.isfinite, values)):
            raise ScoringError(f"{metric} is not a finite number")
        known = [error for error in errors if error is not None]
        spread = math.sqrt(sum(error * error for error in known)) / len(values)
        return Value(
            metric=metric,
            value=sum(values) / len(values),
            stderr=spread if len(known) == len(values) else None,
            documents=sum(entry["effective"] for entry in counts.values()),
        )


def _number(error: object) -> float | None:
    """A standard error; None where lm-eval writes 'N/A' or NaN."""
    return float(error) if isinstance(error, int | float) and math.isfinite(error) else None


def _first_metric(rows: Mapping[str, Mapping[str, object]]) -> str:
    """The metric of a task of lm-eval's own: its normalised accuracy where it has one, else the first one."""
    row = next(iter(rows.values()))
    names = [key for key in row if "," in key and "_stderr" not in key]
    return next((key for key in names if key.startswith("acc_norm")), names[0])
