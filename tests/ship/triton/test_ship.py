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
from safetensors.torch import load_file
from tritonclient.grpc import model_config_pb2

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.check import check
from pipeline.graphs import export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.models.quantisation import files
from pipeline.models.quantisation.names import Quantisation
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.ship.triton import checks, page, repository, served, ship
from pipeline.types import UserError
from tests import commands, overlays, serving, tiny
from tests.interrupted import every_kill
from tests.serving import plan

REPO = Path("engines/triton")
TO = ("--to", "triton", str(REPO))


@pytest.fixture
def graphs(workdir: Path) -> list[Path]:
    return serving.project(workdir)


def config(model: str, file: str = "config.pbtxt") -> Any:
    return text_format.Parse((REPO / model / file).read_text(), model_config_pb2.ModelConfig())


def test_a_repository_holds_two_models_a_variant(graphs: list[Path]) -> None:
    shipment = ship.ship(graphs, REPO)
    assert shipment.shipped == (("tiny-base", 1), ("tiny-attn2-3", 1))
    models = ["tiny-base", "tiny-base_generate", "tiny-attn2-3", "tiny-attn2-3_generate"]
    assert [model.name for model in served.models(REPO, shipment.record)] == models
    assert repository.read(REPO) == shipment.record
    repository.verify(REPO, shipment.record)
    assert {path.name for path in REPO.iterdir()} == {*models, "README.md", "SHIP.json"}
    assert config("tiny-attn2-3").backend == "onnxruntime"
    text = config("tiny-base_generate")
    assert text.backend == "python" and text.parameters["rows"].string_value == "16"
    version = repository.newest(shipment.record)["tiny-attn2-3"][1]
    assert version.check == "passed" and version.raw_model and version.kind == "onnx graph"
    assert version.kv_bytes_per_token == 2 * 2 * 2 * 32 * 4  # 2 layers, k and v, 2 heads, D, fp32
    assert store.resolved(version.artefact, REPO / "SHIP.json") == graphs[1]
    assert "tiny-attn2-3" in (REPO / "README.md").read_text()


@pytest.mark.slow
def test_what_json_and_a_person_read(graphs: list[Path]) -> None:
    done = commands.ended(Path.cwd(), "ship", str(graphs[0]), *TO, "--json")
    shown = json.loads(done.stdout)
    assert shown["shipped"] == [["tiny-base", 1]]
    assert {**store.read_json(REPO / "SHIP.json"), "shipped": shown["shipped"]} == shown
    assert shown["skip-pipeline"] and shown["format"] == 1
    done = commands.ended(Path.cwd(), "ship", str(graphs[1]), *TO)
    line, folder = done.stdout.strip().splitlines()
    assert line.startswith("tiny-attn2-3 and tiny-attn2-3_generate, version 1: onnx graph, ")
    assert line.endswith("MB, check passed") and folder == str(REPO)


def test_only_the_weights_that_a_variant_uses_are_copied(graphs: list[Path]) -> None:
    """The graph on its own copy computes the same logits; the skipped layers' weights are not in it."""
    ship.ship(graphs, REPO)
    whole, cut = (REPO / f"tiny-{name}/1/model.onnx" for name in ("base", "attn2-3"))
    attention = 2 * 4 * (64 * 4 * 32 * 2 + 64 * 2 * 32 * 2 + 64)  # q, o, k, v and a norm of two layers, fp32
    saved = (whole / "model.data").stat().st_size - (cut / "model.data").stat().st_size
    assert abs(saved - attention) < 2 * 5 * 4096  # but for the alignment of ten tensors
    for value in graphfile.load(cut / "model.onnx").graph.initializers.values():
        tensor = value.const_value
        assert not isinstance(tensor, ir.ExternalTensor) or tensor.location == "model.data"
    ids = np.arange(3, 20)[None]
    with (
        opening.open_runner(graphs[1]) as here,
        OnnxRunner(cut, open_session(cut / "model.onnx", cut)) as there,
    ):
        np.testing.assert_array_equal(here.forward(ids)[0], there.forward(ids)[0])


def test_what_has_passed_no_check_is_refused_or_recorded(graphs: list[Path]) -> None:
    store.result_of(graphs[1], "check").unlink()
    with pytest.raises(UserError, match=r"attn2-3\.fp32\.onnx has passed no check; run `pipeline check"):
        ship.ship(graphs, REPO)
    assert not REPO.exists() and not list(REPO.parent.glob(".*.tmp"))
    record = ship.ship(graphs, REPO, unchecked=True).record
    assert [version.check for _, version in repository.newest(record).values()] == ["passed", "not checked"]


def test_a_new_version_stands_beside_the_old_one(graphs: list[Path]) -> None:
    ship.ship(graphs[:1], REPO, name="llm")
    before = (REPO / "llm/1/model.onnx/model.data").stat()
    assert ship.ship(graphs[:1], REPO, name="llm").shipped == (("llm", 1),)  # nothing to do
    shipment = ship.ship(graphs[1:], REPO, name="llm")
    assert shipment.shipped == (("llm", 2),)
    assert repository.newest(shipment.record)["llm"][1].variant == "attn2-3"
    assert (REPO / "llm/1/model.onnx/model.data").stat().st_ino == before.st_ino
    for model in ("llm", "llm_generate"):
        assert list(config(model).version_policy.specific.versions) == [2]
        assert list(config(model, "configs/v1.pbtxt").version_policy.specific.versions) == [1]
    repository.verify(REPO, repository.read(REPO))
    settings = ship.settings_of(rows=2, cache_tokens=100, queue=1)
    assert ship.ship(graphs[:1], REPO, name="other", settings=settings).shipped == (("other", 1),)
    assert ship.ship(graphs[:1], REPO, name="other").shipped == (("other", 2),)  # the settings are others
    assert set(repository.read(REPO).models) == {"llm", "other"}


def test_from_any_directory_and_with_any_letters(
    tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artefact's path says which project it is of; names of Triton models are ASCII, as parts of URLs."""
    graph = serving.project(workdir, ("base",), model="my model é 模型")[0].resolve()
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shipment = ship.ship([graph], Path("my models/triton"))
    assert shipment.shipped == (("my_model_e___-base", 1),)
    version = repository.newest(repository.read(Path("my models/triton")))["my_model_e___-base"][1]
    assert version.model == "my model é 模型" and version.check == "passed"
    record = Path("my models/triton/SHIP.json")
    assert store.resolved(version.artefact, record).resolve() == graph
    assert sorted(path.name for path in elsewhere.iterdir()) == ["my models"]


def test_plans(graphs: list[Path]) -> None:
    """A TensorRT plan is a tensorrt_plan; one of TensorRT-RTX, which Triton cannot load, takes text only."""
    real, rtx = plan(graphs[0], "tensorrt"), plan(graphs[0], "tensorrt-rtx")
    with pytest.raises(UserError, match="has passed no check"):
        ship.ship([real], REPO)
    ship.ship([real], REPO, name="trt", unchecked=True)
    record = ship.ship([rtx], REPO, name="rtx", unchecked=True).record
    names = [model.name for model in served.models(REPO, record)]
    assert names == ["trt", "trt_generate", "rtx_generate"]
    raw = config("trt")
    assert (raw.platform, raw.max_batch_size, raw.default_model_filename) == ("tensorrt_plan", 8, "")
    assert (REPO / "trt/1/model.plan").read_bytes() == b"a plan"
    assert (REPO / "trt/1/graph/model.onnx").is_file()
    assert (REPO / "rtx_generate/1/model.plan").is_file() and not (REPO / "rtx").exists()
    shown = page.docker("/x", record)
    assert "tensorrt==11.1.0" in shown and "tensorrt-rtx-cu13-libs==11.1.0" in shown
    with pytest.raises(UserError, match=r"trt holds versions of another kind \(tensorrt plan\)"):
        ship.ship(graphs[:1], REPO, name="trt")


def test_plans_that_cannot_be_served_are_refused(graphs: list[Path]) -> None:
    path = plan(graphs[0], "tensorrt")
    fields = store.engine_sidecar(path).plain()
    store.write_sidecar(path, {**fields, "stripped": True})
    with pytest.raises(UserError, match="built without its weights"):
        ship.ship([path], REPO, unchecked=True)
    store.write_sidecar(path, {**fields, "graph": {"file": graphs[0].name, "sha256": "0" * 64}})
    with pytest.raises(UserError, match=r"is not the graph that .* was built from; build the engine again"):
        ship.ship([path], REPO, unchecked=True)
    store.write_sidecar(path, {**fields, "skip": None, "variants": {"base": "0" * 64, "attn2-3": "1" * 64}})
    with pytest.raises(UserError, match="holds several variants"):
        ship.ship([path], REPO, unchecked=True)
    assert not REPO.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("graphs/tiny/nothing.onnx",), "does not exist"),
        (("BASE", "BASE", "--name", "x"), "would get the same name"),
        (("BASE", "--name", "../x"), "cannot be a file name here"),
        (("BASE", "--name", "x_generate"), "ends in _generate"),
        (("BASE", "--rows", "0"), "--rows 0 is not above 0"),
        (("BASE", "--cache-tokens", "-5"), "--cache-tokens -5 is not above 0"),
        (("BASE", "--queue", str(1 << 70)), "is too large"),
        (("BASE", "--to", "somewhere", "engines/triton"), "--to takes triton, gguf or hf and a path"),
        (("BASE", "--to", "triton", "models"), "holds no SHIP.json; ship into an empty or a new folder"),
    ],
)
def test_bad_input_is_one_line(graphs: list[Path], arguments: tuple[str, ...], message: str) -> None:
    paths = (str(graphs[0]) if argument == "BASE" else argument for argument in arguments)
    done = commands.ended(Path.cwd(), "ship", *paths, *(() if "--to" in arguments else TO))
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not REPO.exists() and list(Path("models").iterdir()) == [Path("models/tiny")]


def test_truncated_weights_and_edited_sources_are_refused(graphs: list[Path]) -> None:
    weights, source = Path("graphs/tiny/model.safetensors"), Path("graphs/tiny/source.json")
    store.write_json(source, {**store.read_json(source), "sha256": {weights.name: store.sha256(weights)}})
    ship.ship(graphs, REPO)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is not what .*base\.fp32\.onnx was made with"):
        ship.ship(graphs, Path("engines/other"))
    weights.write_bytes(content[:-4096])
    with pytest.raises(UserError, match=r"model\.safetensors is not what .*base\.fp32\.onnx was made with"):
        ship.ship(graphs, Path("engines/other"))
    content[-1] ^= 1
    weights.write_bytes(content)
    store.write_json(source, {**store.read_json(source), "sha256": {}, "etags": {weights.name: "0" * 64}})
    with pytest.raises(UserError, match="is not what was fetched"):
        ship.ship(graphs, Path("engines/other"))
    assert not Path("engines/other").exists()


@pytest.mark.slow
def test_a_killed_ship_leaves_nothing_half_made(graphs: list[Path]) -> None:
    """Killed with -9 at many moments, in a new folder and beside what is there: always all or nothing."""
    arguments = [sys.executable, "-m", "pipeline.cli", "ship", str(graphs[1]), "--name", "x", *TO]
    for there in (False, True):
        for moment in range(6):
            if there:
                ship.ship(graphs[:1], REPO, name="x")
            child = subprocess.Popen(
                arguments, env=tiny.environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            end = time.monotonic() + 60
            while not list(REPO.parent.glob(".triton.*.tmp")) and child.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.002)
            time.sleep(0.03 * moment)
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert REPO.exists() or not there
            if REPO.exists():
                repository.verify(REPO, repository.read(REPO))
            ship.ship(graphs[1:], REPO, name="x")
            record = repository.read(REPO)
            repository.verify(REPO, record)
            assert repository.newest(record)["x"][1].variant == "attn2-3"
            assert not list(REPO.parent.glob(".triton.*.tmp"))
            shutil.rmtree(REPO)


@pytest.mark.slow
def test_killed_at_any_change_of_the_repository_it_is_whole(graphs: list[Path]) -> None:
    """Every config.pbtxt names a version that SHIP.json has and whose files are what was shipped."""
    shipped = Path("shipped")
    ship.ship(graphs[:1], shipped, name="x")

    def prepare() -> None:
        shutil.rmtree(REPO, ignore_errors=True)
        shutil.copytree(shipped, REPO)

    kills = 0
    for _ in every_kill(REPO, prepare, lambda: ship.ship(graphs[1:], REPO, name="x")):
        kills += 1
        record = repository.read(REPO)
        repository.verify(REPO, record)
        for model in ("x", "x_generate"):
            numbers = {str(number) for number in config(model).version_policy.specific.versions}
            assert numbers <= set(record.models["x"].versions)
    assert kills > 10
    ship.ship(graphs[1:], REPO, name="x")
    for model in ("x", "x_generate"):
        assert list(config(model).version_policy.specific.versions) == [2]
    assert not list(REPO.rglob("*.tmp")) and not list(REPO.parent.glob(".triton.*.tmp"))


def test_a_ship_beside_another_repository_leaves_its_unfinished_one_alone(graphs: list[Path]) -> None:
    """REPO.x may be shipped to at the same time: its staging folder is not ours to remove."""
    theirs = REPO.with_name(".triton.x.abcdefgh.tmp")
    ours = REPO.with_name(".triton.abcdefgh.tmp")
    for folder in (theirs, ours):
        folder.mkdir(parents=True)
    ship.ship(graphs[:1], REPO)
    assert theirs.is_dir() and not ours.exists()


def test_a_compensated_graph_ships_with_its_maps(graphs: list[Path]) -> None:
    """With a map for each skipped sublayer and a folded weight, and as another version of another name."""
    base, skip = graphs[0], store.variant(graphs[1]).skip
    folded = "model.layers.1.mlp.down_proj.weight"
    overlay = overlays.make(base.parent, skip, "fold+rank16", folded)
    path = variants.compensate(base, skip, overlay, "fold+rank16")
    assert check.check(path).passed
    shipment = ship.ship([graphs[1], path], REPO)
    name = "tiny-attn2-3_fold_rank16"
    assert shipment.shipped == (("tiny-attn2-3", 1), (name, 1))
    version = repository.newest(shipment.record)[name][1]
    assert version.compensation == "fold+rank16" and version.variant == "attn2-3~fold+rank16"
    data = (REPO / name / "1" / "model.onnx" / "model.data").read_bytes()
    changed = load_file(overlay)
    assert len(changed) == 5 and all(tensor.numpy().tobytes() in data for tensor in changed.values())
    ids = np.arange(3, 20)[None]
    with opening.open_runner(path) as here, checks.open_graph(REPO, version) as there:
        np.testing.assert_array_equal(here.forward(ids)[0], there.forward(ids)[0])
        prompts, greedy = Prompts.load(REPO / f"{name}_generate" / "1"), Sampling(max_tokens=12)
        texts = {checks.direct(runner, prompts, "the time", greedy) for runner in (here, there)}
        assert len(texts) == 1 and texts.pop()
    overlays.make(base.parent, skip, "fold+rank16", seed=1)
    with pytest.raises(UserError, match=r"attn2-3~fold\+rank16\.safetensors is not what"):
        ship.ship([path], Path("engines/other"))


def test_a_quantised_graph_ships_with_its_blocks(graphs: list[Path]) -> None:
    """As another version of the same model; the weights that it has in blocks are there in blocks alone."""
    source, skip = checkpoint.open_checkpoint(graphs[1].parent), store.variant(graphs[1]).skip
    path = export.export(source, "fp32", skip, Quantisation(4, 32))
    tiny.passed(path)
    assert ship.ship([graphs[1]], REPO).shipped == (("tiny-attn2-3", 1),)
    shipment = ship.ship([path], REPO)
    assert shipment.shipped == (("tiny-attn2-3", 2),)
    version = repository.newest(shipment.record)["tiny-attn2-3"][1]
    assert version.quantisation == "int4-b32" and version.precision == "fp32"
    whole, blocks = (REPO / f"tiny-attn2-3/{n}/model.onnx/model.data" for n in (1, 2))
    weight = files.stored(store.overlays(path)[0])["model.layers.1.mlp.up_proj.weight"]
    packed = store.overlays(path)[0].read_bytes()[weight.values.offset :][: weight.values.nbytes]
    assert packed in blocks.read_bytes() and blocks.stat().st_size < whole.stat().st_size / 2
    ids = np.arange(3, 20)[None]
    with opening.open_runner(path) as here, checks.open_graph(REPO, version) as there:
        np.testing.assert_array_equal(here.forward(ids)[0], there.forward(ids)[0])
