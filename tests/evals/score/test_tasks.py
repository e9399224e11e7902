from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.evals.score import benchmarks, tasks
from pipeline.evals.score.cached_task import SEED
from pipeline.types import UserError
from tests import scoring
from tests.scoring import ARC_ROW, DATA, arc, lines, needs_data


def load(name: str, data: Path | None, protocol: str = "lm-eval") -> tasks.LoadedTasks:
    return tasks.load(benchmarks.find(name), data, protocol)


@needs_data
@pytest.mark.parametrize(
    "name", ["arc", "hellaswag", "truthfulqa", "mmlu_anatomy", "boolq", "gsm8k", "cot-mmlu", "qmsum"]
)
def test_every_benchmark_makes_prompts_of_local_rows(name: str, workdir: Path) -> None:
    if name == "qmsum":
        pytest.importorskip("rouge", reason="qmsum needs lm_eval[longbench]")
    benchmark = benchmarks.find(name)
    if name == "cot-mmlu":
        benchmark = replace(benchmark, parts=benchmark.parts[:2])
    loaded = tasks.load(benchmark, DATA, "lm-eval")
    task = next(iter(loaded.tasks["tasks"].values()))
    task.build_all_requests(limit=2)
    contexts = {instance.args[0] for instance in task.instances}
    assert len(contexts) == 2 and all(contexts)
    shots = benchmark.parts[0].definition.num_fewshot
    separators = {"arc": "Question:", "gsm8k": "Question:", "mmlu_anatomy": "Answer:", "truthfulqa": "Q:"}
    if name in separators:
        count = next(iter(contexts)).count(separators[name])
        assert count == (7 if name == "truthfulqa" else shots + 1)
    assert next(iter(loaded.sources[task.task_name].values())).sha256


@needs_data
def test_prompts_are_lm_evals_own(workdir: Path) -> None:
    """The same rows through lm-eval's task as it is, by the way that its documentation names."""
    from lm_eval.tasks import TaskManager

    ours = load("arc", DATA).tasks["tasks"]["arc_challenge"]
    files = {
        split: str(DATA / "arc_challenge" / f"{split}.jsonl") for split in ("train", "validation", "test")
    }
    folder = benchmarks.find("arc").parts[0].harness.parent  # type: ignore[union-attr]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    override = {"task": "arc_challenge", "num_fewshot": 25, "dataset_path": "json", "dataset_name": None}
    group = {"group": "local", "task": [{**override, "dataset_kwargs": {"data_files": files}}]}
    reference = manager.load([group])["tasks"]["arc_challenge"]
    reference.set_fewshot_seed(SEED)
    for task in (ours, reference):
        task.build_all_requests(limit=3)
    assert [i.args for i in ours.instances] == [i.args for i in reference.instances]


def test_shots_from_elsewhere_are_reported(workdir: Path) -> None:
    rows = [{**ARC_ROW, "question": f"q{k}"} for k in range(40)]
    loaded = load("arc", arc(workdir / "data", lines(*rows)))
    assert loaded.shots and "test rows of the benchmark itself" in loaded.shots and loaded.complete() is False
    for instance in loaded.instances(5)["loglikelihood"]:  # a question is never its own example
        assert instance.args[0].count(f"Question: {instance.doc['question']}\n") == 1
    few = arc(workdir / "few", lines(*rows), lines(*rows[:28]))
    assert "28 rows, the official train split has 1119" in (load("arc", few).shots or "")
    scarce = arc(workdir / "scarce", lines(*rows), lines(*rows[:3]))
    with pytest.raises(UserError, match="arc_challenge: no prompts can be made"):
        load("arc", scarce).instances(2)


def test_a_family_is_averaged_as_the_protocol_says(workdir: Path) -> None:
    for subject, count in (("anatomy", 3), ("virology", 1)):
        rows = scoring.mmlu_rows(subject)
        scoring.put(workdir / "data" / "mmlu" / subject / "dev.jsonl", *rows[:5])
        scoring.put(workdir / "data" / "mmlu" / subject / "test.jsonl", *rows[:count])
    whole = benchmarks.find("mmlu")
    two = replace(whole, parts=tuple(p for p in whole.parts if p.subject in ("anatomy", "virology")))
    for protocol, weighted in (("lm-eval", True), ("v1", False)):
        loaded = tasks.load(two, workdir / "data", protocol)
        assert loaded.tasks["groups"]["mmlu"].aggregate_metric_list[0].weight_by_size is weighted
        assert loaded.complete() is False  # of 57 subjects, two


def test_the_whole_published_set_is_complete(workdir: Path) -> None:
    """Of a family the published number is that of all its subjects together."""
    whole = benchmarks.find("mmlu")
    definition = whole.parts[0].definition
    test = definition.data["test"].model_copy(update={"rows": 14})
    definition = definition.model_copy(update={"data": {**definition.data, "test": test}})
    dev = definition.data["dev"].model_copy(update={"rows": 10})
    definition = definition.model_copy(update={"data": {**definition.data, "dev": dev}})
    parts = [part for part in whole.parts if part.subject in ("anatomy", "virology")]
    two = replace(whole, parts=tuple(replace(part, definition=definition) for part in parts))
    assert tasks.load(two, scoring.write_rows(workdir / "data"), "lm-eval").complete() is True


def test_a_benchmark_of_the_project_reads_the_rows_beside_it(workdir: Path) -> None:
    folder = workdir / "evals" / "benchmarks"
    definition = yaml.safe_load(benchmarks.known()["arc"].read_text())
    split = {**definition["data"]["test"], "file": "./rows"}
    scoring.put(folder / "rows.jsonl", ARC_ROW)
    (folder / "own.yaml").write_text(
        yaml.safe_dump({**definition, "num_fewshot": 0, "data": {"test": split}})
    )
    assert load("own", None).sources["arc_challenge"]["test"].rows == 1


def test_without_the_hub_and_without_data_it_says_so(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch the rows of boolq .* pass --data DIR"):
        load("boolq", None)


@pytest.mark.slow
def test_a_task_of_lm_evals_own_says_that_data_does_not_help(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch the rows of lambada_openai .*does not help"):
        load("lambada_openai", workdir)


def test_the_probes_are_continued(workdir: Path) -> None:
    """Four choices behind each text, which ends where its answer begins."""
    loaded = load("probes", None)
    assert loaded.complete() is True and loaded.shots is None
    (questions,) = loaded.instances(2).values()
    assert len(questions) == 4 * 2 * 4
    ends = {
        "probe-arithmetic": "=",
        "probe-brackets": "()[]{}<>",
        "probe-copy": ",",
        "probe-facts": "aeinost",
    }
    for instance in questions:
        context, choice = instance.args
        assert context[-1] in ends[str(instance.task_name)] and choice[0] == " " and choice[1:].strip()
    assert {str(instance.task_name) for instance in questions} == set(ends)
