"""The export command: small, fast, without torch, atomic, one at a time; wrong input is one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, demo
from pipeline.types import SkipSet, UserError
from tests import commands, tiny

LLAMA_2_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
}


def command(*arguments: str, cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The `pipeline` command in a process of its own."""
    line = [*prefix, sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        line, cwd=cwd, env=tiny.environment(), capture_output=True, text=True, timeout=300, check=False
    )


def sparse_checkpoint(folder: Path, config: dict, shards: int) -> None:
    """A checkpoint of the right shapes that is all header and holes: it takes no disk."""
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_key_value_heads"]
    kv = hidden // config["num_attention_heads"] * heads
    shapes = {
        "model.embed_tokens.weight": [config["vocab_size"], hidden],
        "lm_head.weight": [config["vocab_size"], hidden],
    }
    shapes["model.norm.weight"] = [hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{n}_layernorm.weight": [hidden] for n in ("input", "post_attention")}
        shapes |= {
            f"{layer}.self_attn.{p}_proj.weight": [n, hidden]
            for p, n in zip("qkvo", (hidden, kv, kv, hidden), strict=True)
        }
        shapes |= {f"{layer}.mlp.{p}_proj.weight": [ffn, hidden] for p in ("gate", "up")} | {
            f"{layer}.mlp.down_proj.weight": [hidden, ffn]
        }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names, weight_map = list(shapes), {}
    for k in range(shards):
        header, end = {}, 0
        for name in names[k::shards]:
            size = 2 * (shapes[name][0] * shapes[name][1] if len(shapes[name]) == 2 else shapes[name][0])
            header[name] = {"dtype": "F16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        text = json.dumps(header).encode()
        with (folder / f"model-{k + 1:05d}-of-{shards:05d}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


MEASURED = """
import json, sys, time
from pathlib import Path
started = time.perf_counter()
def peak():  # of this program alone: getrusage would count what the parent had before exec
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet
imports = peak()
began = time.perf_counter()
base = export.export_base(checkpoint.resolve(sys.argv[1], in_place=True), sys.argv[3])
exported = time.perf_counter()
variant = variants.cut(base, SkipSet.parse(sys.argv[2]))
done = time.perf_counter()
times = {"import_s": began - started, "export_s": exported - began, "cut_s": done - exported}
memory = {"imports_mb": imports, "peak_mb": peak()}
paths = {"base": str(base), "variant": str(variant)}
print(json.dumps({**times, **memory, **paths, "torch": "torch" in sys.modules}))
"""


def measured(folder: Path, variant: str, cwd: Path, precision: str = "fp32") -> dict:
    """Exports and cuts in a process of its own; seconds and megabytes."""
    line = [sys.executable, "-c", MEASURED, str(folder), variant, precision]
    return json.loads(
        subprocess.run(
            line, cwd=cwd, env=tiny.environment(), capture_output=True, text=True, check=True
        ).stdout
    )


def test_a_70b_shaped_checkpoint(workdir: Path) -> None:
    """137 GB of weights are exported and cut: a few hundred kilobytes are written, no weight is read."""
    folder = workdir / "Llama-2-70b"
    sparse_checkpoint(folder, LLAMA_2_70B, 15)
    assert (
        sum(f.stat().st_size for f in folder.iterdir())
        > 137e9
        > 1e8
        > sum(f.stat().st_blocks * 512 for f in folder.iterdir())
    )
    result = measured(folder, "attn53-79", workdir, "fp16")
    print(result)
    assert not result["torch"] and result["peak_mb"] < 400
    assert result["export_s"] + result["cut_s"] < 5
    for path in (result["base"], result["variant"]):
        assert Path(path).stat().st_size < 3e6
        onnx.checker.check_model(path, full_check=True)


def test_the_demo_exports_small_and_without_torch(demo_root: Path, workdir: Path) -> None:
    folder = workdir / "demo"
    folder.mkdir()
    for file in (demo_root / "graphs" / demo.MODEL).iterdir():
        if file.suffix in (".json", ".safetensors") and file.name.count(".") == 1:
            os.link(file, folder / file.name)
    result = measured(folder, "block20-29", workdir)
    print(result)
    assert not result["torch"] and result["peak_mb"] - result["imports_mb"] < 250
    assert Path(result["base"]).stat().st_size < 3e6 and Path(result["variant"]).stat().st_size < 3e6


@pytest.mark.slow
def test_as_our_user_writes_it(workdir: Path) -> None:
    """No model named: the only one under graphs/; several are an error that lists them."""
    tiny.checkpoint(workdir / "models" / "one", num_hidden_layers=8)
    done = commands.ended(workdir, "export", "models/one", "--skip", "mlp", "--frac", "0.25")
    assert (done.returncode, done.stdout) == (0, "graphs/one/mlp6-7.fp32.onnx\n"), done.stderr
    done = commands.ended(
        workdir,
        "export",
        "--skip",
        "attn",
        "--frac",
        "0.33",
        "--select",
        "last-but-final",
        "--precision",
        "fp16",
    )
    assert done.stdout == "graphs/one/attn4-6.fp16.onnx\n" and "model: one" in done.stderr
    done = commands.ended(workdir, "export", "--skip", "attn0-1+mlp5-7", "--json")
    assert json.loads(done.stdout)["skip"] == {"attention": [0, 1], "mlp": [5, 6, 7]}
    tiny.checkpoint(workdir / "models" / "two")
    assert commands.ended(workdir, "export", "models/two").returncode == 0
    done = commands.ended(workdir, "export", "--skip", "mlp", "--frac", "0.25")
    assert done.returncode == 2 and "one, two" in done.stderr


BAD = {
    "unknown model": (("export", "nosuch"), "no model 'nosuch'"),
    "fraction": (
        ("export", "models/one", "--skip", "mlp", "--frac", "1.5"),
        "--frac 1.5 is not between 0 and 1",
    ),
    "layer": (
        ("export", "models/one", "--skip", "mlp", "--layers", "40"),
        "layer 40 does not exist: the model has layers 0-1",
    ),
    "both": (
        ("export", "models/one", "--skip", "mlp", "--frac", "0.5", "--layers", "1"),
        "given: --frac and --layers",
    ),
    "precision": (("export", "models/one", "--precision", "bf16"), "'bf16' is not known; choose fp32"),
    "no graph": (("check", "nosuch.onnx"), "nosuch.onnx does not exist"),
    "nothing there": (("check",), "has no artefact"),
    "target": (("build-engine", "text.onnx", "--batch", "8,1,1"), "min,opt,max"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, workdir: Path) -> None:
    tiny.checkpoint(workdir / "models" / "one")
    (workdir / "text.onnx").write_text("hello")
    arguments, message = BAD[case]
    done = commands.ended(workdir, *arguments)
    said = [line for line in done.stderr.splitlines() if not line.startswith(("model: ", "taking: "))]
    assert done.returncode == 2 and done.stdout == "" and len(said) == 1 and message in said[0], done.stderr
    assert not list(workdir.glob("graphs/*/*.onnx")) and not list(workdir.rglob("*.tmp"))


@pytest.mark.slow
def test_a_killed_export_is_made_good_by_the_next(workdir: Path) -> None:
    """kill -9 at many moments; what is left is never a graph that its sidecar does not own."""
    tiny.checkpoint(workdir / "models" / "one", num_hidden_layers=8)
    line = [sys.executable, "-m", "pipeline.cli", "export", "models/one", "--skip", "mlp", "--frac", "0.25"]
    for delay in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        process = subprocess.Popen(
            line, cwd=workdir, env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for graph in workdir.glob("graphs/*/*.onnx"):
            assert onnx.load(
                str(graph), load_external_data=False
            ).graph.node  # whole, whatever its sidecar says
    done = command(*line[3:], cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert store.graph_sidecar(workdir / done.stdout.strip()) and not list(workdir.rglob("*.tmp"))


@pytest.mark.slow
def test_two_exports_at_once(workdir: Path) -> None:
    tiny.checkpoint(workdir / "models" / "one", num_hidden_layers=8)
    line = [sys.executable, "-m", "pipeline.cli", "export", "models/one", "--skip", "mlp", "--frac", "0.25"]
    pair = [
        subprocess.Popen(line, cwd=workdir, env=tiny.environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate()[0] for p in pair] == ["graphs/one/mlp6-7.fp32.onnx\n"] * 2 and not any(
        p.returncode for p in pair
    )
    assert store.graph_sidecar(workdir / "graphs/one/mlp6-7.fp32.onnx")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk(workdir: Path) -> None:
    tiny.checkpoint(workdir / "models" / "one")
    full = workdir / "full"
    full.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(full)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        done = command("export", str(workdir / "models" / "one"), cwd=full)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "GB are free there; free some space" in done.stderr
        assert not list(full.iterdir())  # nothing of a model that did not come in
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_skip_of_a_healthy_graph_reads_no_weights(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    store.graph_sidecar(base)
    monkeypatch.setattr(ir.ExternalTensor, "_load", lambda tensor: pytest.fail(f"{tensor.name} is read"))
    monkeypatch.setattr("hashlib.file_digest", lambda file, _: pytest.fail(f"{file.name} is read"))
    monkeypatch.setattr(store, "write_sidecar", lambda *_: None)  # it takes the new graph's own digest
    assert variants.cut(base, SkipSet.parse("mlp1")).is_file()


def test_a_copy_that_was_removed_meanwhile_is_said(workdir: Path) -> None:
    opened = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny")))
    shutil.rmtree(opened.folder)
    with pytest.raises(UserError, match=r"graphs/tiny was removed meanwhile; run the command again"):
        export.export_base(opened)
    assert not opened.folder.exists()


@pytest.mark.slow
def test_processes_that_cannot_use_a_copy_all_end_well(workdir: Path) -> None:
    """Each removes the copy that it made, under the others' eyes."""
    source = tiny.checkpoint(workdir / "models" / "tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu_nobody_has"}))
    line = [sys.executable, "-m", "pipeline.cli", "export", str(source)]
    running = [
        subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=tiny.environment()) for _ in range(4)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [2] * 4, errors
    assert all(len(error.strip().splitlines()) == 1 for error in errors), errors
    assert not Path("graphs/tiny").exists()
