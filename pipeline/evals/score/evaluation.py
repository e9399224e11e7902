"""A benchmark with its rows, limit and protocol: makes the questions, and a value of the answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance

from pipeline import store
from pipeline.evals.score import benchmarks, local_data, tasks
from pipeline.evals.score.harness import PipelineLM
from pipeline.types import UserError


class Evaluation:
    """One benchmark: `instances` are its questions, `evaluate` a model's results, `value` the number that is reported."""

    def __init__(
        self, benchmark: benchmarks.Benchmark, data: Path | None, protocol: str, limit: int | None
    ) -> None:
        self.benchmark, self.protocol, self.limit = benchmark, protocol, limit
        self.loaded: tasks.Loaded | None = None
        if benchmark.metric == "loss":
            self.texts, self.source = _loss_rows(benchmark, data, limit)
        else:
            self.loaded = tasks.load(benchmark, data, protocol)

    def instances(self) -> dict[str, list[Instance]]:
        """Kind of request → the questions, as lm-eval makes them."""
        if self.loaded is None:
            rows = [
                Instance(
                    "loglikelihood_rolling", {"text": text}, (text,), 0, (self.benchmark.name, number, 1)
                )
                for number, text in enumerate(self.texts)
            ]
            return {"loglikelihood_rolling": rows}
        made: dict[str, list[Instance]] = {}
        for task in self.loaded.tasks["tasks"].values():
            task.set_fewshot_seed(tasks.SEED)
            task.build_all_requests(limit=self.limit)
            for instance in task.instances:
                made.setdefault(instance.request_type, []).append(instance)
        return made

    def evaluate(self, model: PipelineLM) -> dict[str, Any]:
        """lm-eval's results of the model, or the token loss in their form."""
        if self.loaded is None:
            return self._loss(model)
        for task in self.loaded.tasks["tasks"].values():
            task.set_fewshot_seed(tasks.SEED)
        return dict(
            lm_eval.evaluate(
                model, self.loaded.tasks, limit=self.limit, bootstrap_iters=1000, log_samples=True
            )
        )

    def _loss(self, model: PipelineLM) -> dict[str, Any]:
        """Σ −log p / tokens / ln V (Gromov et al., §4.2), its standard error over documents (a ratio of two sums)."""
        answers = model.rolling(self.instances()["loglikelihood_rolling"])
        tokens, nats = sum(count for _, count in answers), -sum(value for value, _ in answers)
        loss = nats / tokens
        spread = math.sqrt(
            sum((-value - loss * count) ** 2 for value, count in answers)
            * len(answers)
            / max(1, len(answers) - 1)
        )
        scale = math.log(store.read_json(model.folder / "config.json")["vocab_size"])
        name = self.benchmark.name
        found = {
            "alias": name,
            "loss,none": loss / scale,
            "loss_stderr,none": spread / tokens / scale,
            "tokens,none": tokens,
        }
        samples = [
            {
                "doc_id": k,
                "doc": {"id": k},
                "loglikelihood": value,
                "tokens": count,
                "filtered_resps": [],
                "arguments": [],
            }
            for k, (value, count) in enumerate(answers)
        ]
        return {
            "results": {name: found}, "versions": {name: 1}, "n-shot": {name: 0}, "samples": {name: samples},
            "higher_is_better": {name: {"loss": False}},
            "n-samples": {name: {"original": len(answers), "effective": len(answers)}},
        }  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """Where the rows came from."""
        if self.loaded is None:
            return {self.benchmark.name: {"validation": self.source.record()}}
        return {
            task: {split: s.record() for split, s in splits.items()}
            for task, splits in self.loaded.sources.items()
        }

    def value(self, found: dict[str, Any]) -> tuple[str, float, float | None, int]:
        """(metric, value, standard error, documents) of lm-eval's results."""
        counts = found["n-samples"]
        n = sum(entry["effective"] for entry in counts.values())
        metric = self.benchmark.metric or _first_metric(found["results"])
        name, _, kept = metric.partition(",")
        groups = found.get("groups") or {}
        rows = (
            [groups[self.benchmark.name]]
            if self.benchmark.name in groups
            else [found["results"][task] for task in counts]
        )
        own = {part.name: part.definition.metric.partition(",")[0] for part in self.benchmark.parts}
        values, errors = [], []
        for task, row in zip(counts, rows, strict=False):
            key = name if len(rows) == 1 else own.get(task, name)
            values.append(float(row[f"{key},{kept or 'none'}"]))
            error = row.get(f"{key}_stderr,{kept or 'none'}")
            errors.append(float(error) if isinstance(error, (int, float)) else None)
        known = [error for error in errors if error is not None]
        spread = (
            math.sqrt(sum(error * error for error in known)) / len(values)
            if len(known) == len(values)
            else None
        )
        return name, sum(values) / len(values), spread, n

    def complete(self) -> bool | None:
        return self.loaded.complete() if self.loaded else self.source.rows == self.source.official

    def shots(self) -> str | None:
        return self.loaded.shots if self.loaded else None


def _first_metric(rows: dict[str, dict[str, Any]]) -> str:
    """The metric of a task of lm-eval's own: its normalised accuracy where it has one, else the first that it names."""
    row = next(iter(rows.values()))
    names = [key for key in row if "," in key and "_stderr" not in key]
    return next((key for key in names if key.startswith("acc_norm")), names[0])


def _loss_rows(
    benchmark: benchmarks.Benchmark, data: Path | None, limit: int | None
) -> tuple[list[str], local_data.Source]:
    part = benchmark.parts[0]
    split = part.definition.data["validation"]
    if data is None and not split.file.startswith("./"):
        texts = _stream(split.home, limit)
        return texts, local_data.Source(
            Path(split.home), len(texts), split.rows, store.text_digest("\n".join(texts))
        )
    file = local_data.require(benchmark, part, "validation", data or Path())
    rows = local_data.read(file, part.definition.columns)
    return [row[part.definition.columns[0]] for row in rows[:limit]], local_data.source(
        file, len(rows), split.rows
    )


def _stream(home: str, limit: int | None) -> list[str]:
    """The first texts of the hub's C4, streamed: it is never fetched whole."""
    import datasets

    name, _, configuration = home.partition(", ")
    try:
        rows = datasets.load_dataset(name, configuration, split="validation", streaming=True)
        return [row["text"] for row in rows.take(limit or 1000)]
    except (OSError, datasets.exceptions.DatasetsError, ConnectionError, ValueError) as error:
        raise UserError(
            f"cannot fetch {home} from the hub ({str(error).splitlines()[0][:200]}); pass --data DIR with c4/validation.jsonl"
        ) from None
