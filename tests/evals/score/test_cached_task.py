from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.evals.score import benchmarks, cached_task, tasks
from pipeline.evals.score.cached_task import CachedTask
from pipeline.types import UserError
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


def test_prompts_are_kept_in_the_project(workdir: Path) -> None:
    data = arc(workdir / "data", lines(ARC_ROW), TRAIN)
    load(data, store.Project(workdir / "p é")).build_all_requests(limit=None)
    assert [path.parent for path in workdir.rglob("*.json.gz")] == [workdir / "p é" / "evals/cache/prompts"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ARC_ROW, "answerKey": "Q"}, "row 2 of arc_challenge makes no prompt: ValueError"),
        ({**ARC_ROW, "choices": {"text": [], "label": []}}, "row 2 of arc_challenge makes no prompt"),
    ],
)
def test_a_bad_row_is_named(row: dict, message: str, workdir: Path) -> None:
    data = arc(workdir / "data", lines(ARC_ROW, row), TRAIN)
    with pytest.raises(UserError, match=message):
        load(data).build_all_requests(limit=None)


def test_a_first_row_that_is_bad_is_named_when_it_is_read(workdir: Path) -> None:
    data = arc(workdir / "data", lines({**ARC_ROW, "answerKey": "Q"}), TRAIN)
    with pytest.raises(UserError, match="makes no prompt"):
        load(data).build_all_requests(limit=None)
