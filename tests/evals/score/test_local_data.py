"""Benchmarks by name, their rows from local files, and what is said where one cannot be used."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from pipeline.evals.score import benchmarks, local_data, tasks
from pipeline.types import UserError

DATA = Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data")).resolve()
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no benchmark rows at {DATA}; set PIPELINE_TEST_DATA"
)
ROW = {"id": "a", "question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}


def arc(folder: Path, test: str, train: str | None = None) -> Path:
    (folder / "arc_challenge").mkdir(parents=True, exist_ok=True)
    (folder / "arc_challenge" / "test.jsonl").write_text(test)
    if train is not None:
        (folder / "arc_challenge" / "train.jsonl").write_text(train)
    return folder


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(name: str, data: Path | None, protocol: str = "lm-eval") -> tasks.Loaded:
    return tasks.load(benchmarks.find(name), data, protocol)


@pytest.mark.parametrize("name", sorted(benchmarks.known()))
def test_every_benchmark_names_a_task_of_lm_evals_and_its_source(name: str) -> None:
    found = benchmarks.find(name)
    assert found.source and found.metric and found.parts
    assert all(part.harness is None or part.harness.is_file() for part in found.parts)
    if name in ("mmlu", "cot-mmlu"):
        assert len(found.parts) == 57 and found.is_family
    # few-shot count and metric are stated in the file itself, not inherited
    text = benchmarks.known()[name].read_text()
    assert "num_fewshot:" in text and "metric:" in text and "source:" in text


@needs_data
@pytest.mark.parametrize(
    "name", ["arc", "hellaswag", "truthfulqa", "mmlu_anatomy", "boolq", "gsm8k", "cot-mmlu_anatomy", "qmsum"]
)
def test_every_benchmark_makes_prompts_of_local_rows(name: str, workdir: Path) -> None:
    if name == "qmsum":
        pytest.importorskip("rouge", reason="qmsum needs lm_eval[longbench]")
    name = {"cot-mmlu_anatomy": "cot-mmlu"}.get(name, name)
    benchmark = benchmarks.find(name)
    if name == "cot-mmlu":
        benchmark = benchmarks.replace(benchmark, parts=benchmark.parts[:2])
    loaded = tasks.load(benchmark, DATA, "lm-eval")
    task = next(iter(loaded.tasks["tasks"].values()))
    task.build_all_requests(limit=2)
    contexts = {instance.args[0] for instance in task.instances}
    assert len(contexts) == 2 and all(context for context in contexts)
    shots = benchmark.parts[0].definition.num_fewshot
    prompt = next(iter(contexts))
    separators = {"arc": "Question:", "gsm8k": "Question:", "mmlu_anatomy": "Answer:", "truthfulqa": "Q:"}
    if name in separators:
        assert prompt.count(separators[name]) == (7 if name == "truthfulqa" else shots + 1)
    assert loaded.sources[task.task_name][next(iter(loaded.sources[task.task_name]))].sha256


@needs_data
def test_prompts_are_lm_evals_own(workdir: Path) -> None:
    """The same rows through lm-eval's task as it stands, by the road that its documentation names."""
    from lm_eval.tasks import TaskManager

    ours = load("arc", DATA).tasks["tasks"]["arc_challenge"]
    files = {
        split: str(DATA / "arc_challenge" / f"{split}.jsonl") for split in ("train", "validation", "test")
    }
    folder = benchmarks.find("arc").parts[0].harness.parent  # type: ignore[union-attr]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    override = {"task": "arc_challenge", "num_fewshot": 25, "dataset_path": "json", "dataset_name": None}
    group = {"group": "local", "task": [{**override, "dataset_kwargs": {"data_files": files}}]}
    theirs = manager.load([group])["tasks"]["arc_challenge"]
    theirs.set_fewshot_seed(tasks.SEED)
    for task in (ours, theirs):
        task.build_all_requests(limit=3)
    assert [i.args for i in ours.instances] == [i.args for i in theirs.instances]


def test_prompts_are_built_once_for_the_same_rows(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arc(
        workdir / "data",
        lines(ROW, {**ROW, "question": "When?"}),
        lines(*[{**ROW, "question": f"q{k}"} for k in range(30)]),
    )
    first = load("arc", workdir / "data").tasks["tasks"]["arc_challenge"]
    first.build_all_requests(limit=None)
    again = load("arc", workdir / "data").tasks["tasks"]["arc_challenge"]
    monkeypatch.setattr(
        tasks.ConfigurableTask, "build_all_requests", lambda *_, **__: pytest.fail("built again")
    )
    again.build_all_requests(limit=None)
    assert [(i.args, i.doc, i.idx, i.metadata) for i in again.instances] == [
        (i.args, i.doc, i.idx, i.metadata) for i in first.instances
    ]
    arc(workdir / "data", lines({**ROW, "question": "Other?"}))
    other = load("arc", workdir / "data").tasks["tasks"]["arc_challenge"]
    with pytest.raises(pytest.fail.Exception, match="built again"):  # other rows, other prompts
        other.build_all_requests(limit=None)


def test_csv_and_parquet_hold_the_same_rows(workdir: Path) -> None:
    import pandas

    rows = [ROW, {**ROW, "id": "b", "question": 'A, or "B"?'}]
    flat = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
    pandas.DataFrame(flat).to_csv("rows.csv", index=False)
    pandas.DataFrame(rows).to_parquet("rows.parquet")
    Path("rows.jsonl").write_text(lines(*rows))
    columns = ["question", "choices", "answerKey"]
    for name in ("rows.csv", "rows.parquet", "rows.jsonl"):
        found = local_data.read(Path(name), columns)
        assert [row["choices"]["text"] for row in found] == [["x", "y"]] * 2 and found[1][
            "question"
        ] == 'A, or "B"?'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": 1}\n{bad\n', r"test\.jsonl, line 2: not JSON"),
        (lines(ROW) + "\n" + lines({"question": "Why?", "choices": {}}), r"test\.jsonl, line 3: no 'answerKey'"),
        ("[1]\n", r"line 1: not a JSON object"),
        ("", "holds no row"),
        (lines({**ROW, "answerKey": "Q"}), "makes no prompt"),
        (lines(ROW, {**ROW, "choices": {"text": "x"}}), r"test\.jsonl, row 2: not of the form of the first row"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(text: str, message: str, workdir: Path) -> None:
    data = arc(workdir / "data", text, lines(*[{**ROW, "question": f"q{k}"} for k in range(30)]))
    with pytest.raises(UserError, match=message):
        load("arc", data).tasks["tasks"]["arc_challenge"].build_all_requests(limit=None)


def test_missing_rows_say_where_to_get_them(workdir: Path) -> None:
    with pytest.raises(
        UserError, match=r"arc_challenge/test\.jsonl .* https://huggingface.co/datasets/allenai/ai2_arc"
    ):
        load("arc", workdir)
    with pytest.raises(UserError, match=r"mmlu/anatomy/test\.jsonl"):
        load("mmlu_anatomy", workdir)


def test_shots_from_elsewhere_are_said(workdir: Path) -> None:
    rows = [{**ROW, "question": f"q{k}"} for k in range(40)]
    loaded = load("arc", arc(workdir / "data", lines(*rows)))
    assert loaded.shots and "test rows of the benchmark itself" in loaded.shots and loaded.complete() is False
    task = loaded.tasks["tasks"]["arc_challenge"]
    task.build_all_requests(limit=5)
    for instance in task.instances:  # a question is never its own example
        assert instance.args[0].count(f"Question: {instance.doc['question']}\n") == 1
    few = arc(workdir / "few", lines(*rows), lines(*rows[:28]))
    assert "28 rows, the official train split has 1119" in (load("arc", few).shots or "")
    scarce = arc(workdir / "scarce", lines(*rows), lines(*rows[:3]))
    with pytest.raises(UserError, match="arc_challenge: no prompts can be made"):
        load("arc", scarce).tasks["tasks"]["arc_challenge"].build_all_requests(limit=2)


def test_a_family_is_averaged_as_the_protocol_says(workdir: Path) -> None:
    for subject, count in (("anatomy", 3), ("virology", 1)):
        (workdir / "data/mmlu" / subject).mkdir(parents=True)
        rows = [{"question": f"{subject} {k}?", "choices": list("abcd"), "answer": 1} for k in range(6)]
        (workdir / "data/mmlu" / subject / "dev.jsonl").write_text(lines(*rows[:5]))
        (workdir / "data/mmlu" / subject / "test.jsonl").write_text(lines(*rows[:count]))
    whole = benchmarks.find("mmlu")
    two = benchmarks.replace(
        whole, parts=tuple(p for p in whole.parts if p.subject in ("anatomy", "virology"))
    )
    for protocol, weighted in (("lm-eval", True), ("v1", False)):
        group = tasks.load(two, workdir / "data", protocol).tasks["groups"]["mmlu"]
        assert group.aggregate_metric_list[0].weight_by_size is weighted


def test_a_benchmark_of_ones_own_and_bad_ones(workdir: Path) -> None:
    folder = workdir / "evals" / "benchmarks"
    folder.mkdir(parents=True)
    own = yaml.safe_load(benchmarks.known()["arc"].read_text())
    own |= {"num_fewshot": 0, "data": {"test": {**own["data"]["test"], "file": "./rows"}}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(own))
    (folder / "rows.jsonl").write_text(lines(ROW))
    assert load("mine", None).sources["arc_challenge"]["test"].rows == 1
    (folder / "bad.yaml").write_text("title: x\nsource: y\nmetrics: acc\n")
    with pytest.raises(UserError, match=r"bad\.yaml is no benchmark: "):
        benchmarks.find("bad")
    with pytest.raises(UserError, match="names nothing"):
        benchmarks.check_names(" , ")
    with pytest.raises(UserError, match="cannot be a file name"):
        benchmarks.check_names("../arc")


def test_without_the_hub_and_without_data_it_says_so(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch the rows of boolq .* pass --data DIR"):
        load("boolq", None)


@pytest.mark.slow
def test_unknown_tasks_get_the_nearest_names(workdir: Path) -> None:
    """Reads lm-eval's 14,000 files, which only a name that is not ours does."""
    with pytest.raises(UserError, match=r"no task 'helaswag'.*hellaswag"):
        benchmarks.find("helaswag")
    found = benchmarks.find("lambada_openai")
    with pytest.raises(UserError, match="cannot fetch the rows of lambada_openai"):
        tasks.load(found, workdir, "lm-eval")


def test_smoke_is_sound() -> None:
    """Counts, balance, and no question twice."""
    folder = benchmarks.find("smoke").folder
    assert folder is not None
    read = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("arc", "hellaswag", "boolq")
    }
    assert len(read["arc"]) >= 120 and len(read["hellaswag"]) >= 60 and len(read["boolq"]) >= 40
    assert len({row["question"] for row in read["arc"]}) == len(read["arc"])
    for row in read["arc"]:
        assert len(set(row["choices"]["text"])) == 4 and row["answerKey"] in row["choices"]["label"]
    for name, key, kinds in (("arc", "answerKey", 4), ("hellaswag", "label", 4), ("boolq", "label", 2)):
        counts = [sum(row[key] == value for row in read[name]) for value in {row[key] for row in read[name]}]
        assert len(counts) == kinds and max(counts) - min(counts) <= 2
    assert all(
        row["ctx"] == f"{row['ctx_a']} {row['ctx_b']}" and len(set(row["endings"])) == 4
        for row in read["hellaswag"]
    )
    assert all(re.fullmatch(r"[^?]+", row["question"]) for row in read["boolq"])
