"""`pipeline compensate`, as a user runs it: from a cut variant to a checked graph with maps in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline import store
from pipeline.cli import prerequisites
from pipeline.evals.check import check
from pipeline.types import UserError
from tests import tiny
from tests.commands import run
from tests.exported import as_optimum_exports

TEXT = ("--samples", "10", "--length", "32")


def compensate(capsys: pytest.CaptureFixture[str], graph: Path, *options: str) -> dict:
    """What the command says in JSON of one graph."""
    (answer,) = json.loads(run(capsys, "compensate", graph, *TEXT, "--no-time", *options, "--json"))
    return answer


@pytest.mark.parametrize("form", ["bias", "rank2", "linear", "matrix", "fold"])
def test_a_compensated_variant_passes_its_check(
    model: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = compensate(capsys, model / "mlp1.fp32.onnx", "--with", form)
    path = Path(answer["path"])
    assert path.name == f"mlp1~{form}.fp32.onnx" and store.variant(path).compensation == form
    assert answer["losses"]["compensated"] != answer["losses"]["none"]
    assert check.check(path).passed
    twin = prerequisites.fp16_twin(path)
    assert twin.name == f"mlp1~{form}.fp16.onnx" and store.overlays(twin) == store.overlays(path)


def test_the_words_end_with_the_path_and_tell_all_three_times(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = run(capsys, "compensate", model / "mlp1.fp32.onnx", "--with", "bias", *TEXT).splitlines()
    assert words[0] == "mlp1 with bias" and words[-1].endswith("mlp1~bias.fp32.onnx")
    assert any("whole" in line and "without" in line and " ms" in line for line in words)


def test_auto_keeps_the_budget_of_parameters(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    answer = compensate(capsys, model / "mlp1.fp32.onnx", "--with", "auto", "--budget-params", str(width))
    assert answer["parameters"] <= width and answer["settings"]["form"] in ("bias", "fold")


def test_auto_measures_milliseconds(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = model / "mlp1.fp32.onnx"
    assert compensate(capsys, graph, "--with", "auto", "--budget-ms", "1e6")["path"]
    with pytest.raises(UserError, match=r"no compensation of mlp1 keeps --budget-ms 1e-06: .* ms"):
        compensate(capsys, graph, "--with", "auto", "--budget-ms", "1e-6")


def test_export_finds_what_was_fitted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = model / "mlp1.fp32.onnx"
    export = ("export", "m", "--skip", "mlp1", "--compensation", "linear")
    with pytest.raises(UserError, match=r"mlp1 has no compensation 'linear'; make it with `pipeline compens"):
        run(capsys, *export)
    made = compensate(capsys, graph)
    assert run(capsys, *export).splitlines()[-1] == made["path"]
    half = run(capsys, *export, "--precision", "fp16").splitlines()[-1]
    assert half.endswith("mlp1~linear.fp16.onnx") and check.check(Path(half)).passed
    overlay = Path(made["overlay"])
    changed = {name: tensor + np.float32(1) for name, tensor in load_file(overlay).items()}
    save_file(changed, overlay)
    with pytest.raises(UserError, match="is not what its record describes"):
        run(capsys, *export)


def test_a_quantised_variant_has_maps_of_its_own(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the model's own weights are not taken for it, nor void."""
    whole = compensate(capsys, model / "mlp1.fp32.onnx")
    run(capsys, "export", "m", "--skip", "mlp1", "--precision", "int4-fp32", "--block-size", "32")
    graph = model / "mlp1.int4-b32-fp32.onnx"
    export = ("export", "m", "--skip", "mlp1", "--compensation", "linear", "--precision")
    with pytest.raises(UserError, match=r"make it with `pipeline compensate .*mlp1\.int4-b32-fp32\.onnx"):
        run(capsys, *export, "int4-b32-fp32")
    made = compensate(capsys, graph)
    assert Path(made["overlay"]).name == "mlp1~linear.int4-b32.safetensors" != Path(whole["overlay"]).name
    assert made["losses"] != whole["losses"] and check.check(Path(made["path"])).passed
    half = Path(run(capsys, *export, "int4-b32-fp16").splitlines()[-1])
    assert store.overlays(half) == store.overlays(Path(made["path"])) and check.check(half).passed
    twin = Path(run(capsys, *export, "fp16").splitlines()[-1])
    assert [file.name for file in store.overlays(twin)] == ["mlp1~linear.safetensors"]


def test_those_that_are_compensated_are_passed_over(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Path(compensate(capsys, model / "mlp1.fp32.onnx")["path"])
    options = ("--with", "bias", *TEXT, "--no-time", "--json")
    twice = [model / "mlp1.fp32.onnx"] * 2
    answers = json.loads(run(capsys, "compensate", *twice, first, *options))
    assert [Path(answer["path"]).name for answer in answers] == ["mlp1~bias.fp32.onnx"]


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        ("base", (), "skips nothing"),
        ("mlp1", ("--with", "cubic"), "cubic"),
        ("mlp1", ("--with", "rank9999"), "9999"),
        ("mlp1", ("--samples", "2", "--length", "8"), "--samples"),
        ("mlp1", ("--with", "linear", "--budget-params", "3"), "auto"),
        ("mlp1", ("--samples", "-5"), "--samples and --length must be at least 2"),
        ("mlp1", ("--memory", "0"), "--memory must be at least 1 MB"),
        ("mlp1", ("--with", "auto", "--budget-params", "-5"), "--budget-params must be at least 0"),
        ("mlp1", ("--with", "auto", "--budget-ms", "nan"), "--budget-ms above 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    model: Path, graph: str, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in model.iterdir())
    with pytest.raises(UserError, match=message) as error:
        run(capsys, "compensate", model / f"{graph}.fp32.onnx", *TEXT, *options)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_compensated_graph_is_not_compensated_again(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = compensate(capsys, model / "mlp1.fp32.onnx")["path"]
    with pytest.raises(UserError, match="compensated or healed already"):
        run(capsys, "compensate", path, *TEXT)


def names(folder: Path) -> list[str]:
    """Of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_all_graphs_are_refused_before_one_is_fitted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin = Path(run(capsys, "export", "m", "--skip", "mlp1", "--head", "all").splitlines()[-1])
    before = names(model)
    for other, message in ((model / "base.fp32.onnx", "skips nothing"), (twin, r"its twin mlp1\.fp32\.onnx")):
        with pytest.raises(UserError, match=message):
            run(capsys, "compensate", model / "mlp1.fp32.onnx", other, "--with", "bias", *TEXT)
        assert names(model) == before


def test_a_reference_of_other_weights_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its maps and folded projections would be another model's, and the check would pass."""
    tiny.tokenizer(tiny.checkpoint(Path("models/other"), seed=1, vocab_size=tiny.WORDS))
    before = names(model)
    for form in ("linear", "fold"):
        with pytest.raises(UserError, match=r"models/other holds other weights than .*; leave"):
            compensate(
                capsys, model / "mlp1.fp32.onnx", "--with", form, "--reference", "models/other", "--force"
            )
    assert names(model) == before
    assert compensate(capsys, model / "mlp1.fp32.onnx", "--reference", "models/m")["path"]


def test_a_graph_that_was_exported_elsewhere(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is compensated with its own checkpoint alone, and never by what it cannot read."""
    tiny.tokenizer(tiny.checkpoint(Path("models/other"), seed=1, vocab_size=tiny.WORDS))
    folder = as_optimum_exports(Path("models/m"), model / "base.fp32.onnx", Path("exports/o"))
    graph = Path(run(capsys, "export", "--from-onnx", folder, "--skip", "mlp1").splitlines()[-1])
    before = names(graph.parent)
    with pytest.raises(UserError, match="brings no checkpoint along; name it: --reference FOLDER"):
        compensate(capsys, graph)
    with pytest.raises(UserError, match="nothing can be folded into them; take --with bias"):
        compensate(capsys, graph, "--with", "fold", "--reference", "models/m")
    with pytest.raises(UserError, match="does not compute what models/other does"):
        compensate(capsys, graph, "--reference", "models/other")
    assert names(graph.parent) == before
    answer = compensate(capsys, graph, "--with", "auto", "--reference", "models/m")
    assert "fold" not in answer["settings"]["form"]
    assert check.check(Path(answer["path"]), reference=Path("models/m")).passed
    with pytest.raises(UserError, match="with --reference writes what it fitted"):
        run(capsys, "export", "--from-onnx", folder, "--skip", "mlp1", "--compensation", "linear")


def test_an_overlay_under_another_name_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a larger skip set it would be a graph that lacks a map; of another form its name would be wrong."""
    overlay = Path(compensate(capsys, model / "mlp1.fp32.onnx", "--with", "rank2")["overlay"])
    for skip, form in (("mlp1", "linear"), ("block1", "rank2")):
        other = overlay.with_name(f"{skip}~{form}.safetensors")
        shutil.copy(overlay, other)
        shutil.copy(store.sidecar_path(overlay), store.sidecar_path(other))
        with pytest.raises(UserError, match="is not what its record describes"):
            run(capsys, "export", "m", "--skip", skip, "--compensation", form)
