"""The plan: every job of the grid once, in an order in which it can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.calib import calibrate, selectors
from pipeline.models import texts
from pipeline.types import UserError
from tests.grids import GRID, known, planned, put

RECIPES = Path(__file__).parents[2] / "evals" / "recipes"


def test_tyukins_recipe_is_the_papers_grid(workdir: Path) -> None:
    _, plan = planned(RECIPES / "tyukin.toml")
    chosen = {(job.model, job.variant) for job in plan.jobs if job.stage == "select"}
    assert len(chosen) == 2 * 18
    assert ("Llama-2-7b-hf", "attn21-31") in chosen and ("Llama-2-13b-hf", "block25-38") in chosen
    scores = [job for job in plan.jobs if job.stage == "score"]
    assert len(scores) == 2 * 19 * 4 and all(job.inputs[0].suffix == ".plan" and job.gpu for job in scores)
    bench = next(job for job in plan.jobs if job.stage == "bench")
    assert {"--sequences", "1000", "50,100"} <= set(bench.command)


def test_gromovs_recipe_is_the_papers_grid(workdir: Path) -> None:
    settings, plan = planned(RECIPES / "gromov.toml")
    assert len(settings.models) == 7 and len(plan.pending) == 7 * 11
    healed = [job for job in plan.jobs if job.stage == "score" and (job.variant or "").endswith("~heal")]
    assert healed and all("4bit" in job.command for job in plan.jobs if job.stage == "heal")


def test_the_demo_recipe_waits_for_its_statistics(workdir: Path) -> None:
    _, plan = planned(RECIPES / "demo.toml")
    assert len(plan.pending) == 9
    assert len({job.variant for job in plan.jobs if job.stage == "export"}) == 19


def test_every_job_comes_after_what_it_needs(workdir: Path) -> None:
    text = GRID.replace('"check",', '"check", "build", "heal",')
    _, plan = planned(known(text.replace("[score]", 'precisions = ["fp32", "fp16"]\n[score]')))
    seen: set[str] = set()
    for job in plan.jobs:
        assert set(job.needs) <= seen, job.id
        assert job.id not in seen and (job.inline or job.outputs) and job.command[0] == "pipeline"
        assert job.exclusive == (job.stage == "bench")
        store.plain_name(job.id)
        seen.add(job.id)
    jobs = {job.id: job for job in plan.jobs}
    heal, healed = jobs["tiny.attn2.fp32.heal"], jobs["tiny.attn2~heal.fp16.export"]
    assert heal.command[:4] == ("pipeline", "heal", "graphs/tiny/attn2.fp32.onnx", "--steps")
    assert heal.outputs == (Path("calib/tiny/attn2/adapters/heal/heal.json"),)
    assert heal.id in healed.needs
    assert " ".join(healed.command[3:]) == "--skip attn2 --adapter heal --precision fp16"
    assert "tiny.base.fp32.check" in jobs["tiny.attn2.fp32.bench"].needs
    measured = [job.stage for job in plan.jobs]
    assert set(measured[measured.index("bench") :]) == {"bench"} and plan.jobs[-1].variant == "base"


def test_a_variant_that_several_cells_choose_is_run_once(workdir: Path) -> None:
    _, plan = planned(known(GRID.replace("[0.3, 0.6]", "[0.3, 0.33, 1.0]")))
    attn = [job for job in plan.jobs if job.stage == "select" and job.cell.kind == "attn"]
    shared = {(job.cell.frac, job.cell.select): job.shared for job in attn}
    assert shared[(0.3, "last")] is None and shared[(0.33, "last")] == "tiny.attn.0.3.last.select"
    assert sum(job.stage == "bench" and job.variant == "attn2" for job in plan.jobs) == 1
    assert "tiny attn 100% last-but-final: last-but-final keeps the final layer" in plan.notes[0]


def test_a_rule_that_measures_is_a_job_whose_answer_is_read(workdir: Path) -> None:
    path = known(GRID.replace('"last", "last-but-final"', '"last", "greedy"').replace("[0.3, 0.6]", "[0.3]"))
    _, plan = planned(path)
    job = next(job for job in plan.jobs if job.id == "tiny.attn.0.3.greedy.select")
    assert not job.inline and job.stdout == job.outputs[0] and plan.pending[0].id == job.id
    choice = {"kind": "attn", "select": "greedy", "skip": "attn2", "attention": [2], "mlp": [], "count": 1}
    store.write_json(job.outputs[0], choice)
    _, plan = planned(path)
    decided = next(other for other in plan.jobs if other.id == job.id)
    assert decided.variant == "attn2" and [cell.cell.kind for cell in plan.pending] == ["mlp"]
    assert sum(other.stage == "export" and other.variant == "attn2" for other in plan.jobs) == 1
    _, plan = planned(put(path.read_text() + "[select]\nsamples = 3\n"))
    assert len(plan.pending) == 2  # other settings, another answer


def test_evo_waits_for_statistics_and_is_a_job_that_measures(project: Path) -> None:
    text = GRID.replace("{model}", "models/tiny").replace('"last", "last-but-final"', '"evo"')
    path = put(text.replace("[0.3, 0.6]", "[0.3]") + "[calibrate]\nsamples = 2\nlength = 16\n")
    _, plan = planned(path)
    assert {cell.reason for cell in plan.pending} == {"chosen by evo once calibrated"}
    calibrate.calibrate(Path("graphs/tiny"), texts.OWN, calibrate.CalibrationSettings(samples=2, length=16))
    _, plan = planned(path)
    assert {cell.reason for cell in plan.pending} == {"chosen by evo once measured"}
    job = next(job for job in plan.jobs if job.id == "tiny.attn.0.3.evo.select")
    assert not job.inline and "evo" in job.command and job.stdout == job.outputs[0]


def test_statistics_make_the_rest_of_the_plan(project: Path) -> None:
    text = GRID.replace("{model}", "models/tiny").replace('"last-but-final"', '"cosine"')
    path = put(text + "[calibrate]\nsamples = 2\nlength = 16\n")
    _, plan = planned(path)
    assert len(plan.pending) == 4
    settings = calibrate.CalibrationSettings(samples=2, length=16)
    calibrate.calibrate(Path("graphs/tiny"), texts.OWN, settings)
    _, plan = planned(path)
    assert not plan.pending
    statistics = selectors.ModelStatistics(Path("graphs/tiny"))
    wanted = selectors.choose("cosine", selectors.Question("attn", 1, 3, statistics)).skip.name
    variants = {
        job.cell.select: job.variant
        for job in plan.jobs
        if job.stage == "select" and job.cell.frac == 0.3 and job.cell.kind == "attn"
    }
    assert variants["cosine"] == wanted
    _, plan = planned(put(text + "[calibrate]\nsamples = 3\nlength = 16\n"))
    assert len(plan.pending) == 4  # statistics of other settings are not those that were asked for


def test_a_model_with_another_number_of_layers_is_refused(project: Path) -> None:
    text = GRID.replace('"{model}"', '{ name = "models/tiny", layers = 4 }')
    with pytest.raises(UserError, match="has 3 layers, and the recipe says 4"):
        planned(put(text))


def test_each_form_makes_a_variant_that_goes_through_all_stages(workdir: Path) -> None:
    text = GRID.replace("[score]", 'compensate = ["linear", "fold"]\nprecisions = ["fp32", "fp16"]\n[score]')
    _, plan = planned(known(text))
    jobs = {job.id: job for job in plan.jobs}
    made = jobs["tiny.mlp2~linear.fp16.compensate"]
    assert made.needs == ("tiny.mlp2.fp16.export",) and made.inputs == (Path("graphs/tiny/mlp2.fp16.onnx"),)
    assert made.outputs == (
        Path("graphs/tiny/mlp2~linear.fp16.onnx"), Path("graphs/tiny/mlp2~linear.safetensors"),
    )  # fmt: skip
    assert " ".join(made.command[1:]) == "compensate graphs/tiny/mlp2.fp16.onnx --with linear --no-time"
    check = jobs["tiny.mlp2~linear.fp16.check"]
    assert check.needs == (made.id,) and check.inputs == made.outputs[:1]
    assert jobs["tiny.mlp2~linear.fp16.score.smoke"].needs == (check.id,)
    assert jobs["tiny.mlp2~linear.fp16.bench"].exclusive
    # Two kinds, two fractions, two rules of which the counts 1 and 2 of 3 layers give different sets.
    variants = {job.variant for job in plan.jobs if job.stage == "export"} - {"base"}
    compensated = {job.variant for job in plan.jobs if job.stage == "compensate"}
    assert compensated == {f"{one}~{form}" for one in variants for form in ("linear", "fold")}
    seen: set[str] = set()
    for job in plan.jobs:
        assert set(job.needs) <= seen, job.id
        seen.add(job.id)


def test_quantised_graphs_go_through_all_stages(workdir: Path) -> None:
    """'int4' alone is both graphs; what changes weights, or is of another engine, takes the plain ones."""
    text = GRID.replace('"check",', '"check", "build", "heal",').replace("[score]", "{}\n[score]")
    more = 'compensate = ["linear", "fold"]\nship = ["hf"]\nprecisions = ["fp32", "int4"]'
    _, plan = planned(known(text.format(more, model="{model}")))
    jobs = {job.id: job for job in plan.jobs}
    export = jobs["tiny.mlp2.int4-fp32.export"]
    assert " ".join(export.command[3:]) == "--skip mlp2 --precision int4-fp32"
    assert export.inputs == (Path("graphs/tiny/base.int4-fp32.onnx"),)
    assert export.outputs == (Path("graphs/tiny/mlp2.int4-fp32.onnx"),)
    plan_file = "engines/tiny/mlp2/tensorrt-rtx-sm80-int4-fp16.plan"
    assert jobs["tiny.mlp2.int4-fp16.build"].outputs == (Path(plan_file),)
    assert "tiny.mlp2.int4-fp32.build" not in jobs and "tiny.mlp2.fp32.build" not in jobs
    bench = jobs["tiny.mlp2.int4-fp32.bench"]
    assert bench.command[2:4] == ("graphs/tiny/mlp2.int4-fp32.onnx", "graphs/tiny/base.fp32.onnx")
    assert {"tiny.base.int4-fp32.check", "tiny.base.fp32.check"} <= set(bench.needs)
    assert jobs["tiny.mlp2.fp32.bench"].command[3] == "--sequences"
    assert "tiny.mlp2~linear.int4-fp32.score.smoke" in jobs and "tiny.mlp2~fold.fp32.check" in jobs
    stems = [(job.variant, job.precision) for job in plan.jobs if job.variant]
    assert not any("fold" in name and "int4" in form for name, form in stems)
    assert not any("heal" in name and "int4" in form for name, form in stems)
    assert {job.precision for job in plan.jobs if job.stage in ("ship", "heal")} == {"fp32"}
    assert "fold of int4: nothing is folded into quantised weights" in plan.notes


def test_each_variant_is_shipped_once_its_graph_is_checked(workdir: Path) -> None:
    """In the first precision alone: what is shipped has a type of its own."""
    text = GRID.replace("[score]", 'precisions = ["fp32", "fp16"]\ncompensate = ["linear"]\n[score]')
    tables = '[ship]\nto = ["gguf", "hf"]\ntype = "q8_0"\nforce = true\n'
    _, plan = planned(known(text + tables))
    shipped = {job.id: job for job in plan.jobs if job.stage == "ship"}
    exported = {job.variant for job in plan.jobs if job.stage in ("export", "compensate")}
    assert {job.variant for job in shipped.values()} == exported and len(shipped) == 2 * len(exported)
    gguf, hf = shipped["tiny.attn2~linear.fp32.ship.gguf"], shipped["tiny.attn2~linear.fp32.ship.hf"]
    assert gguf.needs == hf.needs == ("tiny.attn2~linear.fp32.check",)
    folder, graph = "engines/tiny/attn2~linear", "graphs/tiny/attn2~linear.fp32.onnx"
    assert " ".join(gguf.command[1:]) == (
        f"ship {graph} --to gguf {folder}/tiny-attn2~linear.q8_0.gguf --type q8_0"
    )
    assert " ".join(hf.command[1:]) == f"ship {graph} --to hf {folder}/hf --force"
    assert gguf.outputs == (Path(f"{folder}/tiny-attn2~linear.q8_0.gguf"),)
    assert hf.outputs == (Path(f"{folder}/hf/config.json"),)


def test_what_is_measured_on_engines_is_shipped_from_its_checked_graph(workdir: Path) -> None:
    text = GRID.replace('"check",', '"check", "build",')
    text = text.replace("[score]", 'precisions = ["fp16"]\nmeasure = "engines"\nship = ["hf"]\n[score]')
    _, plan = planned(known(text))
    job = next(job for job in plan.jobs if job.id == "tiny.attn2.fp16.ship.hf")
    assert job.needs == ("tiny.attn2.fp16.check",) and job.inputs == (Path("graphs/tiny/attn2.fp16.onnx"),)
    unchecked = text.replace('"check", ', "")
    _, plan = planned(known(unchecked))
    job = next(job for job in plan.jobs if job.id == "tiny.attn2.fp16.ship.hf")
    assert job.needs == ("tiny.attn2.fp16.export",) and job.command[-1] == "--unchecked"
