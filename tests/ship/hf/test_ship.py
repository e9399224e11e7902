"""The stage: what it takes, where it writes, and what is there when it fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.graphs import merge
from pipeline.ship.hf import ship, weights
from pipeline.types import UserError
from tests import tiny
from tests.ship.hf import folders
from tests.ship.hf.folders import listing


def test_what_has_passed_no_check(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    with pytest.raises(UserError, match="has passed no check"):
        ship.ship(graph, Path("out"))
    assert not Path("out").exists()
    tiny.passed(graph)
    shipment = ship.ship(graph, Path("out"))
    assert shipment.check == "passed" and "check passed" in shipment.described()
    assert "Check of the variant's graph against PyTorch: passed" in Path("out/README.md").read_text()


def test_a_merged_graph_and_a_file_that_is_none(workdir: Path) -> None:
    base = folders.base(workdir)
    merged = merge.merge([base, folders.variant(base, "block0")])
    with pytest.raises(UserError, match="is a merged graph; name one of its variants"):
        folders.shipped(merged)
    with pytest.raises(UserError):
        folders.shipped(Path("graphs/tiny/config.json"))
    assert not Path("out").exists()


def test_a_folder_that_holds_something(workdir: Path) -> None:
    base = folders.base(workdir)
    graph, other = folders.variant(base, "block0"), folders.variant(base, "block1")
    Path("out").mkdir()
    assert folders.shipped(graph).is_new  # an empty one is filled
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    again = folders.shipped(graph)
    assert not again.is_new and "nothing to do" in again.described()
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    with pytest.raises(UserError, match=r"holds another variant \('block0'\)"):
        folders.shipped(other)
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="mine holds something else"):
        folders.shipped(graph, name="mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        folders.shipped(graph, name="mine/letter.txt")
    assert listing(Path("mine")) == {"letter.txt": b"dear"}
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    with Path("out/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match="truncated"):
        folders.shipped(graph)


@pytest.mark.parametrize("place", ["graphs/tiny", "graphs/tiny/hf", "link/hf"])
def test_a_place_within_the_sources_folder(place: str, workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    Path("link").symlink_to("graphs/tiny")
    before = listing(graph.parent)
    with pytest.raises(UserError, match="lies within graphs/tiny, the source's own folder"):
        folders.shipped(graph, name=place)
    assert listing(graph.parent) == before


def test_parents_are_made_and_go_again(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    with monkeypatch.context() as patch:
        patch.setattr(weights, "require_room", fails(UserError("no room")))
        with pytest.raises(UserError, match="no room"):
            folders.shipped(graph, name="a/b/c")
    assert not Path("a").exists()
    assert folders.shipped(graph, name="a/b/c").folder == Path.cwd() / "a/b/c"
    assert oct(Path("a/b/c").stat().st_mode)[-3:] == "755"


def fails(error: BaseException) -> Callable[..., Any]:
    def function(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize("call", ["copy_file_range", "fsync"])
def test_a_disk_that_fills(call: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    monkeypatch.setattr(os, call, fails(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(UserError, match="out cannot be written: No space left on device; free some space"):
        folders.shipped(graph)
    assert sorted(path.name for path in workdir.iterdir()) == ["graphs", "models"]


def test_what_a_killed_run_left_goes(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    left, other = workdir / ".out.abcdefgh.tmp", workdir / ".out.other.abcdefgh.tmp"
    for folder in (left, other):
        folder.mkdir()
    folders.shipped(graph)
    assert not left.exists() and other.exists()


def test_a_config_that_was_changed_since_is_not_taken_for_the_variant(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    assert folders.shipped(graph).is_new and not folders.shipped(graph).is_new
    folders.set_config(workdir / "out", rope_theta=5.0)
    with pytest.raises(UserError, match=r"config.json was changed since it was written; remove"):
        folders.shipped(graph)


def test_a_tokenizer_that_was_changed_since(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    file = folders.shipped(graph).folder / "tokenizer_config.json"
    if not file.is_file():
        file = file.with_name("generation_config.json")
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match=f"{file.name} was changed since it was written"):
        folders.shipped(graph)
