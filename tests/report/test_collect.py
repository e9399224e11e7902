"""Result files are read strictly; what is wrong with one is said, and the others are used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.report import collect, report
from pipeline.store import Project
from pipeline.types import UserError
from tests import results, tiny

MODEL = "SmolLM2-135M-Instruct"


def test_broken_files_are_named_and_the_rest_is_used(workdir: Path) -> None:
    results.small_grid(MODEL)
    folder = Path("evals/results") / MODEL
    (folder / "cut.json").write_text('{"what": "bench"')
    (folder / "deep.json").write_text("[" * 5000)
    (folder / "latin.json").write_bytes('{"what": "é"}'.encode("latin-1"))
    os.mkfifo(folder / "pipe.json")
    results.put(folder / "other.json", {"what": "else"})
    results.put(folder / "list.json", [1])
    record = json.loads((folder / "base.fp32.score.arc.json").read_text())
    record["pipeline"]["value"] = float("nan")
    results.put(folder / "nan.json", record)
    results.put(folder / "lacking.json", {"what": "check", "model": "x"})
    collection = collect.collect()
    reasons = {Path(name).name: reason for name, reason in collection.problems}
    names = ("cut", "deep", "latin", "pipe", "other", "list", "nan", "lacking")
    assert set(reasons) == {f"{name}.json" for name in names}
    assert (
        reasons["nan.json"]
        == "is not a valid record at 'score.pipeline.value': Input should be a finite number"
    )
    assert reasons["lacking.json"] == "is not a valid record at 'check.variant': missing"
    assert reasons["other.json"] == reasons["list.json"]
    assert "no result of `check`, `bench` or `score`" in reasons["other.json"]
    assert reasons["pipe.json"] == "is not a regular file"
    assert len(collection.artefacts) == 4 and len(collection.sources) == 4 * 6
    report.write(Path("out"), collection)
    assert "Input should be a finite number" in Path("out/index.html").read_text()


def test_results_of_another_file_of_that_name_are_not_mixed(workdir: Path) -> None:
    results.small_grid(MODEL)
    path = results.bench(MODEL, "attn24-31", 9.0)
    results.put(path, {**json.loads(path.read_text()), "sha256": "f" * 64})
    variants = [a for a in collect.collect().artefacts if a.variant == "attn24-31"]
    assert sorted((bool(a.scores), bool(a.latencies)) for a in variants) == [(False, True), (True, False)]


def test_only_the_models_that_were_named(workdir: Path) -> None:
    results.small_grid(MODEL)
    results.small_grid("other")
    results.ledger([results.job("score", MODEL, "failed"), results.job("score", "other", "failed")])
    collection = collect.collect(["other"])
    assert collection.models() == ["other"] and [job.record.model for job in collection.jobs] == ["other"]
    with pytest.raises(UserError, match="nothing has been measured of third"):
        collect.collect(["third"])


def test_nothing_measured_is_said(workdir: Path) -> None:
    with pytest.raises(UserError, match="`pipeline bench`, `pipeline score`"):
        collect.collect()
    assert collect.gather().models() == []


def test_another_project_than_the_current_directory(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, elsewhere = workdir / "my project é", workdir / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    results.small_grid("m é")
    results.statistics("m é", 5)
    results.put(Path("evals/results/m é/list.json"), [1])
    here = collect.collect()
    monkeypatch.chdir(elsewhere)
    there = collect.collect(project=Project(project))
    assert [a.num_layers for a in there.artefacts] == [results.LAYERS] * 4
    assert [s.copy for s in there.sources] == [s.copy for s in here.sources]
    assert there.problems == here.problems and there.problems[0].name == "evals/results/m é/list.json"
    assert there.statistics[0].similarity is not None and there.statistics[0].gap is None
    report.write(Path("out"), there)
    assert all((Path("out") / source.copy).is_file() for source in there.sources)


def test_an_engine_that_did_not_run(workdir: Path) -> None:
    plan = results.engine("m", "block28-31")
    (one,) = collect.collect().artefacts
    assert (one.name, one.precision) == ("block28-31/tensorrt-rtx-sm89-fp16", "fp16")
    assert one.unproven == "needs a GPU: parsed and built on a CPU; not run"
    plan.unlink()
    assert collect.gather().artefacts == []


def test_statistics_whose_arrays_are_not_their_own_are_a_gap(workdir: Path) -> None:
    results.statistics("m", 5)
    Path("calib/m/similarity.npz").write_bytes(b"cut")
    (one,) = collect.collect().statistics
    assert one.similarity is None and "measure again with `pipeline calibrate m`" in str(one.gap)
    assert len(one.record.cosine_mlp) == 5


def test_layers_are_known_from_the_config_or_from_the_paper(workdir: Path) -> None:
    for model in ("a", "Llama-2-13b-hf", "unknown"):
        results.check(model, "base")
    results.config("a", 7)
    layers = {a.model: a.num_layers for a in collect.collect().artefacts}
    assert layers == {"a": 7, "Llama-2-13b-hf": 40, "unknown": None}


def test_files_of_version_0_1_are_read(workdir: Path) -> None:
    """Their paths begin at the project's folder, and some keys were not there yet."""
    about = {
        "model": "m",
        "variant": "attn1",
        "skip": {"attention": [1], "mlp": []},
        "precision": "fp32",
        "adapter": None,
        "artefact": "graphs/m/attn1.fp32.onnx",
        "sha256": "a" * 64,
    }
    row = {
        "artefact": about["artefact"],
        "name": "attn1.fp32",
        "kind": "artefact",
        "length": 50,
        "total": 1,
        "p50": 10.0,
        "p90": 11.0,
        "p99": 12.0,
        "improvement": 8.0,
        "interval": [7.0, 9.0],
        "above_ceiling": False,
        "enough_clean": True,
    }
    how = {"decode": False, "sequences": 100, "batch": 1, "threads": 2, "device": "a CPU", "checked": True}
    folder = Path("evals/results/m")
    bench = {"what": "bench", **about, "conditions": how, "rows": [row]}
    results.put(folder / "attn1.fp32.bench.json", bench)
    results.put(folder / "attn1.fp32.check.json", {"what": "check", **about, "passed": False})
    (one,) = collect.collect().artefacts
    assert one.check == "failed: no reason is written" and one.runner == "graph"
    assert one.latencies[0].record.p50 == 10 and one.latencies[0].device == "a CPU, 2 threads"


@pytest.mark.slow
def test_what_the_stages_write_is_what_the_report_reads(workdir: Path) -> None:
    """check, score and bench of a real (tiny) model, unedited."""
    from pipeline.evals.bench import bench
    from pipeline.evals.check import check
    from pipeline.evals.score import score
    from pipeline.graphs import export, variants
    from pipeline.models import checkpoint
    from pipeline.types import SkipSet

    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=4))
    base = export.export_base(checkpoint.resolve("models/tiny"))
    graphs = [base, variants.cut(base, SkipSet.parse("block3"))]
    for graph in graphs:
        assert check.check(graph).passed
    scores = score.score(graphs, ["smoke-loss"], score.ScoreSettings(limit=4))
    timed = bench.bench(graphs, bench.BenchSettings(sequences=3, lengths=(8,), threads=1))
    collection = collect.collect()
    assert collection.problems == [] and [a.variant for a in collection.artefacts] == ["base", "block3"]
    block = collection.artefacts[1]
    assert block.check == "passed" and block.fraction == 0.25
    assert block.scores[0].score.value == scores[1].value and block.scores[0].device != "unknown"
    row = next(row for row in timed.rows if row.name.startswith("block3"))
    assert (block.latencies[0].record.p50, block.latencies[0].record.improvement) == (
        row.p50,
        row.improvement,
    )
    report.write(Path("out"), collection)


def test_results_on_cuda_are_of_another_runner(workdir: Path) -> None:
    """A failure there does not hide behind what passed on the CPU, nor a time there among the CPU's."""
    results.small_grid(MODEL)
    for file in (results.check(MODEL, "base"), results.bench(MODEL, "base", 0.0)):
        record = json.loads(file.read_text())
        on_cuda = file.with_suffix(".cuda.json")
        if record["what"] == "check":
            results.put(on_cuda, {**record, "provider": "cuda", "passed": False, "failures": ["wrong"]})
        else:
            conditions = {**record["conditions"], "provider": "cuda", "device": "NVIDIA X"}
            results.put(on_cuda, {**record, "conditions": conditions})
    file = Path("evals/results") / MODEL / "base.fp32.score.arc.json"
    record = json.loads(file.read_text())
    record["pipeline"]["provider"] = "cuda"
    results.put(file.with_suffix(".cuda.json"), record)
    graph, cuda = (a for a in collect.collect().artefacts if a.variant == "base")
    assert (graph.runner, graph.check) == ("graph", "passed")
    assert (cuda.runner, cuda.name, cuda.check) == (
        "onnxruntime-cuda-fp32",
        "base/onnxruntime-cuda-fp32",
        "failed: wrong",
    )
    assert {one.conditions.device for one in graph.latencies} == {results.DEVICE}
    assert {one.conditions.device for one in cuda.latencies} == {"NVIDIA X"}
    assert [one.score.provider for one in cuda.scores] == ["cuda"]


def test_quantised_variants_are_others(workdir: Path) -> None:
    """By their results' own words, and by the names of artefacts that scores are of."""
    for precision in ("fp32", "int4-fp32", "int8-b32-fp32", "int4-fp16"):
        results.check("m", "base", precision=precision)
        results.score("m", "base", "arc_challenge", 0.5, precision=precision)
    artefacts = collect.collect().artefacts
    assert {one.precision: (one.name, one.quantisation, one.mended) for one in artefacts} == {
        "fp32": ("base.fp32", "", ""),
        "int4-fp32": ("base.int4-fp32", "int4", "int4"),
        "int8-b32-fp32": ("base.int8-b32-fp32", "int8-b32", "int8-b32"),
        "int4-fp16": ("base.int4-fp16", "int4", "int4"),
    }
    assert all(one.check == "passed" and len(one.scores) == 1 for one in artefacts)
