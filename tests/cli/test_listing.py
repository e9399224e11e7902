"""What a project holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.cli import listing
from pipeline.graphs import variants
from pipeline.types import SkipSet
from tests import overlays, tiny
from tests.commands import run


def test_an_empty_project(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == "no model under graphs/; begin with `pipeline export demo`\n"
    assert json.loads(run(capsys, "list", "--json")) == {}


def test_each_graph_with_its_check_and_what_is_wrong_with_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.passed(model / "base.fp32.onnx")
    (model / "block1.fp32.json").write_text("{}")
    base, block, mlp = json.loads(run(capsys, "list", "--json"))["m"]
    assert base == {
        "path": "graphs/m/base.fp32.onnx",
        "variant": "base",
        "precision": "fp32",
        "bytes": (model / "base.fp32.onnx").stat().st_size,
        "check": "passed",
    }
    assert set(block) == {"path", "problem"} and "is not a valid record" in block["problem"]
    assert mlp["check"] == "not passed yet"
    lines = run(capsys, "list").splitlines()
    assert lines[0] == "m" and "check passed" in lines[1] and "is not a valid record" in lines[2]


def test_a_compensated_variant_is_one_entry(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its overlay, and the record beside that, are none."""
    skip = SkipSet((), (1,))
    overlay = overlays.of_form(model, skip, "linear")
    overlay.with_suffix(".json").write_text("{}")
    path = variants.compensate(model / "base.fp32.onnx", skip, overlay, "linear")
    tiny.passed(path)
    (entry,) = (e for e in json.loads(run(capsys, "list", "--json"))["m"] if "~" in e["path"])
    assert (entry["path"], entry["variant"], entry["check"]) == (str(path), "mlp1~linear", "passed")
    overlay.unlink()
    (entry,) = (e for e in json.loads(run(capsys, "list", "--json"))["m"] if "~" in e["path"])
    assert entry["check"] == "not passed yet"


def test_another_project(
    model: Path, workdir: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert listing.inventory() == {}
    entries = listing.inventory(store.Project(workdir))["m"]
    assert [Path(entry.path).parent for entry in entries] == [workdir / "graphs" / "m"] * 3
