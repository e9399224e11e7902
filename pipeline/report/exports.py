"""Results for other tools: lm-eval's own folders, and MLflow through its own API."""

from __future__ import annotations

import datetime
import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.report.quality import average
from pipeline.report.rows import ArtefactResults, Collection, SourcedLatency, SourcedScore
from pipeline.report.sources import slug
from pipeline.types import UserError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient


def lm_eval(folder: Path, collection: Collection) -> list[Path]:
    """Writes every score under the name that lm-eval's tools look for.

    The name is <folder>/<model>__<artefact>__<benchmark>/results_<when>.json. The benchmark is in it because
    two may have been measured in the same second. The content is the result as `pipeline score` wrote it,
    which is lm-eval's form already.
    """
    written = []
    for artefact in collection.artefacts:
        for one in artefact.scores:
            when = datetime.datetime.fromtimestamp(one.record.date, datetime.UTC)
            name = slug(f"{artefact.model}__{artefact.name}__{one.score.benchmark}".replace("/", "_"))
            path = folder / name / f"results_{when.strftime('%Y-%m-%dT%H-%M-%S.%f')}.json"
            with store.atomic(path) as temporary:
                shutil.copyfile(one.source.path, temporary)
            written.append(path)
    return written


def mlflow(uri: str, collection: Collection) -> list[str]:
    """Logs each artefact as a run of the experiment `pipeline/<model>`: parameters, metrics, result files.

    What is there already, by the digest of all its files, is not logged again.

    Returns:
        Names of what was logged.

    Raises:
        UserError: mlflow is not installed, or its store refuses.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError:
        raise UserError(
            "MLFLOW_TRACKING_URI is set, and mlflow is not installed; "
            "`pip install 'skip-pipeline[mlflow]'` adds it"
        ) from None
    try:
        client = MlflowClient(tracking_uri=uri)
        return [name for artefact in collection.artefacts if (name := _log(client, artefact))]
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} refuses: {first_line(error)}") from None


def _log(client: MlflowClient, artefact: ArtefactResults) -> str | None:
    """Logs one artefact; None where it has no results, or they are there already."""
    files = dict.fromkeys(one.source for one in artefact.results)
    if not files:
        return None
    digest = hashlib.sha256("".join(sorted(file.sha256 for file in files)).encode()).hexdigest()
    name = f"pipeline/{artefact.model}"
    existing = client.get_experiment_by_name(name)
    experiment = existing.experiment_id if existing else client.create_experiment(name)
    finished = f"tags.`pipeline.results` = '{digest}' and attributes.status = 'FINISHED'"
    if client.search_runs([experiment], finished, max_results=1):
        return None
    tags = {"pipeline.results": digest, "pipeline.sha256": artefact.sha256}
    run = client.create_run(experiment, run_name=artefact.name, tags=tags).info.run_id
    for key, value in _parameters(artefact).items():
        client.log_param(run, key, value)
    for key, number in _metrics(artefact).items():
        client.log_metric(run, key, number)
    for source in files:
        client.log_artifact(run, str(source.path))
    client.set_terminated(run)
    return f"{name}/{artefact.name}"


def _parameters(artefact: ArtefactResults) -> dict[str, str | float | None]:
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


def _metrics(artefact: ArtefactResults) -> dict[str, float]:
    """Metric names hold letters, digits, '_', '-', '.', ' ' and '/' only."""
    metrics: dict[str, float] = {}
    for score in artefact.scores:
        metrics |= _score_metrics(score)
    if mean := average(artefact):
        metrics["average/percent"] = mean.percent
    for latency in artefact.latencies:
        metrics |= _latency_metrics(latency)
    return {re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII): value for key, value in metrics.items()}


def _score_metrics(one: SourcedScore) -> dict[str, float]:
    score = one.score
    shots = "" if score.num_fewshot is None else f".{score.num_fewshot}shot"
    limit = f".limit{score.limit}" if score.limit else ""
    name = f"{score.benchmark}.{score.protocol}{shots}{limit}/{score.metric}"
    metrics = {name: score.value}
    if score.stderr is not None:
        metrics[f"{name}_stderr"] = score.stderr
    return metrics


def _latency_metrics(one: SourcedLatency) -> dict[str, float]:
    row = one.record
    name = one.workload.replace(" ", "") + ("" if row.kind == "artefact" else f".{row.kind}")
    values = {
        "p50_ms": row.p50,
        "p90_ms": row.p90,
        "p99_ms": row.p99,
        "saved_percent": row.improvement,
        "ceiling_percent": row.ceiling,
        "saved_of_plain_base_percent": row.over_plain.improvement if row.over_plain else None,
    }
    return {f"{name}/{key}": value for key, value in values.items() if value is not None}
