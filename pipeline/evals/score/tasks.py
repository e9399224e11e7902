"""A benchmark as lm-eval's own task objects: its prompts, few-shot examples and metrics, over rows from here or the hub."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pipeline import store
from pipeline.evals.score import local_data
from pipeline.evals.score.benchmarks import Benchmark, Part
from pipeline.types import UserError

SEED = 1234
"""lm-eval's own seed of the few-shot draw."""
TaskDict = dict[str, Any]
"""What lm_eval.evaluate takes: {"tasks": {name: task}, "groups": {name: group}}."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A benchmark, ready to be asked.

    Attributes:
        sources: task → split → where its rows came from; empty for rows from the hub.
        shots: where few-shot examples came from, if not from the split that they should come from.
    """

    benchmark: Benchmark
    tasks: TaskDict
    sources: dict[str, dict[str, local_data.Source]]
    shots: str | None

    @property
    def names(self) -> list[str]:
        return list(self.tasks["tasks"])

    def complete(self) -> bool | None:
        """Whether all rows of the published set are there; None where they came from the hub or nothing is known."""
        if not self.sources:
            return None
        if self.shots:
            return False
        every = [(split, source) for of_task in self.sources.values() for split, source in of_task.items()]
        if not self.benchmark.is_family:
            return all(source.rows == source.official for _, source in every)
        counts = Counter[str]()  # of a family the published counts are those of all subjects together
        for split, source in every:
            counts[split] += source.rows
        return all(counts[split] == source.official for split, source in every)


def load(benchmark: Benchmark, data: Path | None, protocol: str) -> Loaded:
    """The benchmark's tasks.

    Args:
        data: folder of local rows; None takes them from the hub, through lm-eval.
        protocol: 'v1' averages a family's subjects unweighted, 'lm-eval' by their size.

    Raises:
        UserError: rows are missing, malformed, or cannot be fetched.
    """
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that local rows take no keyword arguments
    if not benchmark.parts:
        return _of_harness(benchmark, data)
    sources: dict[str, dict[str, local_data.Source]] = {}
    made, shots = [], None
    for part in benchmark.parts:
        config, sources[part.name], replaced = _config(benchmark, part, data)
        shots = shots or replaced
        made.append(_task(config, part))
    tasks: TaskDict = {"tasks": {task.task_name: task for task in made}, "groups": {}}
    if benchmark.is_family and len(made) > 1:
        tasks["groups"] = {benchmark.name: _group(benchmark, made, protocol)}
        tasks["group_map"] = {benchmark.name: list(tasks["tasks"])}
    return Loaded(benchmark, tasks, {name: found for name, found in sources.items() if found}, shots)


def _config(
    benchmark: Benchmark, part: Part, data: Path | None
) -> tuple[dict[str, Any], dict[str, local_data.Source], str | None]:
    """(the task's configuration, where its rows came from, where its shots came from instead of their own split)."""
    assert part.harness is not None
    config = load_yaml(part.harness)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    definition = part.definition
    config |= {"task": part.name, "num_fewshot": definition.num_fewshot}
    if data is None and not all(split.file.startswith("./") for split in definition.data.values()):
        return config, {}, None
    evaluated = config.get("test_split") or config["validation_split"]
    pool, shots = evaluated, None
    if definition.num_fewshot and "samples" not in (config.get("fewshot_config") or {}):
        pool = next((split for split in definition.data if split != evaluated), evaluated)
        if pool == evaluated or local_data.file_of(benchmark, part, definition.data[pool], data) is None:
            why = "" if pool == evaluated else f": {definition.data[pool].file} is missing"
            pool, shots = evaluated, f"{evaluated} rows of the benchmark itself{why}"
    rows, sources = {}, {}
    for split in dict.fromkeys([evaluated, pool]):
        file = local_data.require(benchmark, part, split, data or Path())
        found = local_data.read(file, definition.columns, definition.form)
        official = definition.data[split].rows
        sources[split] = local_data.source(file, len(found), official)
        rows[split] = local_data.dataset(file, found)
        if split != evaluated and not benchmark.is_family and len(found) != official:
            shots = f"{file}: {len(found)} rows, the official {split} split has {official}"
    kept = {name: config.get(name) if config.get(name) in rows else None for name in _SPLITS}
    if "samples" not in (config.get("fewshot_config") or {}):
        kept["fewshot_split"] = pool
    dataset = datasets.DatasetDict(rows)
    config |= kept | {"custom_dataset": lambda **_: dataset, "dataset_path": "local", "dataset_kwargs": None}
    return config, sources, shots


_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def _task(config: dict[str, Any], part: Part) -> KeptTask:
    try:
        task = KeptTask(config=config)
    except (OSError, datasets.exceptions.DatasetsError, ConnectionError) as error:
        home = next(iter(part.definition.data.values())).home
        raise UserError(
            f"cannot fetch the rows of {part.name} ({home}) from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}); pass --data DIR with local rows, or set PIPELINE_DATA"
        ) from None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"the first row of {part.name} makes no prompt: {type(error).__name__} {error}"
        ) from None
    task.set_fewshot_seed(SEED)
    return task


def _group(benchmark: Benchmark, tasks: list[KeptTask], protocol: str) -> Group:
    """The family as lm-eval's group, which computes its mean and pooled standard error."""
    metric, _, kept = benchmark.metric.partition(",")
    aggregation = {"metric": metric, "weight_by_size": protocol != "v1", "filter_list": [kept or "none"]}
    group = Group.from_config(GroupConfig(group=benchmark.name, aggregate_metric_list=[aggregation]))  # type: ignore[list-item]
    for task in tasks:
        group.add(task)
    return group


def _of_harness(benchmark: Benchmark, data: Path | None) -> Loaded:
    """A task of lm-eval's by its own name; with a data folder, its splits are files of DATA/<task>/."""
    manager = TaskManager()
    try:
        loaded = manager.load([benchmark.name])
    except (OSError, datasets.exceptions.DatasetsError, ConnectionError) as error:
        hint = f"; this project knows no local form of it, so {data} does not help" if data else ""
        raise UserError(
            f"cannot fetch the rows of {benchmark.name} ({str(error).splitlines()[0][:200]}){hint}"
        ) from None
    except ImportError as error:
        raise UserError(
            f"{benchmark.name} needs a package that is not here: {str(error).splitlines()[0]}"
        ) from None
    for task in loaded["tasks"].values():
        if benchmark.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=benchmark.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(SEED)
    return Loaded(benchmark, dict(loaded), {}, None)


class KeptTask(ConfigurableTask):
    """A task whose prompts are built once and kept on disk.

    lm-eval's own request cache pickles, and names a file by the task alone: other rows under the same task name would
    get the old prompts. This one is JSON, named by all that the prompts depend on.
    """

    _instances: list[Instance]

    def build_all_requests(self, *, limit: int | None = None, **rest: Any) -> None:
        documents = dict(self.doc_iterator(limit=limit))
        file = store.prompts_path(self._identity(limit, rest))
        if not file.is_file():
            try:
                super().build_all_requests(limit=limit, **rest)
            except (KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
                raise self._blame(documents, error) from None
            _write(file, self._instances)
        self._instances = _read(file, documents)

    def _identity(self, limit: int | None, rest: dict[str, Any]) -> str:
        """Everything that the prompts depend on, digested."""
        config = {
            key: str(value)
            for key, value in self.config.to_dict(keep_callable=False).items()
            if key != "custom_dataset"
        }
        rows = {
            split: store.text_digest(json.dumps(list(data), default=str))
            for split, data in self.dataset.items()
        }
        template = {key: str(value) for key, value in rest.items() if key != "chat_template"}
        told = [importlib.metadata.version("lm_eval"), config, rows, limit, SEED, template]
        return store.text_digest(json.dumps(told, sort_keys=True, default=str))

    def _blame(self, documents: dict[int, Any], error: Exception) -> UserError:
        """Names the row that makes no prompt."""
        for number, document in documents.items():
            try:
                self.doc_to_text(document), self.doc_to_target(document)
                if self.config.doc_to_choice is not None:
                    self.doc_to_choice(document)
            except (KeyError, IndexError, TypeError, ValueError) as own:
                return UserError(
                    f"row {number + 1} of {self.task_name} makes no prompt: {type(own).__name__} {own}"
                )
        return UserError(
            f"{self.task_name}: no prompts can be made of its rows: {str(error) or type(error).__name__}"
        )


def _write(file: Path, instances: list[Instance]) -> None:
    """Contexts are written once: the choices of a question share theirs."""
    contexts = {context: number for number, context in enumerate(dict.fromkeys(i.args[0] for i in instances))}
    rows = [
        [i.request_type, i.task_name, i.doc_id, i.repeats, i.idx, contexts[i.args[0]], list(i.args[1:])]
        for i in instances
    ]
    with (
        store.atomic(file) as temporary,
        gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as out,
    ):
        json.dump({"contexts": list(contexts), "instances": rows}, out)


def _read(file: Path, documents: dict[int, Any]) -> list[Instance]:
    with gzip.open(file, "rt", encoding="utf-8") as held:
        data = json.load(held)
    return [
        Instance(
            kind, documents[document], (data["contexts"][context], *rest), idx, (task, document, repeats)
        )
        for kind, task, document, repeats, idx, context, rest in data["instances"]
    ]
