"""`--dry-run`: the commands, what is known and what is not, and the sums."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import store
from pipeline.sweep import sweep
from tests.grids import GRID, known, put


def test_a_dry_run_says_what_is_known_and_what_is_not(workdir: Path) -> None:
    text = GRID.replace('"last-but-final"', '"cosine", "angular"').replace('"smoke"]', '"smoke", "arc"]')
    overview = sweep.dry_run(known(text))
    words = overview.text()
    assert "pipeline export org/tiny --skip base\n" in words
    assert "pipeline export tiny --skip attn2\n" in words
    assert "chosen by cosine once calibrated: tiny attn 30% cosine" in words
    assert "4 cells of the grid not known yet" in words
    assert "angular gives no attn" in words and "pipeline calibrate tiny" in words
    assert "unknown for org/tiny" in words and "unknown for export" in words
    assert "--tasks arc --limit 5" in words and not Path("evals").exists()
    record = json.loads(json.dumps(overview.record()))
    assert record["unmeasured"]["score"] == 10 and len(record["pending"]) == 4
    assert record["jobs"][0]["command"][0] == "pipeline"


def test_without_the_number_of_layers_everything_waits_for_the_export(workdir: Path) -> None:
    words = sweep.dry_run(put(GRID.replace("{model}", "org/new"), "new")).text()
    assert "chosen by last once exported: new attn 30% last" in words


def test_shared_cells_and_cells_that_no_rule_can_fill_are_named(workdir: Path) -> None:
    words = sweep.dry_run(known(GRID.replace("[0.3, 0.6]", "[0.3, 0.33, 1.0]"))).text()
    assert "shared: tiny attn 33% last is attn2, as attn 30% last; run once" in words
    assert "note: tiny attn 100% last-but-final: last-but-final keeps the final layer" in words


def test_a_models_name_with_spaces_is_quoted(workdir: Path) -> None:
    words = sweep.dry_run(known(model="org/my model")).text()
    assert "pipeline export 'org/my model' --skip base\n" in words
    assert "pipeline check 'graphs/my model/attn2.fp32.onnx'\n" in words


def test_time_is_estimated_from_what_jobs_took(workdir: Path) -> None:
    entry = {"stage": "check", "model": "tiny", "task": None, "state": "done", "id": "x"}
    jobs = [{**entry, "seconds": 10.0}, {**entry, "seconds": 20.0}, {**entry, "seconds": None}]
    ledger = {"what": "sweep", "recipe": "other.toml", "recipe_sha256": "0" * 64, "jobs": jobs}
    store.write_json(store.Project().sweep("other") / "ledger.json", ledger)
    store.Project().sweep("broken").mkdir(parents=True)
    (store.Project().sweep("broken") / "ledger.json").write_text("{")
    overview = sweep.dry_run(known())
    checks = sum(job.stage == "check" for job in overview.plan.jobs)
    assert overview.total() == 15.0 * checks and "check" not in overview.unmeasured()
    assert "for what was measured here, and unknown for" in overview.text()


def test_the_disk_is_that_of_checkpoint_and_graphs(workdir: Path) -> None:
    path = known(GRID)
    path.write_text(path.read_text() + "parameters = 1_000_000_000\n")
    overview = sweep.dry_run(path)
    graphs = sum(job.stage == "export" for job in overview.plan.jobs)
    assert overview.disk == 2_000_000_000 + graphs * 300_000 and not overview.unknown


def test_a_config_without_known_sizes_leaves_the_recipes_parameters(workdir: Path) -> None:
    """A GPT-2 that is there names its sizes otherwise; the sums go by the recipe, as the plan does."""
    grid = GRID.partition("[score]")[0].partition("stages")[0]
    path = known(grid + 'precisions = ["fp16"]\nstages = ["export", "build"]\n')
    path.write_text(path.read_text() + "parameters = 1_000_000_000\n")
    store.write_json(Path("graphs/tiny/config.json"), {"model_type": "gpt2", "n_embd": 64, "n_layer": 3})
    store.write_json(Path("graphs/tiny/source.json"), {"kind": "folder", "from": "/models/tiny"})
    overview = sweep.dry_run(path)
    jobs = [job.stage for job in overview.plan.processes]
    assert overview.disk == jobs.count("build") * 2_000_000_000 + jobs.count("export") * 300_000
    assert jobs.count("build") > 1 and not overview.unknown
