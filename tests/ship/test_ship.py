"""Shipping: what a repository holds, what is refused, and that nothing is ever half-made."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import graphfile
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.ship import ship
from pipeline.ship.triton import page, repository
from pipeline.types import UserError
from tests import serving, tiny
from tests.serving import command

REPO = Path("engines/triton")


@pytest.fixture
def graphs(workdir: Path) -> list[Path]:
    return serving.project(workdir)


def config(model: str, file: str = "config.pbtxt") -> Any:
    return text_format.Parse((REPO / model / file).read_text(), model_config_pb2.ModelConfig())


def test_a_repository_holds_two_models_a_variant(graphs: list[Path]) -> None:
    manifest = ship.ship(graphs, REPO)
    assert manifest["shipped"] == [("tiny-base", 1), ("tiny-attn2-3", 1)]
    assert repository.served(manifest) == [
        "tiny-base",
        "tiny-base_generate",
        "tiny-attn2-3",
        "tiny-attn2-3_generate",
    ]
    repository.verify(REPO, repository.read(REPO))
    assert sorted(path.name for path in REPO.iterdir()) == sorted(
        [*repository.served(manifest), "README.md", "SHIP.json"]
    )
    raw = config("tiny-attn2-3")
    assert (raw.backend, raw.max_batch_size, raw.instance_group[0].count) == ("onnxruntime", 16, 1)
    names = {entry.name: list(entry.dims) for entry in raw.input}
    assert (
        names["past_key_values.0.key"] == [2, -1, 32]
        and names["input_ids"] == [-1]
        and "past_key_values.2.key" not in names
    )
    assert {entry.name for entry in raw.output} == {
        "logits",
        *(f"present.{i}.{x}" for i in (0, 1) for x in ("key", "value")),
    }
    assert set(raw.model_warmup[0].inputs) == set(names)
    text = config("tiny-base_generate")
    assert (
        text.model_transaction_policy.decoupled
        and text.backend == "python"
        and all(entry.optional for entry in text.input)
    )
    assert text.parameters["rows"].string_value == "16"
    told = repository.newest(manifest)["tiny-attn2-3"][1]
    assert (
        told["check"] == "passed" and told["kv_bytes_per_token"] == 2 * 2 * 2 * 32 * 4
    )  # 2 layers, k and v, 2 heads
    assert "tiny-attn2-3" in (REPO / "README.md").read_text()


def test_only_the_weights_that_a_variant_uses_are_copied(graphs: list[Path]) -> None:
    """The graph on its own copy computes the same logits; the skipped layers' weights are not in it."""
    ship.ship(graphs, REPO)
    whole, cut = (REPO / f"tiny-{name}/1/model.onnx" for name in ("base", "attn2-3"))
    attention = 2 * 4 * (64 * 4 * 32 * 2 + 64 * 2 * 32 * 2 + 64)  # q, o, k, v and a norm of two layers, fp32
    saved = (whole / "model.data").stat().st_size - (cut / "model.data").stat().st_size
    assert abs(saved - attention) < 2 * 5 * 4096  # but for the alignment of ten tensors
    for value in graphfile.load(cut / "model.onnx").graph.initializers.values():
        assert (
            not isinstance(value.const_value, ir.ExternalTensor) or value.const_value.location == "model.data"
        )
    ids = np.arange(3, 20)[None]
    with (
        opening.open_runner(graphs[1]) as here,
        OnnxRunner(cut, open_session(cut / "model.onnx", cut)) as there,
    ):
        np.testing.assert_array_equal(here.forward(ids)[0], there.forward(ids)[0])


def test_the_shipped_code_is_the_codes_own(graphs: list[Path]) -> None:
    """The same files that `pipeline generate` runs, and they import nothing else of the package."""
    ship.ship(graphs[:1], REPO)
    folder = REPO / "tiny-base_generate" / "1"
    carried = [
        ship.PACKAGE / "types.py",
        *(ship.PACKAGE / "runtime").rglob("*.py"),
        *(ship.PACKAGE / ship.IN_TRITON).glob("*.py"),
    ]
    assert len(carried) > 10
    for file in carried:
        assert (folder / "pipeline" / file.relative_to(ship.PACKAGE)).read_bytes() == file.read_bytes()
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "import pipeline.runtime.generation.batcher, pipeline.runtime.generation.writer, pipeline.runtime.onnxruntime\n"
        "print(pipeline.__file__, sorted({'torch', 'onnx', 'transformers', 'polygraphy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"{folder.resolve() / 'pipeline' / '__init__.py'} []", done.stderr
    assert Prompts.load(folder).encode("the time") == json.loads(
        subprocess.run(
            [sys.executable, "-c", "from pipeline.models import tokenizer; from pathlib import Path; import json;"
             "print(json.dumps(tokenizer.load(Path('graphs/tiny')).encode('the time')))"],
            capture_output=True, text=True, check=True, env=tiny.environment(),
        ).stdout
    )  # fmt: skip


def test_what_has_passed_no_check_is_refused_or_recorded(graphs: list[Path]) -> None:
    store.result_path("tiny", graphs[1], "check").unlink()
    with pytest.raises(UserError, match=r"attn2-3\.fp32\.onnx has passed no check; run `pipeline check"):
        ship.ship(graphs, REPO)
    assert not REPO.exists() and not list(REPO.parent.glob(".*.tmp"))
    manifest = ship.ship(graphs, REPO, unchecked=True)
    assert [told["check"] for _, told in repository.newest(manifest).values()] == ["passed", "not checked"]


def test_a_new_version_stands_beside_the_old_one(graphs: list[Path]) -> None:
    ship.ship(graphs[:1], REPO, name="llm")
    before = (REPO / "llm/1/model.onnx/model.data").stat()
    assert ship.ship(graphs[:1], REPO, name="llm")["shipped"] == [("llm", 1)]  # nothing to do
    manifest = ship.ship(graphs[1:], REPO, name="llm")
    assert (
        manifest["shipped"] == [("llm", 2)] and repository.newest(manifest)["llm"][1]["variant"] == "attn2-3"
    )
    assert (REPO / "llm/1/model.onnx/model.data").stat().st_ino == before.st_ino
    for model in ("llm", "llm_generate"):
        assert list(config(model).version_policy.specific.versions) == [2]
        assert list(config(model, "configs/v1.pbtxt").version_policy.specific.versions) == [1]
    repository.verify(REPO, repository.read(REPO))
    assert ship.ship(graphs[:1], REPO, name="other", settings=ship.Settings(rows=2))["shipped"] == [
        ("other", 1)
    ]
    assert set(repository.read(REPO)["models"]) == {"llm", "other"}


def plan(graph: Path, backend: str) -> Path:
    """A file in the place of an engine, with the sidecar that `build-engine` writes; no test here runs it."""
    record = store.read_sidecar(graph)
    path = store.engine_path("tiny", record["variant"], backend, "sm80", "fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a plan")
    told = {
        key: record[key]
        for key in ("model", "variant", "skip", "precision", "adapter", "head", "contract", "tokenizer")
    }
    ranges = {"batch": [1, 1, 8], "length": [1, 100, 512], "past": [0, 100, 512], "wanted": [1, 1, 1]}
    store.write_sidecar(
        path,
        {
            "artefact": "engine", **told, "backend": backend, "backend_version": "11.1.0", "targets": ["sm80"], "ranges": ranges,
            "stripped": False, "profiles": [], "folder": str(graph.parent), "graph": {"file": graph.name, "sha256": record["sha256"]},
        },
    )  # fmt: skip
    return path


def test_plans(graphs: list[Path]) -> None:
    """A TensorRT plan is served as tensorrt_plan; one of TensorRT-RTX, which Triton cannot load, as text only."""
    real, rtx = plan(graphs[0], "tensorrt"), plan(graphs[0], "tensorrt-rtx")
    with pytest.raises(UserError, match="has passed no check"):
        ship.ship([real], REPO)
    ship.ship([real], REPO, name="trt", unchecked=True)
    manifest = ship.ship([rtx], REPO, name="rtx", unchecked=True)
    assert repository.served(manifest) == ["trt", "trt_generate", "rtx_generate"]
    raw = config("trt")
    assert (raw.platform, raw.max_batch_size, raw.default_model_filename) == ("tensorrt_plan", 8, "")
    assert (REPO / "trt/1/model.plan").read_bytes() == b"a plan" and (
        REPO / "trt/1/graph/model.onnx"
    ).is_file()
    assert (REPO / "rtx_generate/1/model.plan").is_file() and not (REPO / "rtx").exists()
    assert "tensorrt==11.1.0" in page.docker(
        "/x", manifest
    ) and "tensorrt-rtx-cu13-libs==11.1.0" in page.docker("/x", manifest)
    with pytest.raises(UserError, match=r"trt holds versions of another kind \(tensorrt plan\)"):
        ship.ship(graphs[:1], REPO, name="trt")
    store.write_sidecar(real, {**store.read_sidecar(real), "stripped": True})
    with pytest.raises(UserError, match="built without its weights"):
        ship.ship([real], REPO, name="trt", unchecked=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("graphs/tiny/nothing.onnx",), "does not exist"),
        (("BASE", "BASE", "--name", "x"), "would get the same name"),
        (("BASE", "--name", "../x"), "cannot be a file name here"),
        (("BASE", "--name", "x_generate"), "ends in _generate"),
        (("BASE", "--rows", "0"), "--rows 0 is not above 0"),
        (("BASE", "--to", "somewhere", "engines/triton"), "--to takes triton and a folder"),
        (("BASE", "--to", "triton", "models"), "holds no SHIP.json; ship into an empty or a new folder"),
    ],
)
def test_bad_input_is_one_line(graphs: list[Path], arguments: tuple[str, ...], message: str) -> None:
    done = command(
        "ship",
        *(str(graphs[0]) if a == "BASE" else a for a in arguments),
        *(() if "--to" in arguments else TO),
    )
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1, (
        done.stderr
    )
    assert not REPO.exists() and list(Path("models").iterdir()) == [Path("models/tiny")]


TO = ("--to", "triton", str(REPO))


def test_truncated_weights_and_edited_sources_are_refused(graphs: list[Path]) -> None:
    weights = Path("graphs/tiny/model.safetensors")
    known = {
        **store.read_json(Path("graphs/tiny/source.json")),
        "sha256": {weights.name: store.sha256(weights)},
    }
    store.write_json(Path("graphs/tiny/source.json"), known)
    ship.ship(graphs, REPO)
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    with pytest.raises(UserError, match="is not what was fetched"):
        ship.ship(graphs, Path("engines/other"))
    weights.write_bytes(held[:-4096])
    with pytest.raises(UserError, match="truncated"):
        ship.ship(graphs, Path("engines/other"))
    assert not Path("engines/other").exists()


@pytest.mark.slow
def test_a_killed_ship_leaves_nothing_half_made(graphs: list[Path]) -> None:
    """Killed with -9 at many moments, first into nothing, then beside what is there: always all or nothing."""
    arguments = [sys.executable, "-m", "pipeline.cli", "ship", str(graphs[1]), "--name", "x", *TO]
    for there in (False, True):
        for moment in range(6):
            if there:
                ship.ship(graphs[:1], REPO, name="x")
            child = subprocess.Popen(
                arguments, env=tiny.environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            until = time.monotonic() + 60
            while (
                not list(REPO.parent.glob(".triton.*.tmp"))
                and child.poll() is None
                and time.monotonic() < until
            ):
                time.sleep(0.002)
            time.sleep(0.03 * moment)
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert REPO.exists() or not there
            if REPO.exists():
                manifest = repository.read(REPO)
                repository.verify(REPO, manifest)
            ship.ship(graphs[1:], REPO, name="x")
            manifest = repository.read(REPO)
            repository.verify(REPO, manifest)
            assert repository.newest(manifest)["x"][1]["variant"] == "attn2-3"
            assert not list(REPO.parent.glob(".triton.*.tmp"))
            shutil.rmtree(REPO)
