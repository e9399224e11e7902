"""A benchmark as lm-eval's own task objects, over local rows or the hub's."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pipeline import store
from pipeline.evals.score import local_data
from pipeline.evals.score.answers import BAD_ROW, judged
from pipeline.evals.score.benchmarks import Benchmark, Part
from pipeline.evals.score.cached_task import SEED, CachedTask
from pipeline.store.records import DataSource
from pipeline.types import UserError, first_line

TaskDict = dict[str, Any]
"""What lm_eval.evaluate takes: {"tasks": {name: task}, "groups": {name: group}}."""
TaskConfig = dict[str, Any]
"""A task's YAML, as lm-eval reads it."""
HarnessResults = dict[str, Any]
"""What lm_eval.evaluate gives: 'results', 'samples', 'versions', 'n-samples', …"""
Sources = dict[str, dict[str, DataSource]]
"""Task → split → where its rows came from; empty for rows from the hub."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
BOOTSTRAP = 1000
"""Resamples for the standard error of a metric that has no formula."""
HUB_ERRORS = (OSError, datasets.exceptions.DatasetsError, ConnectionError)


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """A benchmark whose rows are read.

    Attributes:
        benchmark: its definition.
        tasks: lm-eval's objects.
        sources: where the rows came from.
        shots: where few-shot examples came from, if not from the split that they should come from.
    """

    benchmark: Benchmark
    tasks: TaskDict
    sources: Sources
    shots: str | None

    def instances(self, limit: int | None) -> dict[str, list[Instance]]:
        """Kind of request → the questions of the first `limit` documents of each task.

        Raises:
            UserError: a document makes no prompt, or its right answer is none of its choices.
        """
        questions: dict[str, list[Instance]] = {}
        for task in self.tasks["tasks"].values():
            task.set_fewshot_seed(SEED)
            _build_requests(task, limit)
            for instance in task.instances:
                questions.setdefault(instance.request_type, []).append(instance)
        return questions

    def evaluate(self, model: LM, limit: int | None) -> HarnessResults:
        """lm-eval's results of a model."""
        for task in self.tasks["tasks"].values():
            task.set_fewshot_seed(SEED)
        results = lm_eval.evaluate(
            model, self.tasks, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True
        )
        return dict(results)

    def complete(self) -> bool | None:
        """Whether all rows of the published set are there; None where they came from the hub."""
        if not self.sources:
            return None
        if self.shots:
            return False
        splits = [(split, source) for task in self.sources.values() for split, source in task.items()]
        if not self.benchmark.is_family:
            return all(source.rows == source.official_rows for _, source in splits)
        counts = Counter[str]()  # a family's published counts are those of all its subjects together
        for split, source in splits:
            counts[split] += source.rows
        return all(counts[split] == source.official_rows for split, source in splits)


def _build_requests(task: Task, limit: int | None) -> None:
    """Makes a task's questions; those of the hub's rows are judged as local ones are."""
    if isinstance(task, CachedTask) or not isinstance(task, ConfigurableTask):
        task.build_all_requests(limit=limit)
        return
    with judged(task, dict(task.doc_iterator(limit=limit))):
        task.build_all_requests(limit=limit)


def load(
    benchmark: Benchmark, data: Path | None, protocol: str, project: store.Project | None = None
) -> LoadedTasks:
    """Reads the rows of a benchmark's tasks.

    Args:
        benchmark: its definition.
        data: folder of local rows; None takes them from the hub, through lm-eval.
        protocol: 'v1' averages a family's subjects unweighted, 'lm-eval' by their size.
        project: where prompts are kept; by default the current directory.

    Raises:
        UserError: rows are missing, malformed, or cannot be fetched.
    """
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that local rows take no keyword arguments
    if not benchmark.parts:
        return _of_harness(benchmark, data)
    sources: Sources = {}
    tasks, shots = list[CachedTask](), None
    for part in benchmark.parts:
        if data is None and not all(split.file.startswith("./") for split in part.definition.data.values()):
            config = _base_config(part)
        else:
            config, sources[part.name], other_shots = _local_config(benchmark, part, data or Path())
            shots = shots or other_shots
        tasks.append(_task(config, part, project or store.Project()))
    by_name: TaskDict = {"tasks": {task.task_name: task for task in tasks}, "groups": {}}
    if benchmark.is_family and len(tasks) > 1:
        by_name["groups"] = {benchmark.name: _group(benchmark, tasks, protocol)}
        by_name["group_map"] = {benchmark.name: list(by_name["tasks"])}
    return LoadedTasks(benchmark, by_name, sources, shots)


def _base_config(part: Part) -> TaskConfig:
    """lm-eval's YAML of the task, under the part's name and with its number of shots."""
    assert part.harness is not None
    config: TaskConfig = dict(load_yaml(part.harness))
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return config | {"task": part.name, "num_fewshot": part.definition.num_fewshot}


def _local_config(
    benchmark: Benchmark, part: Part, data: Path
) -> tuple[TaskConfig, dict[str, DataSource], str | None]:
    """(configuration, where the rows came from, where the shots came from if not from their own split)."""
    config, definition = _base_config(part), part.definition
    evaluated = config.get("test_split") or config["validation_split"]
    has_own_shots = "samples" in (config.get("fewshot_config") or {})
    pool, shots = evaluated, None
    if definition.num_fewshot and not has_own_shots:
        pool, shots = _shots_split(benchmark, part, evaluated, data)
    rows, sources = {}, {}
    for split in dict.fromkeys([evaluated, pool]):
        file = local_data.require(benchmark, part, split, data)
        read = local_data.read(file, definition.columns, definition.form, definition.choices)
        official = definition.data[split].rows
        sources[split] = local_data.source(file, len(read), official)
        rows[split] = local_data.dataset(file, read)
        if split != evaluated and not benchmark.is_family and len(read) != official:
            shots = f"{file}: {len(read)} rows, the official {split} split has {official}"
    config |= {name: config.get(name) if config.get(name) in rows else None for name in SPLITS}
    if not has_own_shots:
        config["fewshot_split"] = pool
    dataset = datasets.DatasetDict(rows)
    config |= {"custom_dataset": lambda **_: dataset, "dataset_path": "local", "dataset_kwargs": None}
    return config, sources, shots


def _shots_split(benchmark: Benchmark, part: Part, evaluated: str, data: Path) -> tuple[str, str | None]:
    """(the split of the few-shot examples, a note where that is the benchmark's own rows)."""
    splits = part.definition.data
    pool = next((split for split in splits if split != evaluated), evaluated)
    if pool != evaluated and local_data.file_of(benchmark, part, splits[pool], data):
        return pool, None
    why = "" if pool == evaluated else f": {splits[pool].file} is missing"
    return evaluated, f"{evaluated} rows of the benchmark itself{why}"


def _task(config: TaskConfig, part: Part, project: store.Project) -> CachedTask:
    try:
        task = CachedTask(config=config)
    except HUB_ERRORS as error:
        home = next(iter(part.definition.data.values())).home
        raise UserError(
            f"cannot fetch the rows of {part.name} ({home}) from the hub ({type(error).__name__}: "
            f"{first_line(error)}); pass --data DIR with local rows, or set PIPELINE_DATA"
        ) from None
    except BAD_ROW as error:
        raise UserError(
            f"the first row of {part.name} makes no prompt: {type(error).__name__} {error}"
        ) from None
    task.project = project
    task.set_fewshot_seed(SEED)
    return task


def _group(benchmark: Benchmark, tasks: list[CachedTask], protocol: str) -> Group:
    """The family as lm-eval's group, which computes its mean and pooled standard error."""
    metric, _, chosen_filter = benchmark.metric.partition(",")
    aggregation = {
        "metric": metric,
        "weight_by_size": protocol != "v1",
        "filter_list": [chosen_filter or "none"],
    }
    group = Group.from_config(GroupConfig(group=benchmark.name, aggregate_metric_list=[aggregation]))  # type: ignore[list-item]
    for task in tasks:
        group.add(task)
    return group


def _of_harness(benchmark: Benchmark, data: Path | None) -> LoadedTasks:
    """A task of lm-eval's by its own name, with rows from the hub."""
    manager = TaskManager()
    try:
        loaded = manager.load([benchmark.name])
    except HUB_ERRORS as error:
        hint = f"; this project knows no local form of it, so {data} does not help" if data else ""
        raise UserError(f"cannot fetch the rows of {benchmark.name} ({first_line(error)}){hint}") from None
    except ImportError as error:
        raise UserError(f"{benchmark.name} needs a package that is not here: {first_line(error)}") from None
    for task in loaded["tasks"].values():
        if benchmark.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=benchmark.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(SEED)
    return LoadedTasks(benchmark, dict(loaded), {}, None)
