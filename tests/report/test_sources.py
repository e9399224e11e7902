from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.report.sources import SourceFile, slug
from pipeline.store import Project


def test_a_changed_name_never_meets_another() -> None:
    assert slug("base.fp32.json") == "base.fp32.json"
    assert slug("..") not in ("", "..") and "/" not in slug("a/b")
    assert slug("a/b") != slug("a-b") and slug("a b") != slug("a-b")


def test_names_and_copies_are_relative_to_the_project() -> None:
    project = Project(Path("/elsewhere/my project"))
    source = SourceFile.of(project.root / "evals/results/m é/x.json", b"{}", project)
    assert source.name == "evals/results/m é/x.json"
    assert source.copy.startswith("sources/evals/results/") and source.copy.isascii()
    assert source.copy.endswith("/x.json") and " " not in source.copy
    assert source.sha256 == hashlib.sha256(b"{}").hexdigest()
