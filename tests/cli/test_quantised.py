"""Quantised weights on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.types import UserError
from tests import tiny
from tests.commands import run


@pytest.fixture
def source(workdir: Path) -> str:
    """A checkpoint whose widths blocks of 64 divide."""
    folder = tiny.checkpoint(workdir / "models" / "m", vocab_size=tiny.WORDS, intermediate_size=128)
    tiny.tokenizer(folder)
    return "models/m"


def test_both_precisions_and_a_variant(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    both = run(capsys, "export", source, "--precision", "int4")
    assert both == "graphs/m/base.int4-fp32.onnx\ngraphs/m/base.int4-fp16.onnx\n"
    shown = json.loads(run(capsys, "export", "m", "--skip", "attn1", "--precision", "int4", "--json"))
    assert [one["path"] for one in shown] == [f"graphs/m/attn1.int4-{p}.onnx" for p in ("fp32", "fp16")]
    assert [one["quantisation"] for one in shown] == ["int4", "int4"]
    one = run(capsys, "export", "m", "--precision", "int8-fp16", "--block-size", "32", "--method", "rtn")
    assert one == "graphs/m/base.int8-b32-fp16.onnx\n"
    assert {path.name for path in Path("graphs/m").glob("quantised.*.safetensors")} == {
        "quantised.int4-b64-rtn.safetensors", "quantised.int8-b32-rtn.safetensors",
    }  # fmt: skip
    assert len(json.loads(run(capsys, "check", "graphs/m/base.int4-fp32.onnx", "--json"))) == 1
    listed = json.loads(run(capsys, "list", "--json"))["m"]
    assert {(e["variant"], e["precision"]) for e in listed} == {
        *(("base", p) for p in ("fp32", "fp16", "int4-fp32", "int4-fp16", "int8-b32-fp16")),
        *(("attn1", p) for p in ("int4-fp32", "int4-fp16")),
    }
    assert {e["path"]: e["check"] for e in listed}["graphs/m/base.fp32.onnx"] == "not passed yet"
    assert run(capsys, "generate", "graphs/m/base.int4-fp32.onnx", "a", "--max-tokens", "2")


def test_what_show_says(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "export", source, "--precision", "int4-fp32")
    path = "graphs/m/base.int4-fp32.onnx"
    assert f"{path}: base, int4-fp32" in run(capsys, "show", path)
    shown = json.loads(run(capsys, "show", path, "--json"))
    whole = json.loads(run(capsys, "show", "graphs/m/base.fp32.onnx", "--json"))
    size = shown["costs"]["variant"]["weight_bytes"]
    assert size < whole["costs"]["variant"]["weight_bytes"] / 2
    assert {one["name"]: one["runs"] for one in shown["engines"]}["llama.cpp"] is False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--precision", "int4", "--block-size", "128"], r"64 inputs.*take --block-size 32 or 64$"),
        (["--precision", "int4", "--method", "awq"], "choose from rtn"),
        (["--precision", "fp16", "--block-size", "64"], "take --precision int4-fp16"),
        (["--precision", "int4-fp16", "--adapter", "a", "--skip", "mlp1"], "merge it with --precision fp16"),
    ],
)
def test_what_is_refused_leaves_nothing(
    options: list[str], says: str, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=says):
        run(capsys, "export", source, *options)
    assert not Path("graphs").exists()


def test_stages_that_change_weights_name_the_twin(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "export", source, "--skip", "mlp1", "--precision", "int4-fp32")
    path = "graphs/m/mlp1.int4-fp32.onnx"
    with pytest.raises(UserError, match=r"heal mlp1\.fp32\.onnx"):
        run(capsys, "heal", path)
    with pytest.raises(UserError, match="take --with bias, linear or a rank"):
        run(capsys, "compensate", path, "--with", "fold")
    store.write_json(store.result_of(Path(path), "check"), {})
    with pytest.raises(UserError, match="its weights are quantised for ONNX; ship its fp32 twin"):
        run(capsys, "ship", path, "--to", "gguf", "m.gguf", "--unchecked")
    assert not Path("m.gguf").exists()


def test_default_artefacts_of_one_precision(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`bench` and `score` take fp32 where none is named, and no quantised graph for one."""
    from pipeline.cli import arguments

    run(capsys, "export", source, "--precision", "int4-fp32")
    assert [path.name for path in arguments.artefacts(None, precision="fp32")] == ["base.fp32.onnx"]
    assert len(arguments.artefacts(None)) == 2
