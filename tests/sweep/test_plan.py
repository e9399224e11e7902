"""The sweep's recipe, its plan, and what it takes for done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.calib import adapters, calibrate, selectors, similarity
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, texts
from pipeline.sweep import done, plan, recipe, sweep
from pipeline.sweep.jobs import Job
from pipeline.sweep.progress import duration
from pipeline.types import SkipSet, UserError
from tests import tiny
from tests.grids import GRID, known, made, put

RECIPES = Path(__file__).parents[2] / "evals" / "recipes"


# ---- the recipe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('fraction = [0.1]\nmodels = ["demo"]', "unknown key fraction; did you mean fractions?"),
        ('models = ["demo"]\n[bench]\nsequence = 3', "unknown key bench.sequence; did you mean sequences?"),
        ('models = [{ name = "demo", layer = 3 }]', "layer; did you mean layers?"),
        ('models = ["demo"]\nfractions = [1.5]', "fractions.0"),
        ('models = ["demo"]\nkinds = ["layer"]', "'attn', 'mlp' or 'block'"),
        ('models = ["demo"]\nselectors = ["first"]', "no selector 'first'; choose from angular"),
        ('models = ["demo", "org/SmolLM2-135M-Instruct"]', "name each once"),
        ('models = ["demo"]\ntasks = ["smoke"]\nstages = ["export"]', "stages lacks score"),
        ('models = ["demo"]\nstages = ["score"]', "tasks names no benchmark"),
        ('models = ["demo"]\nstages = ["build"]', '"fp16"'),
        ('models = ["demo"]\nstages = ["export"]\nmeasure = "engines"', "needs build"),
        ('models = ["demo"]\nstages = ["export"]\n[score.limits]\nsmoke = 3', "score.limits names smoke"),
        ("models = [", "cannot be read as TOML"),
        ("models = []", "models"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_in_one_line(workdir: Path, change: str, words: str) -> None:
    given = change.split("\n")[0]
    fill = {"kinds": '["attn"]', "fractions": "[0.1]", "selectors": '["last"]', "stages": '["export"]'}
    top = change.split("\n[")[0]
    rest = change[len(top) :]
    lines = [f"{key} = {value}" for key, value in fill.items() if f"\n{key}" not in f"\n{top}"]
    path = put("\n".join([top, *lines]) + rest)
    with pytest.raises(UserError) as error:
        recipe.read(path)
    assert words in str(error.value) and "\n" not in str(error.value).strip(), given
    with pytest.raises(UserError, match="does not exist"):
        recipe.read(Path("missing.toml"))


def test_the_papers_recipes_are_the_papers_grids(workdir: Path) -> None:
    _, tyukin = made(RECIPES / "tyukin.toml")
    chosen = {(job.model, job.variant) for job in tyukin.jobs if job.stage == "select"}
    assert (
        len(chosen) == 2 * 18
        and ("Llama-2-7b-hf", "attn21-31") in chosen
        and ("Llama-2-13b-hf", "block25-38") in chosen
    )
    scores = [job for job in tyukin.jobs if job.stage == "score"]
    assert len(scores) == 2 * 19 * 4 and all(job.inputs[0].suffix == ".plan" and job.gpu for job in scores)
    assert {"--sequences", "1000", "50,100"} <= set(
        next(job for job in tyukin.jobs if job.stage == "bench").command
    )
    read, gromov = made(RECIPES / "gromov.toml")
    assert len(read.models) == 7 and len(gromov.pending) == 7 * 11
    healed = [job for job in gromov.jobs if job.stage == "score" and (job.variant or "").endswith("~heal")]
    assert healed and all("4bit" in job.command for job in gromov.jobs if job.stage == "heal")
    _, demo = made(RECIPES / "demo.toml")
    assert len(demo.pending) == 9 and len({job.variant for job in demo.jobs if job.stage == "export"}) == 19


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_every_job_comes_after_what_it_needs_and_has_one_file_in_and_out(workdir: Path) -> None:
    text = GRID.replace('"check",', '"check", "build", "heal",').replace(
        "[score]", 'precisions = ["fp32", "fp16"]\n[score]'
    )
    _, planned = made(known(text))
    seen: set[str] = set()
    for job in planned.jobs:
        assert set(job.needs) <= seen, job.id
        assert job.id not in seen and (job.inline or job.outputs) and job.command[0] == "pipeline"
        assert job.exclusive == (job.stage == "bench")
        store.plain_name(job.id)
        seen.add(job.id)
    by_id = {job.id: job for job in planned.jobs}
    heal = by_id["tiny.attn2.fp32.heal"]
    assert heal.command[:4] == ("pipeline", "heal", "graphs/tiny/attn2.fp32.onnx", "--steps")
    healed = by_id["tiny.attn2~heal.fp16.export"]
    assert heal.id in healed.needs and healed.command[3:] == (
        "--skip",
        "attn2",
        "--adapter",
        "heal",
        "--precision",
        "fp16",
    )
    assert by_id["tiny.attn2.fp16.build"].outputs == (Path("engines/tiny/attn2/tensorrt-rtx-sm80-fp16.plan"),)
    assert "tiny.base.fp32.check" in by_id["tiny.attn2.fp32.bench"].needs
    assert by_id["tiny.attn2.fp32.score.smoke"].outputs[0].name == "attn2.fp32.score.smoke.limit5.json"


def test_a_variant_that_several_cells_choose_is_run_once(workdir: Path) -> None:
    _, planned = made(known(GRID.replace("[0.3, 0.6]", "[0.3, 0.33, 1.0]")))
    attn = [job for job in planned.jobs if job.stage == "select" and job.cell.kind == "attn"]
    shared = {(job.cell.frac, job.cell.select): job.shared for job in attn}
    assert shared[(0.3, "last")] is None and shared[(0.33, "last")] == "tiny.attn.0.3.last.select"
    assert sum(job.stage == "bench" and job.variant == "attn2" for job in planned.jobs) == 1
    text = sweep.dry_run(Path("grid.toml")).text()
    assert "shared: tiny attn 33% last is attn2, as attn 30% last; run once" in text
    assert "note: tiny attn 100% last-but-final: last-but-final keeps the final layer" in text


def test_a_dry_run_says_what_is_known_and_what_is_not(workdir: Path) -> None:
    path = known(
        GRID.replace('"last-but-final"', '"cosine", "angular"').replace('"smoke"]', '"smoke", "arc"]')
    )
    seen = sweep.dry_run(path)
    text = seen.text()
    assert "pipeline export org/tiny\n" in text and "pipeline export tiny --skip attn2\n" in text
    assert (
        "chosen by cosine once calibrated: tiny attn 30% cosine" in text
        and "4 cells of the grid not known yet" in text
    )
    assert "angular gives no attn" in text and "pipeline calibrate tiny" in text
    assert "unknown for org/tiny" in text and "unknown for export" in text
    assert "--tasks arc --limit 5" in text and not Path("evals").exists()
    record = json.loads(json.dumps(seen.record()))
    assert (
        record["unmeasured"]["score"] == 10
        and len(record["pending"]) == 4
        and record["jobs"][0]["command"][0] == "pipeline"
    )
    path = put(GRID.replace("{model}", "org/new"), "new")
    assert "chosen by last once exported: new attn 30% last" in sweep.dry_run(path).text()


def test_time_is_estimated_from_what_jobs_took(workdir: Path) -> None:
    seen = sweep.dry_run(known())
    entry = {"stage": "check", "model": "tiny", "task": None, "state": "done", "id": "x"}
    jobs = [{**entry, "seconds": 10.0}, {**entry, "seconds": 20.0}, {**entry, "seconds": None}]
    store.write_json(store.Project().sweep("other") / "ledger.json", {"what": "sweep", "jobs": jobs})
    store.Project().sweep("broken").mkdir(parents=True)
    (store.Project().sweep("broken") / "ledger.json").write_text("{")
    seen = sweep.dry_run(known())
    checks = sum(job.stage == "check" for job in seen.plan.jobs)
    assert (
        seen.total() == 15.0 * checks
        and "check" not in seen.unmeasured()
        and "for what was measured here" in seen.text()
    )
    assert [duration(s) for s in (9.6, 200, 7500)] == ["10 s", "3 min 20 s", "2 h 05 min"]


def test_what_a_rule_goes_by_is_found_by_asking_it() -> None:
    assert [reads(name, "block") for name in ("last", "random", "cosine", "angular", "joint", "greedy")] == [
        None, None, "calibrate", "calibrate", "calibrate", "measure",
    ]  # fmt: skip
    with pytest.raises(UserError, match="angular"):
        reads("angular", "attn")


def test_a_rule_that_measures_is_a_job_whose_answer_is_read(workdir: Path) -> None:
    path = known(GRID.replace('"last", "last-but-final"', '"last", "greedy"').replace("[0.3, 0.6]", "[0.3]"))
    _, planned = made(path)
    job = next(job for job in planned.jobs if job.id == "tiny.attn.0.3.greedy.select")
    assert not job.inline and job.stdout == job.outputs[0] and planned.pending[0].id == job.id
    store.write_json(job.outputs[0], {"kind": "attn", "select": "greedy", "skip": "attn2"})
    _, planned = made(path)
    found = next(one for one in planned.jobs if one.id == job.id)
    assert found.variant == "attn2" and [one.cell.kind for one in planned.pending] == ["mlp"]
    assert sum(one.stage == "export" and one.variant == "attn2" for one in planned.jobs) == 1


# ---- what is done ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(workdir: Path) -> Path:
    """A tiny model under models/ and its base graph."""
    folder = workdir / "models" / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    tiny.tokenizer(folder)
    export.export_base(checkpoint.resolve("models/tiny"))
    return folder


def of(path: Path, stage: str, variant: str = "attn2") -> tuple[Job, recipe.Recipe]:
    read, planned = made(path)
    return next(job for job in planned.jobs if job.stage == stage and job.variant == variant), read


def test_exports_and_checks_are_done_by_digest(project: Path) -> None:
    path = put(GRID.replace("{model}", "models/tiny"))
    job, read = of(path, "export", "base")
    assert done.is_done(job, read)
    job, read = of(path, "export")
    assert not done.is_done(job, read)
    graph = variants.cut(Path("graphs/tiny/base.fp32.onnx"), SkipSet.parse("attn2"))
    assert done.is_done(job, read)
    check, _ = of(path, "check")
    assert not done.is_done(check, read)
    store.write_json(check.outputs[0], {"passed": True, "sha256": store.sha256(graph)})
    assert done.is_done(check, read)
    store.write_json(check.outputs[0], {"passed": False, "sha256": store.sha256(graph)})
    assert not done.is_done(check, read)
    base = Path("graphs/tiny/base.fp32.onnx")
    base.write_bytes(
        base.read_bytes() + b"\x00"
    )  # another base: whatever was cut from the old one is not done
    assert not done.is_done(job, read) and not done.is_done(of(path, "export", "base")[0], read)


def test_scores_and_latencies_are_done_for_just_this_artefact_and_these_settings(project: Path) -> None:
    path = put(GRID.replace("{model}", "models/tiny"))
    graph = variants.cut(Path("graphs/tiny/base.fp32.onnx"), SkipSet.parse("attn2"))
    rows = Path("benchmarks/rows.jsonl")
    rows.parent.mkdir()
    rows.write_text("{}\n")
    score, read = of(path, "score")
    source = {"file": str(rows), "sha256": store.sha256(rows)}
    held = {
        "data": {"smoke": {"test": source}},
        "pipeline": {"sha256": store.sha256(graph), "limit": 5, "num_fewshot": None, "checked": True},
    }
    store.write_json(score.outputs[0], held)
    assert done.is_done(score, read)
    for change in ({"sha256": "0"}, {"limit": 6}, {"checked": False}):
        store.write_json(score.outputs[0], {**held, "pipeline": {**held["pipeline"], **change}})
        assert not done.is_done(score, read), change
    store.write_json(score.outputs[0], held)
    rows.write_text("{}\n{}\n")
    assert not done.is_done(score, read)
    bench, _ = of(path, "bench")
    conditions = {"sequences": 2, "batch": 1, "checked": True, "threads": 2}
    record = {
        "sha256": store.sha256(graph),
        "conditions": conditions,
        "rows": [{"length": 8, "kind": "artefact"}],
    }
    store.write_json(bench.outputs[0], record)
    assert done.is_done(bench, read)
    for other in ({"conditions": {**conditions, "sequences": 3}}, {"rows": []}, {"sha256": "0"}):
        store.write_json(bench.outputs[0], {**record, **other})
        assert not done.is_done(bench, read), other
    bench.outputs[0].write_text("[]")
    assert not done.is_done(bench, read)


def test_statistics_make_the_rest_of_the_plan(project: Path) -> None:
    text = GRID.replace("{model}", "models/tiny").replace('"last-but-final"', '"cosine"')
    path = put(text + "[calibrate]\nsamples = 2\nlength = 16\n")
    _, planned = made(path)
    assert len(planned.pending) == 4
    calibrate.calibrate(Path("graphs/tiny"), texts.OWN, samples=2, length=16)
    _, planned = made(path)
    assert not planned.pending
    told = selectors.ModelStatistics(Path("graphs/tiny"))
    wanted = selectors.choose("cosine", selectors.Question("attn", 1, 3, told)).skip.name
    found = {
        job.cell.select: job.variant
        for job in planned.jobs
        if job.stage == "select" and job.cell.frac == 0.3 and job.cell.kind == "attn"
    }
    assert found["cosine"] == wanted
    _, planned = made(put(text + "[calibrate]\nsamples = 3\nlength = 16\n"))
    assert len(planned.pending) == 4  # statistics of other settings are not those that were asked for
    with pytest.raises(UserError, match="has 3 layers, and the recipe says 4"):
        made(put(text.replace('"models/tiny"', '{ name = "models/tiny", layers = 4 }')))


def test_engines_and_adapters_are_done_by_digest(project: Path) -> None:
    text = GRID.replace("{model}", "models/tiny").replace('"check",', '"check", "build", "heal",')
    path = put(text.replace("[score]", 'precisions = ["fp16"]\n[score]'))
    base = export.export_base(checkpoint.resolve("models/tiny"), "fp16")
    graph = variants.cut(base, SkipSet.parse("attn2"))
    build, read = of(path, "build")
    assert not done.is_done(build, read)
    plan_file = build.outputs[0]
    plan_file.parent.mkdir(parents=True)
    plan_file.write_bytes(b"plan")
    ranges = {"batch": [1, 1, 8], "length": [1, 100, 2048], "past": [0, 100, 2048], "wanted": [1, 1, 128]}
    record = {
        "graph": {"file": graph.name, "sha256": store.sha256(graph)},
        "backend": "tensorrt-rtx",
        "targets": ["sm80"],
    }
    store.write_sidecar(plan_file, {**record, "ranges": ranges, "stripped": False})
    assert done.is_done(build, read)
    store.write_sidecar(plan_file, {**record, "targets": ["sm89"], "ranges": ranges, "stripped": False})
    assert not done.is_done(build, read)
    heal, _ = of(path, "heal")
    place = heal.outputs[0].parent
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(b"x")
    settings = {
        **read.heal.model_dump(mode="json", exclude={"name", "texts", "dataset"}),
        "alpha": 64,
        "dropout": 0.05,
    }
    told = {"from": "English text of CPython's pydoc_data.topics"}
    adapter = {
        "variant": "attn2",
        "weights": similarity.identity(checkpoint.open_checkpoint(base.parent)),
        "settings": settings,
        "texts": told,
    }
    store.write_json(
        heal.outputs[0], {**adapter, "sha256": store.sha256(place / "adapter_model.safetensors")}
    )
    assert done.is_done(heal, read) and heal.outputs[0].name == adapters.RECORD
    store.write_json(heal.outputs[0], {**adapter, "settings": {**settings, "steps": 61}, "sha256": "0"})
    assert not done.is_done(heal, read)
