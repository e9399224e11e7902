"""Result files → rows. Nothing is looked up elsewhere: what a file does not say is not known."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.calib import similarity
from pipeline.report import papers
from pipeline.report.rows import Artefact, Findings, Job, Scored, Source, Statistics, Timed
from pipeline.types import PRECISIONS, SkipSet, UserError, count_of

NO_NUMBER = "has {} where a number is due"


def collect(models: list[str] | None = None) -> Findings:
    """Reads every result, ledger and statistic of the project; a file that cannot be read is kept as a problem.

    Args:
        models: only these; all by default.

    Raises:
        UserError: nothing is there, or nothing of a model that was named.
    """
    found, held, inputs = Findings(), dict[tuple[str, ...], Artefact](), store.report_inputs()
    layers = _Layers()
    for path in inputs["results"]:
        _reading(
            found,
            path,
            path.parent.name,
            lambda record, source: _result(record, source, held, layers),
            models,
        )
    for path in (path for path in inputs["engines"] if path.with_suffix(".plan").is_file()):
        _reading(
            found,
            path,
            path.parent.parent.name,
            lambda record, source: _engine(record, source, held, layers),
            models,
        )
    found.artefacts = sorted(
        held.values(),
        key=lambda a: (a.model, a.variant != "base", a.variant, a.precision, a.runner, a.digest),
    )
    for path in inputs["ledgers"]:
        _reading(
            found,
            path,
            "sweeps",
            lambda record, source: found.jobs.extend(_jobs(record, source, models)),
            None,
        )
    for path in inputs["statistics"]:
        _reading(
            found,
            path,
            path.parent.name,
            lambda record, source: found.statistics.append(_statistics(record, source)),
            models,
        )
    _select(found, layers)
    if missing := sorted(set(models or ()) - set(found.models())):
        raise UserError(
            f"nothing has been measured of {', '.join(missing)}; `pipeline report` without --model takes all there is"
        )
    if not found.models():
        raise UserError(
            "no results under evals/results; measure something first: `pipeline bench`, `pipeline score`"
        )
    return found


def _reading(
    found: Findings,
    path: Path,
    model: str,
    take: Callable[[dict[str, Any], Source], None],
    models: list[str] | None,
) -> None:
    """Reads one JSON file and hands it on; what is wrong with it becomes a problem with its path."""
    if models is not None and model not in models:
        return
    try:
        data = path.read_bytes()
        record = json.loads(data)
        if not isinstance(record, dict):
            raise UserError("is no JSON object")
        copy = "/".join(("sources", *map(slug, path.parts)))
        source = Source(path.as_posix(), copy, hashlib.sha256(data).hexdigest())
        take(record, source)
        found.sources.append(source)
    except KeyError as error:
        found.problems.append((path.as_posix(), f"lacks {error}"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        found.problems.append((path.as_posix(), str(error) or type(error).__name__))


def slug(name: str) -> str:
    """A name as a file name; one that had to be changed gets a digest, so that two never meet."""
    plain = re.sub(r"[^\w.+~@=-]", "-", name, flags=re.ASCII).lstrip(".")[:120] or "unnamed"
    return plain if plain == name else f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{plain}"


class _Layers:
    """How many layers a model has: of its config.json, else of the papers' table of models."""

    def __init__(self) -> None:
        self.known: dict[str, int | None] = {}

    def of(self, model: str) -> int | None:
        if model not in self.known:
            self.known[model] = self._read(model)
        return self.known[model]

    def _read(self, model: str) -> int | None:
        try:
            layers = store.read_json(store.graphs_dir(model) / "config.json")["num_hidden_layers"]
            return int(layers)
        except (UserError, KeyError, TypeError, ValueError):
            return papers.layers(model)


# ---- results --------------------------------------------------------------------------------------------------------


def _result(
    record: dict[str, Any], source: Source, held: dict[tuple[str, ...], Artefact], layers: _Layers
) -> None:
    if record.get("what") == "bench":
        artefact = _artefact(record, held, layers)
        artefact.times += list(_times(record, source))
    elif record.get("what") == "check":
        artefact = _artefact(record, held, layers)
        failures = record.get("failures") or ["no reason is written"]
        artefact.check = (
            "passed" if record["passed"] is True else f"failed: {'; '.join(map(str, failures))[:200]}"
        )
        artefact.checked_in = source
    elif isinstance(record.get("pipeline"), dict):
        made = record["pipeline"]
        path = Path(made["artefact"])
        named = {
            "model": Path(source.path).parent.name,
            "variant": made["variant"],
            "sha256": made["sha256"],
            "artefact": str(path),
        }
        artefact = _artefact({**named, "precision": _precision(path)}, held, layers)
        artefact.scores.append(_score(record, source))
    else:
        raise UserError("is no result of `check`, `bench` or `score`")


def _precision(path: Path) -> str:
    parts = re.split(r"[.-]", path.stem)
    found = [part for part in parts if part in PRECISIONS]
    if not found:
        raise UserError(f"names an artefact without a precision, {path.name}")
    return found[-1]


def _artefact(record: dict[str, Any], held: dict[tuple[str, ...], Artefact], layers: _Layers) -> Artefact:
    """The artefact that a result is of; made on first sight."""
    model, variant, digest = str(record["model"]), str(record["variant"]), str(record["sha256"])
    path = Path(str(record["artefact"]))
    runner = "graph" if path.suffix == ".onnx" else path.stem
    key = (model, variant, str(record["precision"]), runner, digest)
    if key not in held:
        name, _, adapter = variant.partition("~")
        held[key] = Artefact(
            model, variant, SkipSet.parse(name), key[2], adapter or None, runner, digest, layers.of(model)
        )
    return held[key]


def _score(record: dict[str, Any], source: Source) -> Scored:
    made, config = record["pipeline"], record.get("config", {})
    value = number(made["value"])
    if value is None:
        raise UserError(NO_NUMBER.format(made["value"]))
    versions = {"lm_eval": record.get("lm_eval_version")} | dict(record.get("versions", {}))
    return Scored(
        benchmark=str(made["benchmark"]), title=str(made["title"]), metric=str(made["metric"]), value=value,
        stderr=number(made.get("stderr")), n=int(made["n"]), limit=made.get("limit"), num_fewshot=made.get("num_fewshot"),
        protocol=str(made["protocol"]), complete=made.get("complete"), shots=made.get("shots"), checked=made["checked"] is True,
        device=str(config.get("device", "not told")), versions=_versions({k: v for k, v in versions.items() if v is not None}),
        source=source,
    )  # fmt: skip


def _times(record: dict[str, Any], source: Source) -> Iterator[Timed]:
    how = record["conditions"]
    for row in record["rows"]:
        needed = {name: number(row[name]) for name in ("total", "p50", "p90", "p99", "improvement")}
        low, high = (number(edge) for edge in row["interval"])
        if low is None or high is None or None in needed.values():
            raise UserError(NO_NUMBER.format(f"a row of {row.get('name')!r}"))
        sure = {name: value for name, value in needed.items() if value is not None}
        yield Timed(
            contestant=str(row["kind"]), length=int(row["length"]), decode=how["decode"] is True, total=sure["total"],
            sequences=int(how["sequences"]), batch=int(how["batch"]), p50=sure["p50"], p90=sure["p90"], p99=sure["p99"],
            saved=sure["improvement"], interval=(low, high), ceiling=number(row.get("ceiling")),
            above_ceiling=row.get("above_ceiling") is True, enough_clean=row.get("enough_clean") is True,
            checked=how["checked"] is True, peak_mb=number(row.get("peak_mb")), weight_mb=number(row.get("weight_mb")),
            cache_bytes=number(row.get("cache_bytes_per_token")), device=f"{how['device']}, {how['threads']} threads",
            versions=_versions(how.get("versions", {})), source=source,
        )  # fmt: skip


def _engine(
    record: dict[str, Any], source: Source, held: dict[tuple[str, ...], Artefact], layers: _Layers
) -> None:
    """An engine without a bench result: known to exist, and why it was not run."""
    if "variants" not in record:
        artefact = _artefact(
            {**record, "artefact": source.path.removesuffix(".json") + ".plan"}, held, layers
        )
        artefact.unproven = f"needs a GPU: {record.get('proven', 'not run')}"


def number(value: Any) -> float | None:
    """A finite number, else None."""
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


# ---- sweeps and statistics ------------------------------------------------------------------------------------------


def _jobs(record: dict[str, Any], source: Source, models: list[str] | None) -> list[Job]:
    if record.get("what") != "sweep":
        raise UserError("is no sweep's ledger")
    fields = ("stage", "model", "variant", "kind", "frac", "select", "precision", "task", "state", "error")
    jobs = [Job(**{name: job.get(name) for name in fields}, source=source) for job in record["jobs"]]
    return [job for job in jobs if models is None or job.model in models]


def _statistics(record: dict[str, Any], source: Source) -> Statistics:
    model = Path(source.path).parent.name
    for name in ("cosine_layer", "cosine_attn", "cosine_mlp"):
        if not all(isinstance(value, float) for value in record[name]):
            raise UserError(NO_NUMBER.format(name))
    try:
        told = similarity.read(model, record["weights"])
    except UserError as error:
        return Statistics(model, record, None, str(error), source)
    return Statistics(model, record, told.distances(), None, source)


def _select(found: Findings, layers: _Layers) -> None:
    """Which rules chose each variant: what ledgers say, and the two rules that need nothing but a count."""
    told: dict[tuple[str, str], set[str]] = {}
    for job in found.jobs:
        if job.variant and job.select:
            told.setdefault((job.model, job.variant.partition("~")[0]), set()).add(job.select)
    for artefact in found.artefacts:
        name = artefact.variant.partition("~")[0]
        artefact.selectors |= told.get((artefact.model, name), set())
        count = max(len(artefact.skip.attention), len(artefact.skip.mlp))
        total = layers.of(artefact.model)
        if total and artefact.kind in ("attn", "mlp", "block"):
            artefact.selectors |= {
                rule
                for rule in ("last", "last-but-final")
                if name == chosen_by(artefact.kind, count, total, rule)
            }


def chosen_by(kind: str, count: int, layers: int, rule: str) -> str | None:
    """The variant's name that `last` or `last-but-final` gives; None where so many cannot go."""
    end = layers - (rule == "last-but-final")
    return SkipSet.of(kind, range(end - count, end)).name if 0 <= count <= end else None


def variant_for(kind: str, frac: float, layers: int, rule: str) -> str | None:
    """The same for a fraction, by the count rule n = ceil(frac · L)."""
    return chosen_by(kind, count_of(frac, layers), layers, rule)
