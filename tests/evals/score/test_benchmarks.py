from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline import store
from pipeline.evals.score import benchmarks
from pipeline.types import UserError


@pytest.mark.parametrize("name", sorted(benchmarks.known()))
def test_every_benchmark_names_a_task_of_lm_evals_and_its_source(name: str) -> None:
    benchmark = benchmarks.find(name)
    assert benchmark.source and benchmark.metric and benchmark.parts
    assert all(part.harness is None or part.harness.is_file() for part in benchmark.parts)
    if name in ("mmlu", "cot-mmlu"):
        assert len(benchmark.parts) == 57 and benchmark.is_family
    # The number of shots and the metric are stated in the file itself, not inherited.
    text = benchmarks.known()[name].read_text()
    assert ("num_fewshot:" in text or benchmark.members) and "metric:" in text and "source:" in text


def write(folder: Path, name: str, title: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    definition = yaml.safe_load(benchmarks.known()["arc"].read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**definition, "title": title}))


def test_the_project_comes_first_then_the_checkout_then_the_package(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artefact's project counts, whatever the current directory."""
    checkout = Path(benchmarks.__file__).parents[3] / "evals" / "benchmarks"
    assert benchmarks.folders() == [checkout]
    write(workdir / "evals" / "benchmarks", "arc", "of the current directory")
    write(workdir / "other" / "evals" / "benchmarks", "arc", "of the artefact's project")
    project = store.Project.of(workdir / "other" / "graphs" / "m" / "base.fp32.onnx")
    assert benchmarks.find("arc", project=project).title == "of the artefact's project"
    assert benchmarks.find("arc").title == "of the current directory"
    assert benchmarks.find("hellaswag", project=project).folder == checkout
    package = workdir / "site-packages" / "pipeline"
    monkeypatch.setattr(benchmarks, "__file__", str(package / "evals" / "score" / "benchmarks.py"))
    write(package.parent / "evals" / "benchmarks", "arc", "of another package called evals")
    write(package / "evals" / "benchmarks", "arc", "of the wheel")
    assert benchmarks.folders(store.Project(workdir / "none")) == [package / "evals" / "benchmarks"]


def test_a_subject_of_a_family_is_a_benchmark() -> None:
    anatomy = benchmarks.find("mmlu_anatomy")
    assert [part.subject for part in anatomy.parts] == ["anatomy"] and anatomy.title.endswith(": anatomy")


def test_other_shots_are_in_every_part() -> None:
    smoke = benchmarks.find("smoke", 3)
    assert smoke.num_fewshot == 3 and {part.definition.num_fewshot for part in smoke.parts} == {3}
    assert benchmarks.find("smoke").num_fewshot is None
    for name, count in (("c4-loss", 2), ("arc", -1)):
        with pytest.raises(UserError, match=f"--num-fewshot {count} means nothing for {name}"):
            benchmarks.find(name, count)


SINGLE = (
    "title: x\nsource: y\nmetric: acc\nnum_fewshot: 0\ncolumns: [a]\nharness: {harness}\n"
    "data: {{ test: {{ file: {file}, rows: 1, from: here }} }}\n"
)
"""A benchmark of one task."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\nsource: y\nmetrics: acc\n", r"bad\.yaml is no benchmark: "),
        ("title: [x\n", r"bad\.yaml cannot be read as YAML: while parsing"),
        ("- a\n", r"bad\.yaml is no benchmark: "),
        (SINGLE.format(harness="../../../etc/passwd", file="a"), "harness Value error, .* no path inside"),
        (SINGLE.format(harness="/etc/passwd", file="a"), "harness Value error, .* no path inside"),
        (SINGLE.format(harness="arc/missing.yaml", file="a"), "lm-eval has no arc/missing.yaml under"),
        (SINGLE.format(harness="arc/README.md", file="a"), "is no task of lm-eval's|cannot be read"),
        (SINGLE.format(harness="null", file="./../../a"), r"data.test.file Value error, .* no path inside"),
        ("title: &a [*a]\n", "an anchor or an alias"),
    ],
)
def test_a_bad_file_is_one_line(text: str, message: str, workdir: Path) -> None:
    (workdir / "evals" / "benchmarks").mkdir(parents=True)
    (workdir / "evals" / "benchmarks" / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        benchmarks.find("bad")
    assert "\n" not in str(refusal.value)


def test_names_are_read_from_the_option(workdir: Path) -> None:
    assert benchmarks.check_names(" arc, mmlu,arc ,") == ["arc", "mmlu"]
    with pytest.raises(UserError, match="names nothing"):
        benchmarks.check_names(" , ")
    with pytest.raises(UserError, match="cannot be a file name"):
        benchmarks.check_names("../arc")


@pytest.mark.slow
def test_unknown_tasks_get_the_nearest_names(workdir: Path) -> None:
    """Reads lm-eval's 14,000 files, which only a name that is none of the project's does."""
    with pytest.raises(UserError, match=r"no task 'helaswag'.*hellaswag"):
        benchmarks.find("helaswag")
    assert benchmarks.find("lambada_openai").parts == ()


def test_smoke_is_sound() -> None:
    """Counts, balance, and no question twice."""
    folder = benchmarks.find("smoke").folder
    assert folder is not None
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("arc", "hellaswag", "boolq")
    }
    assert len(rows["arc"]) >= 120 and len(rows["hellaswag"]) >= 60 and len(rows["boolq"]) >= 40
    assert len({row["question"] for row in rows["arc"]}) == len(rows["arc"])
    for row in rows["arc"]:
        assert len(set(row["choices"]["text"])) == 4 and row["answerKey"] in row["choices"]["label"]
    for name, key, kinds in (("arc", "answerKey", 4), ("hellaswag", "label", 4), ("boolq", "label", 2)):
        answers = [row[key] for row in rows[name]]
        counts = [answers.count(value) for value in set(answers)]
        assert len(counts) == kinds and max(counts) - min(counts) <= 2
    assert all(
        row["ctx"] == f"{row['ctx_a']} {row['ctx_b']}" and len(set(row["endings"])) == 4
        for row in rows["hellaswag"]
    )
    assert all(re.fullmatch(r"[^?]+", row["question"]) for row in rows["boolq"])


def test_probes_is_the_mean_of_four_benchmarks_that_are_scored_with_it(workdir: Path) -> None:
    names = ["probe-arithmetic", "probe-brackets", "probe-copy", "probe-facts"]
    probes = benchmarks.find("probes")
    assert list(probes.members) == [part.name for part in probes.parts] == names
    assert benchmarks.with_members(["probes"]) == [*names, "probes"]
    assert benchmarks.with_members(["probe-copy", "arc", "probes", "lambada_openai"]) == [
        "probe-copy", "arc", "probe-arithmetic", "probe-brackets", "probe-facts", "probes", "lambada_openai"
    ]  # fmt: skip
    for part in probes.parts:
        (alone,) = benchmarks.find(part.name).parts
        assert alone.definition == part.definition and alone.harness == part.harness


def test_a_mean_names_benchmarks_of_one_task_beside_it(workdir: Path) -> None:
    folder = workdir / "evals" / "benchmarks"
    folder.mkdir(parents=True)
    mean = "title: x\nsource: y\nmetric: acc\nmean_of: [{}]\n"
    for member, message in (
        ("missing", r"missing\.yaml"),
        ("own", r"own\.yaml is no benchmark of one task, and only such ones make a mean"),
        ("../own", "no path inside"),
    ):
        (folder / "own.yaml").write_text(mean.format(member))
        with pytest.raises(UserError, match=message) as refusal:
            benchmarks.find("own")
        assert "\n" not in str(refusal.value)


def test_chance_follows_from_the_number_of_choices() -> None:
    """The mean over a benchmark's parts; none of a loss, of a written answer, or where the number varies."""
    chances = {name: benchmarks.find(name).chance for name in benchmarks.known()}
    assert chances.pop("smoke") == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    known = {"hellaswag": 0.25, "mmlu": 0.25, "boolq": 0.5, "probes": 0.25}
    known |= {f"probe-{name}": 0.25 for name in ("arithmetic", "brackets", "copy", "facts")}
    assert {name: chance for name, chance in chances.items() if chance is not None} == known
    assert {"arc", "truthfulqa", "gsm8k", "c4-loss"} <= set(chances)


def test_a_form_is_a_known_one_and_has_its_columns(workdir: Path) -> None:
    file = workdir / "evals" / "benchmarks" / "own.yaml"
    file.parent.mkdir(parents=True)
    text = benchmarks.known()["arc"].read_text()
    file.write_text(text.replace("form: arc", "form: ark"))
    with pytest.raises(UserError, match=r"own\.yaml is no benchmark: form Input should be 'arc'"):
        benchmarks.find("own")
    file.write_text(text.replace("form: arc", "form: mmlu"))
    with pytest.raises(UserError, match="lacks columns of the form mmlu: answer"):
        benchmarks.find("own")
