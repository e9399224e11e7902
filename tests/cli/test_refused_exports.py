"""Exports that are refused name what the user gave, and leave everything as it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.types import UserError
from tests import tiny
from tests.commands import run


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → size and date of all that lies in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_dir()]
    return {
        str(path): (path.is_file() and path.stat().st_size, path.is_file() and path.stat().st_mtime_ns)
        for path in files
    }


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that an export is refused with, after a check that it left nothing."""
    before = everything(Path.cwd())
    with pytest.raises(UserError) as refusal:
        run(capsys, "export", *arguments)
    assert everything(Path.cwd()) == before
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def edited(folder: Path, **changes: Any) -> Path:
    """Changes keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


CHANGES: list[dict[str, Any]] = [
    {"hidden_act": "quick_gelu"},
    {"drop_mlp_list": [9]},
    {"drop_attn_list": "all"},
    {"num_hidden_layers": 3},
    {"intermediate_size": 80},
    {"model_type": "gemma9"},
    {"rope_scaling": {"rope_type": "odd", "factor": 2.0}},
    {"tie_word_embeddings": "x"},
    {"attention_bias": True},
]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_config_that_is_refused(
    change: dict[str, Any], in_place: bool, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(tiny.tokenizer(tiny.checkpoint(workdir / "hf" / "m")), **change)
    for name in ("hf/m", f"{workdir}/hf/m"):
        said = refused(capsys, name, *(["--in-place"] if in_place else []))
        assert said.startswith(name) and "graphs/m" not in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--skip", "attn9"], "layer 9"),
        (["--skip", "mlp", "--count", "9"], "--count 9 does not fit"),
        (["--skip", "mlp", "--count", "1", "--select", "nosuch"], "no selector 'nosuch'"),
        (["--skip", "mlp1", "--adapter", "a"], "`pipeline export hf/m --skip mlp1`"),
    ],
)
def test_options_that_are_refused(
    options: list[str], says: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.tokenizer(tiny.checkpoint(workdir / "hf" / "m"))
    assert says in refused(capsys, "hf/m", *options)
    run(capsys, "export", "hf/m")
    run(capsys, "export", "hf/m", "--skip", "mlp1")
    said = refused(capsys, "m", *options)
    assert "hf/m" not in said and ("--adapter" not in options or "graphs/m/mlp1.fp32.onnx" in said)


@pytest.mark.parametrize("name", ["nosuch", "org/nosuch", "hf/nosuch", "nosuch.gguf", "hf"])
def test_a_name_of_nothing(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.checkpoint(workdir / "hf" / "m")
    refused(capsys, name)


def test_a_file_that_is_no_gguf(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "m.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    assert "m.gguf" in refused(capsys, "m.gguf")


def test_an_export_of_optimums_without_its_data(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "export", tiny.checkpoint(workdir / "hf" / "m"))
    folder = workdir / "onnx" / "taken"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(Path("graphs/m/base.fp32.onnx").read_bytes())
    (folder / "config.json").write_bytes(Path("graphs/m/config.json").read_bytes())
    assert "model.safetensors" in refused(capsys, "--from-onnx", folder)


def test_a_mixture_of_experts_of_many_tensors_is_refused_for_what_it_is(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(tiny.checkpoint(workdir / "hf" / "m"), model_type="deepseek_v9")
    names = [f"model.layers.{i}.mlp.experts.{k}.up_proj.weight" for i in range(100) for k in range(600)]
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for options in ([], ["--in-place"]):
        said = refused(capsys, "hf/m", *options)
        assert said.startswith("hf/m: architecture 'deepseek_v9' is not authored here")
    edited(folder, model_type="llama")
    assert "names 60000 tensors; 50000 is the most" in refused(capsys, "hf/m")


def test_a_disk_without_room(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.tokenizer(tiny.checkpoint(workdir / "hf" / "m"))
    size = sum(file.stat().st_size for file in Path("hf/m").iterdir()) / 1e9
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("pipeline.models.checkpoint_files._FICLONE", 0)  # no reflinks, whatever disk this is
    said = refused(capsys, "hf/m")
    assert said.startswith("copying hf/m to graphs/m needs ") and "1e-06 GB are free there" in said
    assert float(said.split("needs ")[1].split()[0]) == pytest.approx(size, rel=0.02)
    assert said.endswith("or write the graphs beside the weights with --in-place")
    assert run(capsys, "export", "hf/m", "--in-place").strip() == "hf/m/base.fp32.onnx"


def test_parts_of_a_sublayer_are_missing(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused where the sublayer is needed: see test_dropped for where it is skipped."""
    folder = tiny.checkpoint(workdir / "hf" / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for options in ([], ["--skip", "mlp1"], ["--skip", "attn0"]):
        assert "implies the weight model.layers.1.self_attn.k_proj.weight" in refused(
            capsys, "hf/m", *options
        )
    graph = Path(run(capsys, "export", "hf/m", "--skip", "attn1").strip())
    assert store.graph_sidecar(graph).base is None
