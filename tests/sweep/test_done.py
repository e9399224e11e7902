"""Whether a job is done is told by digests and settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.calib import adapters, calibrate
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, texts
from pipeline.models.quantisation.names import Quantisation
from pipeline.ship.gguf import ship as gguf
from pipeline.ship.hf import ship as hf
from pipeline.store import records
from pipeline.store.records import CompensationLosses, CompensationSettings, HealLosses, HealSettings
from pipeline.sweep import done
from pipeline.types import SkipSet
from tests import overlays, tiny
from tests.grids import GRID, job_of, known, planned, put

BASE = Path("graphs/tiny/base.fp32.onnx")
NO_DIGEST = "0" * 64


def recipe(*changes: tuple[str, str]) -> Path:
    text = GRID.replace("{model}", "models/tiny")
    for old, new in changes:
        text = text.replace(old, new)
    return put(text)


def cut() -> Path:
    return variants.cut(BASE, SkipSet.parse("attn2"))


def identity(graph: Path) -> dict[str, Any]:
    """What a result on this graph has in it."""
    variant = records.variant_fields(store.variant(graph))
    return {**variant, "artefact": str(graph), "sha256": store.sha256(graph)}


def test_an_export_is_done_by_digest(project: Path) -> None:
    path = recipe()
    base, settings = job_of(path, "export", "base")
    job, _ = job_of(path, "export")
    assert done.is_done(base, settings) and not done.is_done(job, settings)
    cut()
    assert done.is_done(job, settings)
    # Another base: nothing that was cut from the old one is done.
    BASE.write_bytes(BASE.read_bytes() + b"\x00")
    assert not done.is_done(job, settings) and not done.is_done(base, settings)


def test_a_base_with_quantised_weights_is_done_with_the_base_it_was_cut_from(project: Path) -> None:
    path = recipe(("[score]", 'precisions = ["int4-b32-fp32"]\n[score]'))
    base, settings = job_of(path, "export", "base")
    assert not done.is_done(base, settings)
    source = checkpoint.open_checkpoint(BASE.parent)
    graph = export.export(source, "fp32", SkipSet(), Quantisation(4, 32))
    assert base.outputs == (graph,) and done.is_done(base, settings)
    file = store.overlays(graph)[0]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    assert not done.is_done(base, settings)
    file.write_bytes(content)
    assert done.is_done(base, settings)
    BASE.write_bytes(BASE.read_bytes() + b"\x00")
    assert not done.is_done(base, settings)


def test_a_base_of_a_changed_checkpoint_is_not_done(project: Path) -> None:
    base, settings = job_of(recipe(), "export", "base")
    config = Path("graphs/tiny/config.json")
    config.write_text(config.read_text() + "\n")
    assert not done.is_done(base, settings)


def test_a_check_is_done_where_it_passed(project: Path) -> None:
    graph = cut()
    check, settings = job_of(recipe(), "check")
    assert not done.is_done(check, settings)
    tiny.passed(graph)
    assert done.is_done(check, settings)
    failed = records.read(records.CheckRecord, check.outputs[0]).replaced(passed=False)
    store.write_json(check.outputs[0], failed.plain())
    assert not done.is_done(check, settings)


def test_a_score_is_done_for_this_artefact_these_settings_and_these_rows(project: Path) -> None:
    graph = cut()
    rows = Path("benchmarks/rows.jsonl")
    rows.parent.mkdir()
    rows.write_text("{}\n")
    job, settings = job_of(recipe(), "score")
    score = {
        "variant": "attn2",
        "artefact": str(graph),
        "sha256": store.sha256(graph),
        "contents": store.contents(graph),
        "benchmark": "smoke",
        "title": "smoke",
        "metric": "acc",
        "value": 0.5,
        "n": 5,
        "limit": 5,
        "protocol": "lm-eval",
        "checked": True,
    }
    source = {"file": str(rows), "rows": 1, "official_rows": None, "sha256": store.sha256(rows)}
    record = {"data": {"smoke": {"test": source}}, "pipeline": score}
    store.write_json(job.outputs[0], record)
    assert done.is_done(job, settings)
    for change in (
        {"sha256": NO_DIGEST},
        {"contents": NO_DIGEST},
        {"limit": 6},
        {"checked": False},
        {"num_fewshot": 1},
    ):
        store.write_json(job.outputs[0], {**record, "pipeline": {**score, **change}})
        assert not done.is_done(job, settings), change
    store.write_json(job.outputs[0], record)
    rows.write_text("{}\n{}\n")
    assert not done.is_done(job, settings)


def test_a_bench_is_done_for_this_artefact_and_these_settings(project: Path) -> None:
    graph = cut()
    job, settings = job_of(recipe(), "bench")
    conditions = {"decode": False, "sequences": 2, "batch": 1, "threads": 2, "device": "CPU", "checked": True}
    latency = {"total": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "improvement": 0.0, "interval": [0.0, 1.0]}
    row = {"artefact": str(graph), "name": "attn2.fp32", "kind": "artefact", "length": 8, **latency}
    row |= {"above_ceiling": False, "enough_clean": True}
    record = {"what": "bench", **identity(graph), "conditions": conditions, "rows": [row]}
    store.write_json(job.outputs[0], record)
    assert done.is_done(job, settings)
    for change in (
        {"conditions": {**conditions, "sequences": 3}},
        {"conditions": {**conditions, "checked": False}},
        {"rows": []},
        {"rows": [{**row, "kind": "torch"}]},
        {"sha256": NO_DIGEST},
    ):
        store.write_json(job.outputs[0], {**record, **change})
        assert not done.is_done(job, settings), change
    store.write_json(job.outputs[0], record)
    other = job_of(recipe(("[bench]", "[bench]\nthreads = 1")), "bench")
    assert not done.is_done(*other)
    job.outputs[0].write_text("[]")
    assert not done.is_done(job, settings)


def test_statistics_are_done_for_this_text_and_these_settings(project: Path) -> None:
    Path("text é.txt").write_text(texts.text()[:40_000])
    sizes = "\n[calibrate]\nsamples = 2\nlength = 16\n"
    stages = ('"export"', '"calibrate", "export"')
    own = put(GRID.replace("{model}", "models/tiny").replace(*stages) + sizes)
    job, settings = calibration(own)
    assert not done.is_done(job, settings)
    two = calibrate.CalibrationSettings(samples=2, length=16)
    calibrate.calibrate(Path("graphs/tiny"), texts.OWN, two)
    assert done.is_done(job, settings)
    named = put(own.read_text() + 'texts = ["text é.txt"]\n', "named")
    assert not done.is_done(*calibration(named))
    calibrate.calibrate(Path("graphs/tiny"), texts.TextInput((Path("text é.txt"),)), two)
    assert done.is_done(*calibration(named)) and not done.is_done(job, settings)


def calibration(path: Path) -> Any:
    """The job and its recipe."""

    settings, plan = planned(path)
    return next(job for job in plan.jobs if job.stage == "calibrate"), settings


def test_an_engine_is_done_for_its_graph_target_and_ranges(project: Path) -> None:
    path = recipe(('"check",', '"check", "build",'), ("[score]", 'precisions = ["fp16"]\n[score]'))
    graph = variants.cut(
        export.export_base(checkpoint.resolve("models/tiny"), "fp16"), SkipSet.parse("attn2")
    )
    job, settings = job_of(path, "build")
    assert not done.is_done(job, settings)
    engine = job.outputs[0]
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"plan")
    fields = {
        "artefact": "engine",
        **records.variant_fields(store.variant(graph)),
        "folder": store.relative(graph.parent, to=engine),
        "graph": {"file": graph.name, "sha256": store.sha256(graph)},
        "files": [file.plain() for file in store.weights.states(store.weight_paths(graph), full=True)],
        "weights": NO_DIGEST,
        "backend": "tensorrt-rtx",
        "backend_version": "1.7",
        "targets": ["sm80"],
        "ranges": {
            "batch": [1, 1, 8],
            "length": [1, 100, 2048],
            "past": [0, 100, 2048],
            "wanted": [1, 1, 128],
        },
        "stripped": False,
    }
    store.write_sidecar(engine, fields)
    assert done.is_done(job, settings)
    for change in (
        {"targets": ["sm89"]},
        {"stripped": True},
        {"graph": {"file": graph.name, "sha256": NO_DIGEST}},
        {"files": []},
    ):
        store.write_sidecar(engine, {**fields, **change})
        assert not done.is_done(job, settings), change


def test_an_adapter_is_done_for_its_variant_settings_and_text(project: Path) -> None:
    graph = cut()
    job, settings = job_of(recipe(('"check",', '"check", "heal",')), "heal")
    assert job.outputs[0].name == adapters.RECORD and not done.is_done(job, settings)
    job.outputs[0].parent.mkdir(parents=True)
    weights = job.outputs[0].with_name("adapter_model.safetensors")
    weights.write_bytes(b"x")
    trained = records.AdapterRecord(
        model="tiny",
        variant="attn2",
        weights=checkpoint.open_checkpoint(graph.parent).identity,
        contents=checkpoint.open_checkpoint(graph.parent).contents,
        settings=HealSettings(),
        texts=records.TextSource(origin=texts.OWN_NAME),
        held_out_loss=HealLosses(base=1.0, before=3.0, after=2.0),
        healed_share=0.5,
        sha256=store.sha256(weights),
    )
    store.write_json(job.outputs[0], trained.plain())
    assert done.is_done(job, settings)
    for change in (
        {"settings": HealSettings(steps=61)},
        {"settings": HealSettings(precision="bf16")},
        {"device": "cuda"},
    ):
        store.write_json(job.outputs[0], trained.replaced(**change).plain())
        assert not done.is_done(job, settings), change
    store.write_json(job.outputs[0], trained.plain())
    weights.write_bytes(b"y")
    assert not done.is_done(job, settings)


def test_a_compensation_is_done_for_its_settings_its_text_and_the_graph_that_reads_it(project: Path) -> None:
    bare = cut()
    job, settings = job_of(
        recipe(("[score]", 'compensate = { forms = ["linear"], samples = 5 }\n[score]')),
        "compensate",
        "attn2~linear",
    )
    path, overlay = job.outputs
    assert not done.is_done(job, settings)
    overlays.make(bare.parent, store.variant(bare).skip)
    of = checkpoint.open_checkpoint(bare.parent)
    record = records.CompensationRecord(
        model="tiny",
        variant="attn2",
        weights=of.identity,
        contents=of.contents,
        settings=CompensationSettings(form="linear", samples=5),
        texts=records.TextSource(origin=texts.OWN_NAME),
        losses=CompensationLosses(base=1.0, none=3.0, compensated=2.0),
        regained_share=0.5,
        parameters=1,
        maps=(),
        sha256=store.sha256(overlay),
    )
    sidecar = store.sidecar_path(overlay)
    store.write_json(sidecar, record.plain())
    assert not done.is_done(job, settings)  # no graph yet
    base = bare.with_name("base.fp32.onnx")
    assert variants.compensate(base, store.variant(bare).skip, overlay, "linear") == path
    assert done.is_done(job, settings)
    for change in (
        {"settings": CompensationSettings(form="linear")},
        {"texts": records.TextSource(origin=("a.txt",))},
        {"sha256": NO_DIGEST},
        {"contents": NO_DIGEST},
        {"device": "cuda"},
    ):
        store.write_json(sidecar, record.replaced(**change).plain())
        assert not done.is_done(job, settings), change
    store.write_json(sidecar, record.plain())
    overlays.make(bare.parent, store.variant(bare).skip, seed=1)  # another overlay than the graph's
    store.write_json(sidecar, record.replaced(sha256=store.sha256(overlay)).plain())
    assert not done.is_done(job, settings)


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_what_is_shipped_is_done_for_its_graph_and_type(form: str, project: Path) -> None:
    kind = ', type = "f16"' if form == "gguf" else ""
    table = f'ship = {{ to = ["{form}"], force = true{kind} }}\n[score]'
    settings_file = recipe(("[score]", table))
    cut()
    job, settings = job_of(settings_file, "ship", "base")
    graph, place = job.inputs[0], job.outputs[0] if form == "gguf" else job.outputs[0].parent
    assert not done.is_done(job, settings)
    if form == "gguf":
        gguf.ship(graph, place, "f16", unchecked=True)
    else:
        hf.ship(graph, place, unchecked=True)
    assert done.is_done(job, settings)
    other, _ = job_of(settings_file, "ship")  # of attn2, in whose place the base's lies
    place = other.outputs[0] if form == "gguf" else other.outputs[0].parent
    place.parent.mkdir(parents=True)
    shutil.copytree(job.outputs[0].parent, place) if form == "hf" else shutil.copy(job.outputs[0], place)
    assert not done.is_done(other, settings)
    if form == "gguf":
        job, settings = job_of(recipe(("[score]", table.replace("f16", "q8_0"))), "ship", "base")
        job.outputs[0].write_bytes(Path(str(job.outputs[0]).replace("q8_0", "f16")).read_bytes())
        assert not done.is_done(job, settings)  # f16 under another name


def test_a_choice_is_done_for_its_kind_and_rule(workdir: Path) -> None:

    path = known(GRID.replace('"last", "last-but-final"', '"greedy"').replace("[0.3, 0.6]", "[0.3]"))
    settings, plan = planned(path)
    job = next(job for job in plan.jobs if job.stage == "select")
    choice = {"kind": "attn", "select": "greedy", "skip": "attn2", "attention": [2], "mlp": [], "count": 1}
    store.write_json(job.outputs[0], choice)
    assert done.is_done(job, settings)
    store.write_json(job.outputs[0], {**choice, "kind": "mlp"})
    assert not done.is_done(job, settings)
