from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report import collect, exports
from tests import results

MODEL = "Llama-2-7b-hf"


def test_lm_evals_own_tools_read_the_scores(workdir: Path) -> None:
    from lm_eval.utils import get_latest_filename, get_results_filenames, handle_non_serializable, make_table

    results.small_grid(MODEL)
    written = exports.lm_eval(Path("lm"), collect.collect())
    assert len(written) == 16 and len({path.parent for path in written}) == 16
    one = next(path for path in written if path.parent.name == f"{MODEL}__attn24-31.fp32__arc")
    assert get_results_filenames([str(p) for p in one.parent.iterdir()]) == [str(one)]
    assert get_latest_filename([str(one)]) == str(one)
    record = json.loads(one.read_text())
    assert "|acc_norm|↑  |0.595|±  |  0.01|" in make_table(record)
    assert handle_non_serializable(record)


def test_mlflow_has_parameters_metrics_and_files(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    results.small_grid(MODEL)
    uri = (workdir / "runs").as_uri()
    assert len(exports.mlflow(uri, collect.collect())) == 4
    assert exports.mlflow(uri, collect.collect()) == []  # it is there
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"pipeline/{MODEL}")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    run = runs["attn24-31.fp32"]
    assert run.info.status == "FINISHED"
    parameters = run.data.params
    assert (parameters["model"], parameters["variant"], parameters["precision"]) == (
        MODEL,
        "attn24-31",
        "fp32",
    )
    assert parameters["device"] == f"{results.DEVICE}; {results.DEVICE}, 2 threads"
    metrics = run.data.metrics
    assert metrics["arc.lm-eval/acc_norm"] == 0.595 and metrics["prefill100/saved_percent"] == 8.0
    assert metrics["average/percent"] == pytest.approx(59.5)
    assert "attn24-31.fp32.bench.json" in {f.path for f in client.list_artifacts(run.info.run_id)}
