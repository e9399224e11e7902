"""report and figures as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.types import UserError
from tests import results
from tests.commands import run


def test_report_writes_its_files_and_prints_the_page(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.small_grid("m")
    page = run(capsys, "report", "--model", "m").strip()
    assert Path(page).parent == Path("evals/report") and Path(page).is_file()
    files = json.loads(run(capsys, "report", "--out", "out", "--json"))
    assert len(files) > 3 and all(Path(file).is_file() for file in files)
    assert {Path(file).parts[0] for file in files} == {"out"}


def test_figures_of_a_model_without_measurements(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.config("my model é")
    message = "nothing of my model é has been measured .*; begin with `pipeline calibrate 'my model é'`"
    with pytest.raises(UserError, match=message):
        run(capsys, "figures", "my model é")
