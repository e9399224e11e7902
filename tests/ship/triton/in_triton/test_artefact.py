"""artefact.json, written and read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.runtime.runner import Limits
from pipeline.runtime.tensorrt import Plan
from pipeline.ship.triton.in_triton.artefact import ServedArtefact
from pipeline.types import UserError

PLAN = Plan(
    backend="tensorrt",
    version="11.1.0",
    targets=("sm80", "sm89"),
    profiles=({"input_ids": ((1, 1), (1, 100), (8, 512))},),
    limits=Limits(8, 512, 1024, 1),
)


@pytest.mark.parametrize(
    "artefact",
    [
        ServedArtefact("m/1/model.onnx/model.onnx", {"m/1/x": "0" * 64}),
        ServedArtefact("m/1/graph/model.onnx", {}, "m/1/model.plan", PLAN),
    ],
)
def test_it_reads_back(tmp_path: Path, artefact: ServedArtefact) -> None:
    (tmp_path / "artefact.json").write_text(json.dumps(artefact.plain()))
    assert ServedArtefact.read(tmp_path) == artefact


@pytest.mark.parametrize(
    "text", [None, "", "{}", "[]", '{"graph": "x", "files": {}, "plan": null, "engine": {}}']
)
def test_another_form_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "artefact.json").write_text(text)
    with pytest.raises(
        UserError, match=r"artefact\.json is not as `pipeline ship` writes it .*; ship it again"
    ):
        ServedArtefact.read(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("one")
    artefact = ServedArtefact("x", {"x": hashlib.sha256(b"one").hexdigest()})
    artefact.verify(tmp_path)
    (tmp_path / "x").write_text("two")
    with pytest.raises(UserError, match=r"x is not what was shipped \(SHA-256 differs\); ship it again"):
        artefact.verify(tmp_path)
