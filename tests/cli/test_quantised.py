"""Quantised weights on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf as library
import pytest

from pipeline import store
from pipeline.models.gguf import parts
from pipeline.types import UserError
from tests import tiny, tiny_gguf
from tests.commands import run
from tests.tiny_gguf import Kind


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


def test_gptq_beside_rounding_to_nearest(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their files, graphs and names are kept apart, and a variant reads neither text nor weights again."""
    gptq = ("--precision", "int4-fp32", "--method", "gptq")
    base = run(capsys, "export", source, *gptq, "--samples", "4", "--length", "32").strip()
    plain = run(capsys, "export", "m", "--precision", "int4-fp32").strip()
    assert (base, plain) == ("graphs/m/base.int4-gptq-fp32.onnx", "graphs/m/base.int4-fp32.onnx")
    files = {one: store.overlays(Path(one))[0] for one in (base, plain)}
    assert [file.name for file in files.values()] == [
        "quantised.int4-b64-gptq.safetensors", "quantised.int4-b64-rtn.safetensors",
    ]  # fmt: skip
    shutil.rmtree("calib")
    cut = run(capsys, "export", "m", "--skip", "attn1", *gptq).strip()
    assert cut == "graphs/m/attn1.int4-gptq-fp32.onnx" and not Path("calib").exists()
    assert store.overlays(Path(cut)) == (files[base],)
    variants = [store.variant(Path(one)) for one in (base, cut, plain)]
    assert [one.precision_name for one in variants] == ["int4-gptq-fp32", "int4-gptq-fp32", "int4-fp32"]
    (checked,) = json.loads(run(capsys, "check", cut, "--json"))
    assert checked["passed"]
    with pytest.raises(UserError, match=r"\(4 × 32 tokens\), not on what --texts"):
        run(capsys, "export", "m", *gptq, "--samples", "5")


def test_a_gguf_keeps_its_blocks(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"_norm": Kind.F32, "token_embd": Kind.Q8_0, "blk": Kind.Q4_0}
    folder = tiny_gguf.source(workdir / "s", intermediate_size=128, tie_word_embeddings=True)
    tiny_gguf.write(folder, workdir / "g.gguf", tiny_gguf.Tiny(kinds=kinds))
    path = run(capsys, "export", "g.gguf", "--precision", "int4-fp32").strip()
    assert path == "graphs/g/base.int4-b32-fp32.onnx"
    assert "weights     int4-b32, rounded to nearest; all 15 weights keep the blocks of g.gguf" in run(
        capsys, "show", path
    )
    shown = json.loads(run(capsys, "show", path, "--json"))
    assert shown["quantised"]["kept"] == {"file": "g.gguf", "weights": 15, "of": 15}
    (checked,) = json.loads(run(capsys, "check", path, "--json"))
    assert checked["passed"] and checked["shifts"]["weights"]["divergence"] < 1e-5


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
        (["--precision", "int4", "--method", "awq"], "choose from rtn, gptq"),
        (["--precision", "fp16", "--block-size", "64"], "take --precision int4-fp16"),
        (["--precision", "int4", "--samples", "9"], "--samples is of --method gptq, which measures on text"),
        (["--precision", "fp32", "--texts", "a.txt"], "--texts is of --method gptq"),
        (["--precision", "int4", "--method", "gptq", "--texts", "a.txt"], r"a\.txt does not exist"),
        (["--precision", "int4", "--method", "gptq", "--length", "1"], "--length at least 2"),
        (["--precision", "fp32", "--method", "gptq"], "take --precision int4-fp32"),
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
        run(capsys, "ship", path, "--to", "hf", "m", "--unchecked")
    with pytest.raises(UserError, match=r"blocks of 64, .* --precision int4 --block-size 32$"):
        run(capsys, "ship", path, "--to", "gguf", "m.gguf", "--unchecked")
    assert not Path("m.gguf").exists() and not Path("m").exists()


def test_blocks_of_32_are_shipped_as_they_are(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command that the refusal of longer ones names, for a variant that passed its check."""
    wanted = ("--precision", "int4", "--block-size", "32")
    path, _ = run(capsys, "export", source, "--skip", "attn1", *wanted).splitlines()
    run(capsys, "check", path)
    shown = json.loads(run(capsys, "ship", path, "--to", "gguf", "m.gguf", "--json"))
    assert {key: shown[key] for key in ("type", "rest", "architecture", "checked")} == {
        "type": "q4_0", "rest": "f16", "architecture": "deci", "checked": True,
    }  # fmt: skip
    assert "llama.cpp: llama-cli -m FILE.gguf" in run(capsys, "show", path)
    fields = parts.read(Path("m.gguf")).fields
    assert fields["general.file_type"] == library.LlamaFileType.MOSTLY_Q4_0


def test_default_artefacts_of_one_precision(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`bench` and `score` take fp32 where none is named, and no quantised graph for one."""
    from pipeline.cli import arguments

    run(capsys, "export", source, "--precision", "int4-fp32")
    assert [path.name for path in arguments.artefacts(None, precision="fp32")] == ["base.fp32.onnx"]
    assert len(arguments.artefacts(None)) == 2
