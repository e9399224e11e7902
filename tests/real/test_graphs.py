"""The main job on the real model: SmolLM2-135M through export, skip, check, generate and build."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.engines import build, opening
from pipeline.engines.settings import BuildSettings
from pipeline.evals.check import check
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, checkpoint_files, demo, texts
from pipeline.models import tokenizer as tokenizers
from pipeline.models.reference import Reference
from pipeline.models.tokenizer import stop_tokens
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.types import SkipSet

pytestmark = pytest.mark.slow


@pytest.fixture
def model(demo_root: Path, workdir: Path) -> checkpoint.Checkpoint:
    """SmolLM2 in a project root of this test's own."""
    folder = Path("graphs") / demo.MODEL
    folder.mkdir(parents=True)
    for file in (demo_root / folder).iterdir():
        if file.name in (*checkpoint_files.SMALL_FILES, store.SOURCE, "model.safetensors"):
            shutil.copyfile(file, folder / file.name)
    return checkpoint.resolve("demo")


@pytest.mark.parametrize("name", ["base", "attn22-29", "block3_17"])
def test_greedy_text_is_pytorchs(name: str, model: checkpoint.Checkpoint) -> None:
    """Token for token, on the graph's own cache; base knows the capital of France."""
    graph = variants.cut(export.export_base(model), SkipSet.parse(name))
    prompt = tokenizers.load(model.folder).encode("The capital of France is")
    stop = stop_tokens(model.folder)
    with opening.open_runner(graph) as runner:
        (row,) = greedy_batch(runner, [prompt], 12, lambda tokens: tokens[-1] in stop)
    truth = Reference(model.folder, SkipSet.parse(name)).generate(prompt, 12)
    assert row.error is None and row.tokens == truth
    if name == "base":
        assert tokenizers.load(model.folder).decode(row.tokens).startswith(" Paris.")


@pytest.mark.parametrize(("name", "precision"), [("mlp22-29", "fp32"), ("attn19-28", "fp16")])
def test_check_passes(name: str, precision: str, model: checkpoint.Checkpoint) -> None:
    graph = variants.cut(export.export_base(model, precision), SkipSet.parse(name))
    result = check.check(graph)
    assert result.passed and store.check_passed(graph), result.summary()


@pytest.mark.rtx
@pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx_bindings"),
    reason="TensorRT-RTX is not installed: pip install 'skip-pipeline[rtx]'",
)
@pytest.mark.parametrize("name", ["base", "attn20-27+mlp22-29"])
def test_rtx_builds(name: str, model: checkpoint.Checkpoint) -> None:
    graph = variants.cut(export.export_base(model, "fp16"), SkipSet.parse(name))
    sidecar = store.engine_sidecar(build.build(graph, BuildSettings(targets=("sm86",))))
    assert sidecar.bytes > 2e8 and sidecar.build is not None and sidecar.build.num_layers > 1000


def test_text_is_real_and_of_exact_length(model: checkpoint.Checkpoint) -> None:
    rows = texts.sequences(model.folder, 100, 1000)[0]
    assert rows.shape == (1000, 100) and len({row.tobytes() for row in rows}) == 1000
    assert " the " in tokenizers.load(model.folder).decode(rows[0].tolist() + rows[1].tolist())
