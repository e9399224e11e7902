"""Recipe → plan: the grid as jobs, each variant once however many rules choose it.

What a rule chooses is known when what it goes by is known: planning is repeated after each job that teaches something (the
base graph: how many layers there are; `calibrate`; `select` by a rule that measures).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.calib import adapters, selectors
from pipeline.evals.score import results
from pipeline.models import costs
from pipeline.sweep import commands, done
from pipeline.sweep.jobs import Cell, Job, Pending, Plan
from pipeline.sweep.recipe import Model, Recipe
from pipeline.types import BASE, Precision, SkipSet, UserError, Variant, count_of


class _Asked(Exception):
    """A rule asked for a statistic."""


class _Probe(selectors.Statistics):
    """Statistics that tell what a rule asks for, instead of answering."""

    @property
    def similarity(self) -> Any:  # type: ignore[override]
        raise _Asked("calibrate")

    def removals(self, kind: str, count: int) -> Any:  # noqa: ARG002 - the signature is Statistics'
        raise _Asked("measure")


def asks(select: str, kind: str) -> str | None:
    """What a rule goes by: None, 'calibrate' or 'measure'.

    Raises:
        UserError: the rule does not choose that kind.
    """
    try:
        selectors.choose(select, selectors.Question(kind, 1, 4, _Probe()))
    except _Asked as asked:
        return str(asked)
    return None


def make(recipe: Recipe, folder: Path) -> Plan:
    """The plan as far as it is known now.

    Args:
        folder: the sweep's own, for what `select` prints.

    Raises:
        UserError: a model has another number of layers than the recipe says.
    """
    plan = Plan()
    for model in recipe.models:
        _Grid(plan, recipe, model, folder).fill()
    return plan


class _Grid:
    """The jobs of one model."""

    def __init__(self, plan: Plan, recipe: Recipe, model: Model, folder: Path) -> None:
        self.plan, self.recipe, self.model, self.folder = plan, recipe, model, folder
        self.name = model.folder
        self.graphs = store.graphs_dir(self.name)
        self.bases: dict[Precision, Job] = {}
        self.checks: list[Job] = []
        """Of the base: a latency is measured beside it."""
        self.config = _config(self.graphs)

    def fill(self) -> None:
        for precision in self.recipe.precisions:
            self.bases[precision] = self._export(BASE, precision, Cell(), ())
        cells = self._cells()
        if "calibrate" in self.recipe.stages or "calibrate" in {why for _, why in cells}:
            self._calibrate()
        chosen = self._chosen(cells)
        benches = list[Job]()
        self._measured(BASE, Cell(), benches)
        for skip, cell in chosen.items():
            self._measured(skip, cell, benches)
        # The base's own measurement comes out of any variant's: it is interleaved with base. Asked last, it is mostly done.
        self.plan.jobs += sorted(benches, key=lambda job: job.variant == "base")

    # ---- which variants ---------------------------------------------------------------------------------------------

    def _cells(self) -> list[tuple[Cell, str | None]]:
        found = list[tuple[Cell, str | None]]()
        for kind, frac, select in product(self.recipe.kinds, self.recipe.fractions, self.recipe.selectors):
            try:
                found.append((Cell(kind, frac, select), asks(select, kind)))
            except UserError as error:
                note = f"{select} gives no {kind}: {error}"
                self.plan.notes += [note] if note not in self.plan.notes else []
        return found

    def _chosen(self, cells: list[tuple[Cell, str | None]]) -> dict[SkipSet, Cell]:
        """Skip set → the first cell that gives it; the other cells stand in the plan as shared."""
        layers = self._layers()
        told = selectors.Statistics(self.graphs, tokens=self.recipe.select.tokens)
        owners: dict[SkipSet, Cell] = {}
        for cell, why in cells:
            waits = self._waits(cell, why, layers)
            if waits:
                self.plan.pending.append(waits)
                continue
            assert layers is not None
            try:
                skip = self._skip(cell, why, layers, told)
            except UserError as error:  # last-but-final, asked for every layer
                self.plan.notes.append(f"{self.name} {cell.words}: {error}")
                continue
            owner = owners.setdefault(skip, cell)
            if why != "measure":
                self._decided(cell, skip, owner)
        return owners

    def _skip(self, cell: Cell, why: str | None, layers: int, told: selectors.Statistics) -> SkipSet:
        """What the cell's rule leaves out, now that what it goes by is there."""
        if why == "measure":
            job = self.plan.jobs.pop()  # the job that `_waits` has just put there and found done
            skip = SkipSet.parse(store.read_json(job.outputs[0])["skip"])
            self.plan.add(replace(job, variant=skip.name))
            return skip
        question = selectors.Question(
            str(cell.kind), count_of(cell.frac or 0.0, layers), layers, told, self.recipe.select.seed
        )
        return selectors.choose(str(cell.select), question).skip

    def _waits(self, cell: Cell, why: str | None, layers: int | None) -> Pending | None:
        """What must be done before the cell's variant is known."""
        base = next(iter(self.bases.values())).id
        if layers is None:
            return Pending(
                self._select_id(cell), self.name, cell, base, f"chosen by {cell.select} once exported"
            )
        if why == "calibrate":
            job = next(job for job in self.plan.jobs if job.id == f"{self.name}.calibrate")
            if not done.is_done(job, self.recipe):
                return Pending(
                    self._select_id(cell), self.name, cell, job.id, f"chosen by {cell.select} once calibrated"
                )
        if why == "measure":
            job = self._measuring(cell, base)
            if not done.is_done(job, self.recipe):
                return Pending(
                    self._select_id(cell), self.name, cell, job.id, f"chosen by {cell.select} once measured"
                )
        return None

    def _layers(self) -> int | None:
        """L of the base graph that is there, else what the recipe says."""
        for precision in self.bases:
            path = store.graph_path(self.graphs, Variant(self.name, BASE, precision))
            try:
                layers = int(store.read_sidecar(path)["num_layers"])
            except UserError:  # not there, or not what its sidecar says: it will be exported again
                continue
            if self.model.layers not in (None, layers):
                raise UserError(
                    f"{self.model.name} has {layers} layers, and the recipe says {self.model.layers}; mend it"
                )
            return layers
        return self.model.layers

    # ---- jobs -------------------------------------------------------------------------------------------------------

    def _calibrate(self) -> None:
        base = next(iter(self.bases.values()))
        path = store.calib_dir(self.name) / "similarity.json"
        command = commands.calibrate(self.name, self.recipe.calibrate)
        self._add(
            "calibrate",
            f"{self.name}.calibrate",
            Cell(),
            command,
            inputs=base.outputs,
            outputs=(path,),
            needs=(base.id,),
        )

    def _select_id(self, cell: Cell) -> str:
        return f"{self.name}.{cell.kind}.{cell.frac:g}.{cell.select}.select"

    def _measuring(self, cell: Cell, base: str) -> Job:
        """`select` by a rule that runs the model: a job, whose printed JSON is its result."""
        command, name = commands.select(self.name, cell, self.recipe.select), self._select_id(cell)
        file = (
            self.folder / "select" / f"{name}.{store.text_digest(' '.join(command))[:12]}.json"
        )  # other settings, other file
        return self._add("select", name, cell, command, outputs=(file,), needs=(base,), stdout=file)

    def _decided(self, cell: Cell, skip: SkipSet, owner: Cell) -> None:
        """What a rule has chosen, for the record; `shared` where an earlier cell has chosen the same."""
        command = commands.select(self.name, cell, self.recipe.select)
        shared = None if owner == cell else self._select_id(owner)
        self._add(
            "select", self._select_id(cell), cell, command, variant=skip.name, inline=True, shared=shared
        )

    def _export(
        self,
        skip: SkipSet,
        precision: Precision,
        cell: Cell,
        needs: tuple[str, ...],
        adapter: str | None = None,
    ) -> Job:
        variant = Variant(self.name, skip, precision, adapter)
        path = store.graph_path(self.graphs, variant)
        source = self.name if skip else self.model.name
        command = commands.export(source, skip, precision, adapter)
        base = store.graph_path(self.graphs, Variant(self.name, BASE, precision))
        inputs = (base,) if skip else ()
        return self._of("export", variant, cell, command, inputs, (path,), needs)

    def _measured(
        self, skip: SkipSet, cell: Cell, benches: list[Job], adapter: str | None = None, healed: str = ""
    ) -> None:
        """Everything that is done to one variant, in all precisions, and then to its healed twin."""
        heals = "heal" in self.recipe.stages and bool(skip) and not adapter
        for precision in self.recipe.precisions:
            variant = Variant(self.name, skip, precision, adapter)
            needs = (self.bases[precision].id, *([healed] if adapter else []))
            export = self._export(skip, precision, cell, needs, adapter) if skip else self.bases[precision]
            artefact, needs = self._proven(variant, cell, export)
            for task in self.recipe.tasks:
                self._score(variant, cell, task, artefact, needs)
            if "bench" in self.recipe.stages:
                benches += [self._bench(variant, cell, artefact, needs, decode) for decode in self._ways()]
            if heals and precision == self.recipe.precisions[0]:
                healed = self._heal(variant, cell, export).id
        if heals:
            self._measured(skip, cell, benches, self.recipe.heal.name, healed)

    def _ways(self) -> tuple[bool, ...]:
        return (False, True) if self.recipe.bench.decode else (False,)

    def _proven(self, variant: Variant, cell: Cell, export: Job) -> tuple[Path, tuple[str, ...]]:
        """(what is measured, the jobs that it waits for): the graph and its check, or the engine and its own."""
        graph = export.outputs[0]
        needs = self._check(variant, cell, graph, export.id)
        if "build" not in self.recipe.stages or variant.precision != "fp16":
            return graph, needs
        build = self.recipe.build
        plan = store.engine_path(self.name, variant.name, build.backend, build.target, "fp16")
        gpu = build.backend == "tensorrt"
        job = self._of(
            "build", variant, cell, commands.build(graph, build), (graph,), (plan,), needs, gpu=gpu
        )
        if self.recipe.measure == "graphs":
            return graph, needs
        return plan, self._check(variant, cell, plan, job.id)

    def _check(self, variant: Variant, cell: Cell, artefact: Path, made_by: str) -> tuple[str, ...]:
        if self.recipe.unchecked:
            return (made_by,)
        result = store.result_path(self.name, artefact, "check")
        command = ("pipeline", "check", str(artefact))
        job = self._of("check", variant, cell, command, (artefact,), (result,), (made_by,))
        if not variant.skip:
            self.checks.append(job)
        return (job.id,)

    def _score(self, variant: Variant, cell: Cell, task: str, artefact: Path, needs: tuple[str, ...]) -> None:
        limit = self.recipe.score.limit_of(task)
        key = results.key_of(task, self.recipe.score.protocol, None, limit)
        result = store.result_path(self.name, artefact, f"score.{key}")
        command = commands.score(artefact, task, self.recipe)
        self._of("score", variant, cell, command, (artefact,), (result,), needs, task=task)

    def _bench(
        self, variant: Variant, cell: Cell, artefact: Path, needs: tuple[str, ...], decode: bool
    ) -> Job:
        """Not in the plan yet: the caller puts measurements last."""
        what = "bench.decode" if decode else "bench"
        needs = (
            *needs,
            *(job.id for job in self.checks if job.precision == variant.precision and job.id not in needs),
        )
        result = store.result_path(self.name, artefact, what)
        command = commands.bench(artefact, self.recipe, decode)
        job = self._of(
            "bench", variant, cell, command, (artefact,), (result,), needs, exclusive=True, name=what
        )
        self.plan.jobs.remove(job)
        return job

    def _heal(self, variant: Variant, cell: Cell, export: Job) -> Job:
        graph, heal = export.outputs[0], self.recipe.heal
        record = adapters.folder(self.name, variant.skip, heal.name) / adapters.RECORD
        gpu = heal.quantize is not None
        return self._of(
            "heal", variant, cell, commands.heal(graph, heal), (graph,), (record,), (export.id,), gpu=gpu
        )

    def _of(
        self, stage: str, variant: Variant, cell: Cell, command: commands.Command, inputs: tuple[Path, ...],
        outputs: tuple[Path, ...], needs: tuple[str, ...], name: str = "", **more: Any,
    ) -> Job:  # fmt: skip
        """A job on one artefact of a variant; its id says which."""
        engine = "engine." if inputs and inputs[0].suffix == ".plan" else ""
        task = f".{more['task']}" if "task" in more else ""
        id = f"{self.name}.{variant.stem}.{engine}{name or stage}{task}"
        more = {"gpu": bool(engine), "memory": self._memory(stage, variant), **more}
        return self._add(
            stage, id, cell, command, variant=variant.name, precision=variant.precision, inputs=inputs, outputs=outputs,
            needs=needs, **more,
        )  # fmt: skip

    def _add(self, stage: str, id: str, cell: Cell, command: commands.Command, **more: Any) -> Job:
        return self.plan.add(Job(id=id, stage=stage, model=self.name, cell=cell, command=command, **more))

    def _memory(self, stage: str, variant: Variant) -> int | None:
        """Bytes that a job holds, about: the graph runs in its precision, PyTorch beside it in fp32."""
        parameters = costs.parameters(self.config, variant.skip) if self.config else self.model.parameters
        if parameters is None or stage == "export":
            return None
        each = {
            "check": 4 + costs.BYTES[variant.precision],
            "heal": 8,
            "bench": 2 * costs.BYTES[variant.precision],
        }
        return parameters * each.get(stage, costs.BYTES[variant.precision])


def _config(graphs: Path) -> dict[str, Any] | None:
    """config.json of a checkpoint that is there whole, where its sizes are known."""
    if not (graphs / store.SOURCE).is_file():
        return None
    config: dict[str, Any] = store.read_json(graphs / "config.json")
    try:
        costs.sizes(config)
    except UserError:
        return None
    return config
