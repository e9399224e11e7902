"""The jobs of one model, stage by stage: their commands, their files, and what they wait for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.calib import adapters, similarity
from pipeline.models import costs
from pipeline.models.config import Config, read_config
from pipeline.models.quantisation.names import requested
from pipeline.store.records import score_key
from pipeline.sweep import commands
from pipeline.sweep.jobs import GridCell, Job
from pipeline.sweep.sections import ModelSection, Recipe
from pipeline.types import BASE, SkipSet, UserError, Variant

Needs = tuple[str, ...]
"""Ids of the jobs that come before."""


@dataclass(frozen=True, slots=True)
class Target:
    """A variant, and the first cell of the grid that wants it."""

    variant: Variant
    cell: GridCell


class StageJobs:
    """Makes the jobs of one model.

    Args:
        folder: the sweep's own, for what `select` prints.
    """

    def __init__(self, recipe: Recipe, model: ModelSection, folder: Path) -> None:
        self.recipe, self.source, self.folder = recipe, model, folder
        self.model = model.folder
        self.project = store.Project()
        self.graphs = self.project.graphs(self.model)
        self.config = known_config(self.graphs)

    # ---- of the whole model ----

    def calibrate(self, base: Job) -> Job:
        """The similarity statistics."""
        return Job(
            id=f"{self.model}.calibrate",
            stage="calibrate",
            model=self.model,
            cell=GridCell(),
            command=commands.calibrate(self.model, self.recipe.calibrate),
            inputs=base.outputs,
            outputs=(similarity.paths(self.project.calib(self.model))[0],),
            needs=(base.id,),
        )

    def select_id(self, cell: GridCell) -> str:
        """The id of a cell's `select`."""
        return f"{self.model}.{cell.kind}.{cell.frac:g}.{cell.select}.select"

    def measured_choice(self, cell: GridCell, base: Job) -> Job:
        """`select` by a rule that runs the model: a process, whose printed JSON is its result."""
        command, id = commands.select(self.model, cell, self.recipe.select), self.select_id(cell)
        settings = store.text_digest(" ".join(command))[:12]
        file = self.folder / "select" / f"{id}.{settings}.json"
        needs = (base.id,)
        return Job(id, "select", self.model, cell, command, outputs=(file,), needs=needs, stdout=file)

    def known_choice(self, cell: GridCell, skip: SkipSet, owner: GridCell) -> Job:
        """What a rule has chosen while planning; `shared` where the cell `owner` has chosen the same."""
        command = commands.select(self.model, cell, self.recipe.select)
        shared = None if owner == cell else self.select_id(owner)
        id = self.select_id(cell)
        return Job(id, "select", self.model, cell, command, skip.name, inline=True, shared=shared)

    # ---- of a variant ----

    def variant(self, skip: SkipSet, precision: str, adapter: str | None = None) -> Variant:
        """A variant by the recipe's name of its precision: 'fp16', 'int4-fp32'."""
        (one,) = requested(precision)
        weights = one.weights.name if one.weights else None
        return Variant(self.model, skip, one.activations, adapter, quantisation=weights)

    def base_target(self, precision: str) -> Target:
        """The base."""
        return Target(self.variant(BASE, precision), GridCell())

    def export(self, target: Target, needs: Needs = ()) -> Job:
        """The graph."""
        variant = target.variant
        base = store.graph_path(self.graphs, self.variant(BASE, variant.precision_name))
        return self._job(
            "export",
            target,
            command=commands.export(self.model if variant.skip else self.source.name, variant),
            inputs=(base,) if variant.skip else (),
            outputs=(store.graph_path(self.graphs, variant),),
            needs=needs,
        )

    def check(self, target: Target, artefact: Path, maker: Job) -> Job:
        """The check of a graph or an engine that the job `maker` writes."""
        return self._job(
            "check",
            target,
            command=commands.check(artefact),
            inputs=(artefact,),
            outputs=(store.result_of(artefact, "check"),),
            needs=(maker.id,),
        )

    def build(self, target: Target, graph: Path, needs: Needs) -> Job:
        """The engine of a graph."""
        build, variant = self.recipe.build, target.variant
        precision = variant.precision_name
        plan = self.project.engine(self.model, variant.name, build.backend, build.target, precision)
        return self._job(
            "build",
            target,
            command=commands.build(graph, build),
            inputs=(graph,),
            outputs=(plan,),
            needs=needs,
            gpu=build.backend == "tensorrt",
        )

    def score(self, target: Target, task: str, artefact: Path, needs: Needs) -> Job:
        """One benchmark."""
        settings = self.recipe.score
        key = score_key(task, settings.protocol, None, settings.limit_of(task))
        return self._job(
            "score",
            target,
            task=task,
            command=commands.score(artefact, task, self.recipe),
            inputs=(artefact,),
            outputs=(store.result_of(artefact, f"score.{key}"),),
            needs=needs,
        )

    def bench(
        self, target: Target, artefact: Path, needs: Needs, decode: bool, beside: tuple[Path, ...] = ()
    ) -> Job:
        """The latency of prefill, or of a decode step; `beside`: what else is timed in the same run."""
        name = "bench.decode" if decode else "bench"
        return self._job(
            "bench",
            target,
            name=name,
            command=commands.bench(artefact, self.recipe, decode, beside),
            inputs=(artefact,),
            outputs=(store.result_of(artefact, name),),
            needs=needs,
            exclusive=True,
        )

    def heal(self, target: Target, export: Job) -> Job:
        """The adapter of a variant, trained on its graph."""
        graph, settings = export.outputs[0], self.recipe.heal
        folder = adapters.folder(self.project.calib(self.model), target.variant, settings.name)
        return self._job(
            "heal",
            target,
            command=commands.heal(graph, settings),
            inputs=(graph,),
            outputs=(folder / adapters.RECORD,),
            needs=(export.id,),
            gpu=settings.quantize is not None,
        )

    def compensate(self, target: Target, export: Job) -> Job:
        """A compensated variant's overlay and graph; `export` writes that of the variant as it is cut."""
        cut, variant = export.outputs[0], target.variant
        overlay = store.overlay_path(self.graphs, variant.name, variant.quantisation)
        return self._job(
            "compensate",
            target,
            command=commands.compensate(cut, str(variant.compensation), self.recipe.compensate),
            inputs=(cut,),
            outputs=(store.graph_path(self.graphs, variant), overlay),
            needs=(export.id,),
        )

    def ship(self, target: Target, form: str, graph: Path, needs: Needs) -> Job:
        """The variant in the form of other engines."""
        place = self.project.shipped(target.variant, form, self.recipe.ship.type)
        return self._job(
            "ship",
            target,
            name=f"ship.{form}",
            command=commands.ship(graph, form, place, self.recipe),
            inputs=(graph,),
            outputs=(place if form == "gguf" else place / "config.json",),
            needs=needs,
        )

    def _job(self, stage: str, target: Target, name: str = "", **fields: Any) -> Job:
        """A job on one artefact of a variant; `name` stands in its id where the stage's would not do."""
        variant, inputs = target.variant, fields["inputs"]
        on_engine = bool(inputs) and inputs[0].suffix == ".plan"
        task = f".{fields['task']}" if "task" in fields else ""
        defaults = {"gpu": on_engine, "memory": self._memory(stage, variant)}
        return Job(
            id=f"{self.model}.{variant.stem}.{'engine.' if on_engine else ''}{name or stage}{task}",
            stage=stage,
            model=self.model,
            cell=target.cell,
            variant=variant.name,
            precision=variant.precision_name,
            **{**defaults, **fields},
        )

    def _memory(self, stage: str, variant: Variant) -> int | None:
        """Bytes that a job needs, estimated: the graph in its precision, PyTorch beside it in fp32."""
        config = self.config
        parameters = costs.parameters(config, variant.skip) if config else self.source.parameters
        if parameters is None or stage == "export":
            return None
        graph = weight_bytes(config, parameters, variant.skip, variant.precision_name)
        each = {"check": 4 * parameters + graph, "bench": 2 * graph}
        return each.get(stage, 8 * parameters if stage in ("heal", "compensate") else graph)


def weight_bytes(config: Config | None, parameters: int, skip: SkipSet, precision: str) -> int:
    """Bytes of a variant's weights, from config.json, or by parameters alone, all of them in blocks then."""
    if config:
        return costs.weight_bytes(config, skip, precision)
    (one,) = requested(precision)
    return (
        one.weights.nbytes(parameters, one.weights.bits)
        if one.weights
        else parameters * costs.BYTES[precision]
    )


def known_config(graphs: Path) -> Config | None:
    """config.json of a checkpoint that lies there whole; None where its sizes are not known."""
    if not (graphs / store.SOURCE).is_file():
        return None
    config = read_config(graphs)
    try:
        costs.sizes(config)
    except UserError:
        return None
    return config
