"""What a project holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.types import UserError


def model(name: str, root: Path = Path()) -> Path:
    """A complete checkpoint, as far as its folder says."""
    folder = store.Project(root).graphs(name)
    folder.mkdir(parents=True)
    (folder / store.SOURCE).write_text("{}")
    return folder


def test_models_are_complete_checkpoints(workdir: Path) -> None:
    model("b model é")
    model("a")
    Path("graphs/begun").mkdir()
    assert store.models() == ["a", "b model é"]
    model("c", workdir / "other")
    assert store.models(store.Project(workdir / "other")) == ["c"]


def test_the_default_model_is_the_only_one_or_the_named_one_or_demo(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.default_model() == "demo"
    model("a")
    assert store.default_model() == "a"
    model("b")
    with pytest.raises(UserError, match="a, b; name one, or set PIPELINE_MODEL"):
        store.default_model()
    monkeypatch.setenv("PIPELINE_MODEL", "b")
    assert store.default_model() == "b"


def test_graphs_are_those_that_stages_work_on_base_first(workdir: Path) -> None:
    folder = model("a")
    twins = ["attn2.fp32.static128", "base.fp32.all"]
    written = ["base.fp16", "attn2.fp32", "base.fp32", *twins, "merged-2-abc.fp32", "model"]
    for stem in [*written, "bare.fp32"]:
        (folder / f"{stem}.onnx").touch()
    for stem in written:
        (folder / f"{stem}.json").touch()
    names = [path.name for path in store.graphs_of("a")]
    assert names == ["base.fp16.onnx", "base.fp32.onnx", "attn2.fp32.onnx"]
    everything = [path.stem for path in store.graphs_of("a", twins=True)]
    assert sorted(everything) == sorted([*twins, "base.fp16", "base.fp32", "attn2.fp32"])


def test_engines_are_those_of_variants(workdir: Path) -> None:
    for variant in ("base", "attn2", "merged-2-abc"):
        folder = store.Project().engines("a", variant)
        folder.mkdir(parents=True)
        (folder / "tensorrt-rtx-sm80-fp16.plan").touch()
        (folder / "tensorrt-rtx-sm80-fp16.json").touch()
    (store.Project().engines("a", "base") / "tensorrt-rtx-sm80-fp16.static128.plan").touch()
    assert [path.parent.name for path in store.engines_of("a")] == ["attn2", "base"]
    assert [path.stem.split(".")[1:] for path in store.engines_of("a", twins=True)] == [[], [], ["static128"]]
    assert store.engines_of("none") == [] and store.graphs_of("none") == []
