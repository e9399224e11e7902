"""Results of other weights do not reach the report: it says which they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.report import collect
from pipeline.types import SkipSet
from tests import tiny


def project(seed: int) -> Path:
    """graphs/m of the current directory with base and mlp1, both checked."""
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(Path("models/m"), seed=seed))))
    cut = variants.cut(base, SkipSet.parse("mlp1"))
    for graph in (base, cut):
        tiny.passed(graph)
    return cut


def taken() -> tuple[set[str], dict[str, str]]:
    """(names of the artefacts in the report, file → why it is not)."""
    collection = collect.gather()
    return {one.name for one in collection.artefacts}, {p.name: p.reason for p in collection.problems}


def test_results_of_what_is_there_are_taken(workdir: Path) -> None:
    project(0)
    assert taken() == ({"base.fp32", "mlp1.fp32"}, {})
    shutil.rmtree("graphs")  # brought from another machine
    assert taken() == ({"base.fp32", "mlp1.fp32"}, {})


def test_results_copied_from_another_project_are_named(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        (workdir / name).mkdir()
        monkeypatch.chdir(workdir / name)
        project(seed)
    shutil.copytree(workdir / "one" / "evals", "evals", dirs_exist_ok=True)
    names, problems = taken()
    assert names == set() and len(problems) == 2
    assert all("is of another" in why for why in problems.values())


def test_results_of_weights_that_were_trained_on_are_named(workdir: Path) -> None:
    cut = project(0)
    tiny.checkpoint(cut.parent, seed=1)
    names, problems = taken()
    assert names == set()
    assert all(r"model.safetensors is not what" in why for why in problems.values()), problems
    export.export_base(checkpoint.open_checkpoint(cut.parent))
    cut.unlink()  # mlp1 is not cut again yet: its result is known by the identity that it names
    result = store.result_of(cut, "check")
    data = {**json.loads(result.read_text()), "weights": store.weights.MARK + "0" * 64}
    result.write_text(json.dumps(data))
    names, problems = taken()
    assert names == set() and "is of other weights than those in graphs/m" in problems[str(result)]
