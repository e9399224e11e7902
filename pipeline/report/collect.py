"""Result files → a `Collection`. Nothing is looked up elsewhere: what no file says is not known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from pipeline.calib import similarity
from pipeline.models.config import read_config
from pipeline.report import papers, present
from pipeline.report.rows import (
    ArtefactResults,
    Collection,
    SourcedLatency,
    SourcedScore,
    SourcedStatistics,
    UnusableFile,
)
from pipeline.report.selection import name_selectors
from pipeline.report.sources import Sourced, SourceFile, shown_path
from pipeline.store import Project, records
from pipeline.store.records import (
    BenchRecord,
    CheckRecord,
    EngineRecord,
    LedgerRecord,
    ScoreRecord,
    SimilarityRecord,
)
from pipeline.types import PRECISIONS, SkipSet, UserError, first_line, split_name

Form = TypeVar("Form")


def collect(models: Sequence[str] | None = None, project: Project | None = None) -> Collection:
    """Reads every result, ledger and statistic of a project; a file that cannot be read becomes a problem.

    Args:
        models: only these; all by default.
        project: the current directory's by default.

    Raises:
        UserError: there is nothing, or nothing of a model that was named.
    """
    collection = gather(models, project)
    if missing := sorted(set(models or ()) - set(collection.models())):
        raise UserError(
            f"nothing has been measured of {', '.join(missing)}; "
            "`pipeline report` without --model takes all there is"
        )
    if not collection.models():
        if problems := collection.problems:
            name, reason = problems[0]
            raise UserError(f"none of {len(problems)} result files can be used; the first, {name}: {reason}")
        raise UserError(
            "no results under evals/results; measure something first: `pipeline bench`, `pipeline score`"
        )
    return collection


def gather(models: Sequence[str] | None = None, project: Project | None = None) -> Collection:
    """As `collect`, but an empty collection where there is nothing."""
    reader = _Reader(project or Project(), models)
    files = reader.project.report_inputs()
    for path in files["results"]:
        reader.read(path, path.parent.name, records.RESULT, reader.result)
    for path in files["engines"]:
        if path.with_suffix(".plan").is_file():
            reader.read(path, path.parent.parent.name, EngineRecord, reader.engine)
    for path in files["ledgers"]:
        reader.read(path, None, LedgerRecord, reader.ledger)
    for path in files["statistics"]:
        reader.read(path, path.parent.name, SimilarityRecord, reader.statistics)
    return reader.collection()


class _Reader:
    """Reads one file after the other into a collection."""

    def __init__(self, project: Project, models: Sequence[str] | None) -> None:
        self.project = project
        self.models = models
        self.artefacts: dict[tuple[str, ...], ArtefactResults] = {}
        self.num_layers: dict[str, int | None] = {}
        self.parts = Collection()

    def read(
        self,
        path: Path,
        model: str | None,
        form: type[Form] | TypeAdapter[Form],
        take: Callable[[Form, SourceFile], None],
    ) -> None:
        """Reads one file, of a wanted model or of none, and hands its record to `take`."""
        if self.models is not None and model is not None and model not in self.models:
            return
        try:
            if not _is_text(path):
                raise UserError("has a name that is no UTF-8; rename it")
            content = records.read_bytes(path)
            source = SourceFile.of(path, content, self.project)
            take(records.parse(form, content, path), source)
            self.parts.sources.append(source)
        except (ValueError, OSError) as error:  # OSError: of a path that the record names
            reason = first_line(" ".join(str(error).removeprefix(f"{path} ").split()), 600)
            self.parts.problems.append(UnusableFile(shown_path(path, self.project), reason))

    def collection(self) -> Collection:
        """All that was read, the artefacts in order."""
        self.parts.artefacts = sorted(
            self.artefacts.values(),
            key=lambda a: (a.model, a.variant != "base", a.variant, a.precision, a.runner, a.sha256),
        )
        name_selectors(self.parts)
        return self.parts

    def result(self, record: CheckRecord | BenchRecord | ScoreRecord, source: SourceFile) -> None:
        """A result of `check`, `bench` or `score`."""
        present.refuse_other(record, source.path)
        path = Path(record.pipeline.artefact if isinstance(record, ScoreRecord) else record.artefact)
        if isinstance(record, ScoreRecord):
            score, model = record.pipeline, source.path.parent.name
            runner = _runner(path, _precision(path), score.provider)
            artefact = self._artefact(model, score.variant, _precision(path), runner, score.sha256)
            artefact.scores.append(SourcedScore(record, source))
            return
        provider = record.conditions.provider if isinstance(record, BenchRecord) else record.provider
        runner = _runner(path, record.precision_name, provider)
        artefact = self._artefact(record.model, record.variant, record.precision_name, runner, record.sha256)
        if isinstance(record, BenchRecord):
            artefact.latencies += [SourcedLatency(row, source, record.conditions) for row in record.rows]
            return
        failures = "; ".join(record.failures or ("no reason is written",))[:200]
        artefact.check = "passed" if record.passed else f"failed: {failures}"
        artefact.check_source = source

    def engine(self, record: EngineRecord, source: SourceFile) -> None:
        """An engine: that it exists, and why it was not run, should it have no latency."""
        if record.variants is None:
            plan = source.path.with_suffix(".plan")
            artefact = self._artefact(
                record.model, record.variant, record.precision_name, plan.stem, record.sha256
            )
            artefact.unproven = f"needs a GPU: {record.proven}"

    def ledger(self, record: LedgerRecord, source: SourceFile) -> None:
        """The jobs of a sweep, of the wanted models."""
        self.parts.jobs += [
            Sourced(job, source) for job in record.jobs if self.models is None or job.model in self.models
        ]

    def statistics(self, record: SimilarityRecord, source: SourceFile) -> None:
        """Similarity statistics, with their arrays where these can be used."""
        model = source.path.parent.name
        try:
            arrays, gap = similarity.read(source.path.parent, record.weights, record.contents), None
        except UserError as error:
            arrays, gap = None, str(error)
        self.parts.statistics.append(SourcedStatistics(record, source, model, arrays, gap))

    def _artefact(
        self, model: str, variant: str, precision: str, runner: str, sha256: str
    ) -> ArtefactResults:
        """The artefact that a result is of; a new one on first sight."""
        key = (model, variant, precision, runner, sha256)
        if key not in self.artefacts:
            name, compensation, adapter = split_name(variant)
            self.artefacts[key] = ArtefactResults(
                model=model,
                variant=variant,
                skip=SkipSet.parse(name),
                precision=precision,
                adapter=adapter,
                compensation=compensation,
                runner=runner,
                sha256=sha256,
                num_layers=self._layers_of(model),
            )
        return self.artefacts[key]

    def _layers_of(self, model: str) -> int | None:
        """How many layers a model has: by its config.json, else by the papers' table of models."""
        if model not in self.num_layers:
            try:
                config = read_config(self.project.graphs(model))
                self.num_layers[model] = int(config["num_hidden_layers"])
            except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
                self.num_layers[model] = papers.layers(model)
        return self.num_layers[model]


def _is_text(path: Path) -> bool:
    """Whether a path can be written into the report: the model's name is in it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _runner(path: Path, precision: str, provider: str | None) -> str:
    """'graph'; an engine's file name; or of a graph on another provider a name of the same form."""
    if path.suffix != ".onnx":
        return path.stem
    return f"onnxruntime-{provider}-{precision}" if provider else "graph"


def _precision(path: Path) -> str:
    """The precision in an artefact's file name: 'base.int4-fp32.onnx', 'tensorrt-sm80-fp16.plan'."""
    parts = re.findall(rf"(?:^|[.-])((?:int\d\S*?-)?(?:{'|'.join(PRECISIONS)}))(?=$|[.-])", path.stem)
    if not parts:
        raise UserError(f"names an artefact without a precision, {path.name}")
    return str(parts[-1])
