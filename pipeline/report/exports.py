"""Results for other tools: lm-eval's own folders, and MLflow through its own API."""

from __future__ import annotations

import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.report.collect import collect, slug
from pipeline.report.rows import Artefact
from pipeline.report.tables import average
from pipeline.types import UserError


def lm_eval(folder: Path, models: list[str] | None = None) -> list[Path]:
    """Writes every score under the name that lm-eval's tools look for: <folder>/<model>__<artefact>/results_<when>.json.

    The content is the result as `pipeline score` wrote it, which is lm-eval's form already. Benchmarks of one artefact are told
    apart by the folder's end, as two may have been measured in the same second.
    """
    written = []
    for artefact in collect(models).artefacts:
        for score in artefact.scores:
            record = store.read_json(Path(score.source.path))
            when = datetime.datetime.fromtimestamp(float(record.get("date") or 0), datetime.UTC)
            name = slug(f"{artefact.model}__{artefact.name}__{score.benchmark}".replace("/", "_"))
            path = folder / name / f"results_{when.strftime('%Y-%m-%dT%H-%M-%S.%f')}.json"
            store.write_json(path, record)
            written.append(path)
    return written


def mlflow(uri: str, models: list[str] | None = None) -> list[str]:
    """Logs each artefact as a run of the experiment `pipeline/<model>`: parameters, metrics, the result files. Returns what was logged.

    What is there already, by the digest of all its files, is not logged again.

    Raises:
        UserError: mlflow is not installed.
    """
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError:
        raise UserError(
            "MLFLOW_TRACKING_URI is set, and mlflow is not installed; `pip install 'skip-pipeline[mlflow]'` adds it"
        ) from None
    client, logged = MlflowClient(tracking_uri=uri), []
    for artefact in collect(models).artefacts:
        files = dict.fromkeys(s.source for s in artefact.results)
        if not files:
            continue
        digest = hashlib.sha256("".join(sorted(f.digest for f in files)).encode()).hexdigest()
        name = f"pipeline/{artefact.model}"
        held = client.get_experiment_by_name(name)
        experiment = held.experiment_id if held else client.create_experiment(name)
        if client.search_runs([experiment], f"tags.`pipeline.results` = '{digest}'", max_results=1):
            continue
        run = client.create_run(
            experiment, run_name=artefact.name, tags={"pipeline.results": digest, "pipeline.sha256": artefact.digest}
        )
        for key, value in _parameters(artefact).items():
            client.log_param(run.info.run_id, key, value)
        for key, number in _metrics(artefact).items():
            client.log_metric(run.info.run_id, key, number)
        for source in files:
            client.log_artifact(run.info.run_id, source.path)
        client.set_terminated(run.info.run_id)
        logged.append(f"{name}/{artefact.name}")
    return logged


def _parameters(artefact: Artefact) -> dict[str, Any]:
    devices = dict.fromkeys(one.device for one in artefact.results)
    return {
        "model": artefact.model,
        "variant": artefact.variant,
        "kind": artefact.kind,
        "fraction": artefact.fraction,
        "precision": artefact.precision,
        "runner": artefact.runner,
        "device": "; ".join(devices),
        "check": artefact.check or "not run",
    }


def _metrics(artefact: Artefact) -> dict[str, float]:
    """Metric names hold letters, digits, '_', '-', '.', ' ' and '/' only."""
    made: dict[str, float] = {}
    for s in artefact.scores:
        shots = "" if s.num_fewshot is None else f".{s.num_fewshot}shot"
        name = f"{s.benchmark}.{s.protocol}{shots}" + (f".limit{s.limit}" if s.limit else "")
        made[f"{name}/{s.metric}"] = s.value
        if s.stderr is not None:
            made[f"{name}/{s.metric}_stderr"] = s.stderr
    if mean := average(artefact):
        made["average/percent"] = mean[0]
    for t in artefact.times:
        name = f"{'decode' if t.decode else 'prefill'}{t.length}" + ("" if t.contestant == "artefact" else f".{t.contestant}")
        values = {"p50_ms": t.p50, "p90_ms": t.p90, "p99_ms": t.p99, "saved_percent": t.saved, "ceiling_percent": t.ceiling}
        made |= {f"{name}/{key}": value for key, value in values.items() if value is not None}
    return {re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII): value for key, value in made.items()}
