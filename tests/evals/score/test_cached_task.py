from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline import store
from pipeline.evals.score import benchmarks, cached_task, tasks
from pipeline.evals.score.cached_task import CachedTask
from pipeline.types import UserError
from tests import scoring, tiny
from tests.scoring import ARC_ROW, arc, lines

TRAIN = lines(*({**ARC_ROW, "question": f"q{k}"} for k in range(30)))


def load(data: Path, project: store.Project | None = None) -> CachedTask:
    loaded = tasks.load(benchmarks.find("arc"), data, "lm-eval", project)
    return loaded.tasks["tasks"]["arc_challenge"]


def test_prompts_are_built_once_for_the_same_rows(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = arc(workdir / "data", lines(ARC_ROW, {**ARC_ROW, "question": "When?"}), TRAIN)
    first = load(data)
    first.build_all_requests(limit=None)
    again = load(data)
    build = "build_all_requests"
    monkeypatch.setattr(cached_task.ConfigurableTask, build, lambda *_, **__: pytest.fail("built again"))
    again.build_all_requests(limit=None)
    assert [(i.args, i.doc, i.idx, i.metadata) for i in again.instances] == [
        (i.args, i.doc, i.idx, i.metadata) for i in first.instances
    ]
    with pytest.raises(pytest.fail.Exception, match="built again"):
        again.build_all_requests(limit=1)
    arc(data, lines({**ARC_ROW, "question": "Other?"}))
    with pytest.raises(pytest.fail.Exception, match="built again"):  # other rows, other prompts
        load(data).build_all_requests(limit=None)


PRINTED = """
import sys
from pathlib import Path
from pipeline.evals.score import benchmarks, tasks
for name in ("arc", "hellaswag", "truthfulqa", "gsm8k", "boolq"):
    try:
        loaded = tasks.load(benchmarks.find(name), Path(sys.argv[1]), "lm-eval").tasks["tasks"]
    except ValueError:
        continue
    for task in loaded.values():
        task.build_all_requests(limit=None)
        print(task.task_name, task._digest(None, {"apply_chat_template": False}))
"""


@pytest.mark.slow
def test_the_key_of_the_prompts_is_that_of_every_process(workdir: Path) -> None:
    """It held addresses of functions (hellaswag's process_docs), so that no later run found its prompts."""
    data = scoring.write_rows(workdir / "data")
    hella = {"ind": 1, "activity_label": "A", "ctx_a": "He is", "ctx_b": "a", "ctx": "He is a",
             "endings": ["x", "y", "z", "w"], "source_id": "s", "label": "1", "split": "val"}  # fmt: skip
    scoring.put(data / "hellaswag" / "validation.jsonl", *({**hella, "ind": k} for k in range(12)))
    scoring.put(data / "hellaswag" / "train.jsonl", *({**hella, "ind": k} for k in range(20)))
    printed, files = set(), set()
    for seed in ("1", "2"):
        environment = {**tiny.environment(), "PYTHONHASHSEED": seed}
        line = [sys.executable, "-c", PRINTED, str(data)]
        done = subprocess.run(line, env=environment, cwd=workdir, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.add(done.stdout)
        files.add(frozenset(workdir.rglob("*.json.gz")))
    assert len(printed) == 1 and "hellaswag" in printed.pop()
    assert len(files) == 1 and len(files.pop()) >= 4


def test_a_broken_file_is_made_again(workdir: Path) -> None:
    data = arc(workdir / "data", lines(ARC_ROW), TRAIN)
    first = load(data)
    first.build_all_requests(limit=None)
    (file,) = workdir.rglob("*.json.gz")
    whole = file.read_bytes()
    for content in (whole[:40], b"", b"hello", gzip.compress(b"{}"), gzip.compress(b'{"contexts": [')):
        file.write_bytes(content)
        again = load(data)
        again.build_all_requests(limit=None)
        assert [i.args for i in again.instances] == [i.args for i in first.instances]


def test_prompts_are_kept_in_the_project(workdir: Path) -> None:
    data = arc(workdir / "data", lines(ARC_ROW), TRAIN)
    load(data, store.Project(workdir / "p é")).build_all_requests(limit=None)
    assert [path.parent for path in workdir.rglob("*.json.gz")] == [workdir / "p é" / "evals/cache/prompts"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**ARC_ROW, "answerKey": "Q"},
            "test.jsonl, line 2: 'answerKey' is 'Q', none of the choices' labels",
        ),
        ({**ARC_ROW, "choices": {"text": [], "label": []}}, "test.jsonl, line 2: 'choices.text' is empty"),
    ],
)
def test_a_bad_row_is_named(row: dict, message: str, workdir: Path) -> None:
    data = arc(workdir / "data", lines(ARC_ROW, row), TRAIN)
    with pytest.raises(UserError, match=message):
        load(data).build_all_requests(limit=None)


def test_a_first_row_that_is_bad_is_named_when_it_is_read(workdir: Path) -> None:
    data = arc(workdir / "data", lines({**ARC_ROW, "answerKey": "Q"}), TRAIN)
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: 'answerKey' is 'Q'"):
        load(data).build_all_requests(limit=None)


def own_task(workdir: Path, rows: datasets.Dataset, **config: Any) -> cached_task.CachedTask:
    """A task of the user's own, whose rows come from no file that is read here."""
    common = {"task": "own", "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}"}
    custom = {"custom_dataset": lambda **_: datasets.DatasetDict({"test": rows})}
    task = cached_task.CachedTask(config={**common, "doc_to_choice": ["no", "yes"], **custom, **config})
    task.project = store.Project(workdir)
    return task


def test_a_row_that_the_template_cannot_take_is_named(workdir: Path) -> None:
    rows = datasets.Dataset.from_list([{"q": "a", "gold": {"n": 1}}, {"q": "b", "gold": None}])
    task = own_task(workdir, rows, doc_to_target="{{gold.n + 0}}")
    with pytest.raises(UserError, match="row 2 of own makes no prompt: "):
        task.build_all_requests()


@pytest.mark.parametrize(("target", "answer"), [("gold", 3), ("minus", -1)])
def test_an_answer_beyond_the_choices_is_refused(target: str, answer: int, workdir: Path) -> None:
    rows = datasets.Dataset.from_list([{"q": "a", "gold": 1, "minus": 0}, {"q": "b", "gold": 3, "minus": -1}])
    task = own_task(workdir, rows, doc_to_target=target)
    with pytest.raises(UserError, match=f"row 2 of own: its answer is {answer}, none of its 2"):
        task.build_all_requests()
    task.build_all_requests(limit=1)
    assert len(task.instances) == 2
