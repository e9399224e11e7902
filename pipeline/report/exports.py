"""Results for other tools: lm-eval's own folders, and MLflow through its own API."""

from __future__ import annotations

import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.report.collect import slug
from pipeline.report.rows import Artefact, Findings
from pipeline.report.tables import average
from pipeline.types import UserError


def lm_eval(folder: Path, found: Findings) -> list[Path]:
    """Writes every score under the name that lm-eval's tools look for: <folder>/<model>__<artefact>/results_<when>.json.

    The content is the result as `pipeline score` wrote it, which is lm-eval's form already. Benchmarks of one artefact are told
    apart by the folder's end, as two may have been measured in the same second.
    """
    written = []
    for artefact in found.artefacts:
        for score in artefact.scores:
            record = store.read_json(Path(score.source.path))
            when = datetime.datetime.fromtimestamp(float(record.get("date") or 0), datetime.UTC)
            name = slug(f"{artefact.model}__{artefact.name}__{score.benchmark}".replace("/", "_"))
            path = folder / name / f"results_{when.strftime('%Y-%m-%dT%H-%M-%S.%f')}.json"
            store.write_json(path, record)
            written.append(path)
    return written


def mlflow(uri: str, found: Findings) -> list[str]:
    """Logs each artefact as a run of the experiment `pipeline/<model>`: parameters, metrics, the result files. Returns what was logged.

    What is there already, by the digest of all its files, is not logged again.

    Raises:
        UserError: mlflow is not installed, or its store refuses.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError:
        raise UserError(
            "MLFLOW_TRACKING_URI is set, and mlflow is not installed; `pip install 'skip-pipeline[mlflow]'` adds it"
        ) from None
    try:
        client = MlflowClient(tracking_uri=uri)
        return [name for artefact in found.artefacts if (name := _log(client, artefact))]
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} refuses: {str(error)[:300]}") from None


def _log(client: Any, artefact: Artefact) -> str | None:
    """Logs one artefact; None where it has no results, or they are there already."""
    files = dict.fromkeys(one.source for one in artefact.results)
    if not files:
        return None
    digest = hashlib.sha256("".join(sorted(f.digest for f in files)).encode()).hexdigest()
    name = f"pipeline/{artefact.model}"
    held = client.get_experiment_by_name(name)
    experiment = held.experiment_id if held else client.create_experiment(name)
    finished = f"tags.`pipeline.results` = '{digest}' and attributes.status = 'FINISHED'"
    if client.search_runs([experiment], finished, max_results=1):
        return None
    tags = {"pipeline.results": digest, "pipeline.sha256": artefact.digest}
    run = client.create_run(experiment, run_name=artefact.name, tags=tags).info.run_id
    for key, value in _parameters(artefact).items():
        client.log_param(run, key, value)
    for key, number in _metrics(artefact).items():
        client.log_metric(run, key, number)
    for source in files:
        client.log_artifact(run, source.path)
    client.set_terminated(run)
    return f"{name}/{artefact.name}"


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
        name = t.what.replace(" ", "") + ("" if t.contestant == "artefact" else f".{t.contestant}")
        values = {
            "p50_ms": t.p50,
            "p90_ms": t.p90,
            "p99_ms": t.p99,
            "saved_percent": t.saved,
            "ceiling_percent": t.ceiling,
        }
        made |= {f"{name}/{key}": value for key, value in values.items() if value is not None}
    return {re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII): value for key, value in made.items()}
