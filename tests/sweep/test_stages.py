"""The jobs of one model: their files, and what they need of a machine."""

from __future__ import annotations

from pathlib import Path

from pipeline.models import costs
from pipeline.sweep import recipe
from pipeline.sweep.jobs import GridCell
from pipeline.sweep.stages import StageJobs, Target, known_config, weight_bytes
from pipeline.types import BASE, SkipSet, Variant
from tests.grids import GRID, known

CELL = GridCell("attn", 0.3, "last")


def stage_jobs(tables: str = "", model: str = "org/tiny") -> StageJobs:
    text = GRID.replace('"check",', '"check", "build", "heal",').replace(
        "[score]", 'precisions = ["fp16"]\n[score]'
    )
    settings = recipe.read(known(text + tables, model=model))
    return StageJobs(settings, settings.models[0], Path("evals/sweeps/grid"))


def target(model: str = "tiny") -> Target:
    return Target(Variant(model, SkipSet.parse("attn2"), "fp16"), CELL)


def test_files_and_ids_of_a_graph_and_its_engine(workdir: Path) -> None:
    jobs = stage_jobs()
    export = jobs.export(target(), ("tiny.base.fp16.export",))
    assert export.id == "tiny.attn2.fp16.export" and export.inputs == (Path("graphs/tiny/base.fp16.onnx"),)
    assert export.outputs == (Path("graphs/tiny/attn2.fp16.onnx"),)
    build = jobs.build(target(), export.outputs[0], (export.id,))
    assert build.outputs == (Path("engines/tiny/attn2/tensorrt-rtx-sm80-fp16.plan"),) and not build.gpu
    check = jobs.check(target(), build.outputs[0], build)
    assert check.id == "tiny.attn2.fp16.engine.check" and check.gpu and check.needs == (build.id,)
    assert check.outputs == (Path("evals/results/tiny/attn2.tensorrt-rtx-sm80-fp16.check.json"),)
    score = jobs.score(target(), "smoke", export.outputs[0], (check.id,))
    assert score.id == "tiny.attn2.fp16.score.smoke" and score.task == "smoke"
    assert score.outputs == (Path("evals/results/tiny/attn2.fp16.score.smoke.limit5.json"),)
    bench = jobs.bench(target(), export.outputs[0], (check.id,), decode=True)
    assert bench.id == "tiny.attn2.fp16.bench.decode" and bench.exclusive and "--decode" in bench.command


def test_a_base_is_exported_by_the_models_own_name_and_a_variant_by_its_folder(workdir: Path) -> None:
    jobs = stage_jobs(model="org/my model é")
    assert jobs.model == "my model é"
    base = jobs.export(jobs.base_target("fp16"))
    assert base.command[:3] == ("pipeline", "export", "org/my model é") and base.inputs == ()
    variant = jobs.export(target("my model é"))
    assert variant.command[2] == "my model é" and variant.outputs[0].parent == Path("graphs/my model é")


def test_only_what_runs_on_a_gpu_needs_one(workdir: Path) -> None:
    jobs = stage_jobs('[build]\nbackend = "tensorrt"\n[heal]\nquantize = "4bit"\n')
    graph = Path("graphs/tiny/attn2.fp16.onnx")
    assert jobs.build(target(), graph, ()).gpu and jobs.heal(target(), jobs.export(target())).gpu
    assert not jobs.score(target(), "smoke", graph, ()).gpu


def test_memory_is_that_of_the_weights_in_their_precision(project: Path) -> None:
    text = GRID.replace("{model}", "models/tiny")
    path = Path("grid.toml")
    path.write_text(text)
    settings = recipe.read(path)
    jobs = StageJobs(settings, settings.models[0], Path("evals/sweeps/grid"))
    base = jobs.base_target("fp32")
    graph = Path("graphs/tiny/base.fp32.onnx")
    score, check = jobs.score(base, "smoke", graph, ()), jobs.check(base, graph, jobs.export(base))
    weights = (project / "model.safetensors").stat().st_size  # fp32, and a header of a few kilobytes
    assert score.memory is not None and 0.9 * weights < score.memory < weights
    assert check.memory == 2 * score.memory and jobs.export(base).memory is None


def test_memory_of_quantised_weights_is_that_of_their_blocks(project: Path) -> None:
    """And without a config, where the recipe knows the parameters alone: 4 bits, and a scale a block."""
    path = Path("grid.toml")
    path.write_text(GRID.replace("{model}", "models/tiny"))
    settings = recipe.read(path)
    jobs = StageJobs(settings, settings.models[0], Path("evals/sweeps/grid"))
    base, graph = jobs.base_target("int4-b32-fp32"), Path("graphs/tiny/base.int4-b32-fp32.onnx")
    assert jobs.config is not None
    blocks = costs.weight_bytes(jobs.config, BASE, "int4-b32-fp32")
    assert jobs.score(base, "smoke", graph, ()).memory == blocks
    assert jobs.bench(base, graph, (), decode=False).memory == 2 * blocks
    whole = costs.parameters(jobs.config) * 4
    assert jobs.check(base, graph, jobs.export(base)).memory == whole + blocks
    assert weight_bytes(None, 6_400, BASE, "int4-fp32") == 6_400 // 2 + 100 * 2


def test_a_config_counts_only_beside_a_whole_checkpoint(project: Path) -> None:
    config = known_config(Path("graphs/tiny"))
    assert config is not None and config["num_hidden_layers"] == 3
    Path("graphs/tiny/config.json").write_text('{"model_type": "gpt2", "n_embd": 8}')
    assert known_config(Path("graphs/tiny")) is None and known_config(Path("graphs/none")) is None
