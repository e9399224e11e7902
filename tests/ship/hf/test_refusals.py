"""What has no form for other engines, or no place on the disk: one line, and nothing is changed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.graphs import merge, variants
from pipeline.ship.hf import forms, outline, proof, ship, weights
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny
from tests.ship.hf import folders
from tests.ship.hf.test_nemotron_nas import compensated


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(graph: Path, words: str, **options: Any) -> None:
    """It is refused with these words, nothing is changed, and the outline alone says the same."""
    before = listing(Path.cwd())
    with pytest.raises(UserError, match=re.escape(words)):
        folders.shipped(graph, **options)
    assert listing(Path.cwd()) == before and not Path("out").exists()
    verdict = forms.verdict(outline.of_graph(graph))
    assert words in f"{verdict.refusal} {verdict.unless_forced}"


MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    **{
        name: (name, "attn1", {}, f"single sublayers of {name} have no form that engines load")
        for name in sorted(set(tiny.DIALECTS) - {"llama", "mistral"})
    },
    "window": ("mistral", "attn1", {**folders.NAS}, "it has a window of 7 tokens"),
    "head_dim": ("llama", "attn1", {**folders.NAS, "head_dim": 32}, "head_dim is 32"),
    "attention_bias": ("llama", "mlp1", {**folders.NAS, "attention_bias": True}, "attention_bias is true"),
    "mlp_bias": ("llama", "mlp1", {**folders.NAS, "mlp_bias": True}, "mlp_bias is true"),
    "activation": ("llama", "mlp1", {**folders.NAS, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "width": ("llama", "attn1", {**folders.NAS, "intermediate_size": 96}, "is not a multiple of 256"),
    "no attention": ("llama", "attn0-3", folders.NAS, "no attention is left"),
    "nothing": ("llama", "block0-3", folders.NAS, "no layer is left"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_nemotron_nas_cannot_say(case: str, workdir: Path) -> None:
    model_type, name, changes, words = MODELS[case]
    refused(folders.variant(folders.base(workdir, model_type, **changes), name), words, force=True)


def test_a_width_does_not_matter_where_no_mlp_is_left(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **{**folders.NAS, "intermediate_size": 96}), "attn1+mlp0-3")
    assert folders.shipped(graph).form == "nemotron-nas"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("linear", "the map for attn1, mlp1 has a bias, for which nemotron-nas has no tensor; compensate"),
        ("rank4", "the map for attn1, mlp1 has a bias"),
        ("bias", "a constant stands in for attn1, mlp1"),
        ("fold", "a constant stands in for attn1, mlp1"),
    ],
)  # fmt: skip
def test_maps_with_a_bias(form: str, words: str, workdir: Path) -> None:
    refused(folders.variant(folders.base(workdir, **folders.NAS), "block1", form), words)


@pytest.mark.parametrize("form", ["run", "run-bias"])
def test_a_map_of_a_run_of_layers(form: str, workdir: Path) -> None:
    base, skip = folders.base(workdir, **folders.NAS), SkipSet.parse("block1-2")
    graph = variants.compensate(base, skip, overlays.of_form(base.parent, skip, form, "linear"), "linear")
    refused(graph, "a map stands in for block1-2")


@pytest.mark.parametrize("name", ["attn0", "attn0-1+mlp0", "block0+attn1"])
def test_a_stream_that_does_not_begin_with_an_attention(name: str, workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **folders.NAS), name)
    layer = 0 if name == "attn0" else 1
    refused(graph, f"attention of layer {layer}, the first that has anything left, is left out")
    shipment = folders.shipped(graph, force=True)
    loads = {engine.name: engine.loads for engine in shipment.engines}
    assert loads == {
        "transformers": False, "vLLM": False, "SGLang": False, "TensorRT-LLM": True, "mlx-lm": True,
    }  # fmt: skip
    assert "forced: attention of layer" in shipment.described()


def test_a_map_in_the_first_attention_needs_no_force(workdir: Path) -> None:
    graph = compensated(folders.base(workdir, **folders.NAS), "attn0", "linear")
    assert forms.verdict(outline.of_graph(graph)).unless_forced is None
    assert folders.shipped(graph).form == "nemotron-nas"


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_engines_that_take_windows_from_an_index(model_type: str, workdir: Path) -> None:
    """Where every n-th of the layers that are left sees everything they are right; else they are named."""
    base = folders.base(workdir, model_type, num_hidden_layers=6)
    right, wrong = folders.variant(base, "block0-1"), folders.variant(base, "block0_5")
    assert all(engine.loads for engine in folders.shipped(right, name="right").engines)
    shipment = folders.shipped(wrong, name="wrong")
    named = {engine.name for engine in shipment.engines if not engine.loads}
    assert named == ({"SGLang"} if model_type == "gemma2" else {"SGLang", "mlx-lm"})
    assert "windows from their new indices" in shipment.described()
    patterns = [folders.config(Path(name)).get("sliding_window_pattern") for name in ("right", "wrong")]
    assert patterns == ([None, None] if model_type == "gemma2" else [2, None])


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


def test_a_changed_tokenizer_is_another_folder(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    folders.shipped(graph)
    (graph.parent / "generation_config.json").write_text('{"temperature": 0.5}')
    with pytest.raises(UserError, match="other weights or settings"):
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


def test_a_disk_that_is_too_small(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    usage = shutil.disk_usage(workdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"the folder needs .* GB, and 1e-05 GB are free"):
        folders.shipped(graph)
    assert sorted(path.name for path in workdir.iterdir()) == ["graphs", "models"]


@pytest.mark.parametrize("call", ["copy_file_range", "fsync"])
def test_a_disk_that_fills(call: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    monkeypatch.setattr(os, call, fails(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(UserError, match="out cannot be written: No space left on device; free some space"):
        folders.shipped(graph)
    assert sorted(path.name for path in workdir.iterdir()) == ["graphs", "models"]


def test_a_file_system_without_ranges(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    monkeypatch.setattr(os, "copy_file_range", fails(OSError(errno.EXDEV, "other device")))
    monkeypatch.setattr(weights, "_CHUNK", 1000)
    assert folders.agrees(folders.shipped(graph).folder, graph)


def test_a_source_that_is_cut_short_meanwhile(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    monkeypatch.setattr(os, "copy_file_range", lambda *_args, **_kwargs: 0)
    with pytest.raises(UserError, match="was cut short while it was read"):
        folders.shipped(graph)
    assert not Path("out").exists()


def test_what_a_killed_run_left_goes(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    left, other = workdir / ".out.abcdefgh.tmp", workdir / ".out.other.abcdefgh.tmp"
    for folder in (left, other):
        folder.mkdir()
    folders.shipped(graph)
    assert not left.exists() and other.exists()


@pytest.mark.parametrize("fault", ["layers", "types", "tensor"])
def test_the_proof_sees_a_wrong_folder(fault: str, workdir: Path) -> None:
    """A layer that would have another window, a key that changed, a tensor that is not there."""
    graph = folders.variant(folders.base(workdir, "gemma2", num_hidden_layers=4), "block0")
    folder = folders.shipped(graph).folder
    given, variant = folders.config(graph.parent), outline.of_graph(graph)
    proof.prove(folder, variant, given)
    if fault == "types":
        folders.set_config(folder, layer_types=["sliding_attention"] * 3)
    elif fault == "layers":
        folders.set_config(folder, rms_norm_eps=0.5)
    else:
        folders.set_config(folder, num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
        variant = outline.Outline(variant.config, SkipSet.parse("block0_3"), {})
    with pytest.raises(proof.NotProved):
        proof.prove(folder, variant, given)
