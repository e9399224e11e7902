"""Recipe → plan: the grid as jobs, each variant once however many rules choose it.

What a rule chooses is known once what it reads is known. So planning is repeated after each job that adds to
that: the export of the base (how many layers there are), `calibrate`, and `select` by a rule that measures.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

from pipeline import store
from pipeline.calib import selectors
from pipeline.store.records import ChoiceRecord
from pipeline.store.records import read as read_record
from pipeline.sweep import done
from pipeline.sweep.jobs import GridCell, Job, PendingCell, SweepPlan
from pipeline.sweep.rules import Reads, reads
from pipeline.sweep.sections import ModelSection, Recipe
from pipeline.sweep.stages import Needs, StageJobs, Target
from pipeline.types import BASE, SkipSet, UserError, count_of

Rule = tuple[GridCell, Reads | None]
"""A cell, and what its selector reads."""


def make(recipe: Recipe, folder: Path) -> SweepPlan:
    """The plan as far as it is known now.

    Args:
        recipe: the grid.
        folder: the sweep's own, for what `select` prints.

    Raises:
        UserError: a model has another number of layers than the recipe says.
    """
    plan = SweepPlan()
    for model in recipe.models:
        ModelPlan(plan, recipe, model, folder).fill()
    return plan


class ModelPlan:
    """Adds the jobs of one model to a plan."""

    def __init__(self, plan: SweepPlan, recipe: Recipe, model: ModelSection, folder: Path) -> None:
        self.plan, self.recipe, self.source = plan, recipe, model
        self.jobs = StageJobs(recipe, model, folder)
        self.bases: dict[str, Job] = {}
        self.calibration: Job | None = None
        self.base_checks: list[Job] = []
        """A latency is measured beside the base, which must have passed."""
        self.benches: list[Job] = []
        """They come last."""

    @property
    def first_base(self) -> Job:
        """The base that calibration and selection wait for."""
        return self.bases[self.recipe.precisions[0]]

    def fill(self) -> None:
        """Adds all jobs that are known."""
        for precision in self.recipe.precisions:
            self.bases[precision] = self.plan.add(self.jobs.export(self.jobs.base_target(precision)))
        rules = self._rules()
        if "calibrate" in self.recipe.stages or any(wants in ("calibrate", "both") for _, wants in rules):
            self.calibration = self.plan.add(self.jobs.calibrate(self.first_base))
        chosen = self._choose(rules)
        self._measure(BASE, GridCell())
        for skip, cell in chosen.items():
            self._measure(skip, cell)
            for form in self.recipe.compensate.forms:
                self._compensate_and_measure(skip, cell, form)
            if "heal" in self.recipe.stages:
                self._heal_and_measure(skip, cell)
        # Each variant is measured interleaved with the base: the base's own job finds nothing left to do.
        self.plan.jobs += sorted(self.benches, key=lambda job: job.variant == "base")

    # ---- which variants ----

    def _rules(self) -> list[Rule]:
        """The cells whose selector chooses their kind."""
        rules = list[Rule]()
        for kind, frac, select in product(self.recipe.kinds, self.recipe.fractions, self.recipe.selectors):
            try:
                rules.append((GridCell(kind, frac, select), reads(select, kind)))
            except UserError as error:
                self.plan.note(f"{select} gives no {kind}: {error}")
        return rules

    def _choose(self, rules: list[Rule]) -> dict[SkipSet, GridCell]:
        """Skip set → the first cell that gives it; the other cells stand in the plan as shared."""
        layers = self._layers()
        statistics = selectors.ModelStatistics(self.jobs.graphs, tokens=self.recipe.select.tokens)
        owners: dict[SkipSet, GridCell] = {}
        for cell, statistic in rules:
            if layers is None:
                self._wait(cell, self.first_base, "exported")
            elif statistic in ("calibrate", "both") and not self._is_calibrated():
                assert self.calibration is not None
                self._wait(cell, self.calibration, "calibrated")
            elif statistic in ("measure", "both"):
                self._choose_measured(cell, owners)
            else:
                self._choose_known(cell, layers, statistics, owners)
        return owners

    def _wait(self, cell: GridCell, job: Job, event: str) -> None:
        reason = f"chosen by {cell.select} once {event}"
        id = self.jobs.select_id(cell)
        self.plan.pending.append(PendingCell(id, self.jobs.model, cell, job.id, reason))

    def _is_calibrated(self) -> bool:
        return self.calibration is not None and done.is_done(self.calibration, self.recipe)

    def _choose_measured(self, cell: GridCell, owners: dict[SkipSet, GridCell]) -> None:
        """A rule that measures is a job of its own; its choice is read where it is there."""
        job = self.jobs.measured_choice(cell, self.first_base)
        if done.is_done(job, self.recipe):
            skip = SkipSet.parse(read_record(ChoiceRecord, job.outputs[0]).skip)
            owners.setdefault(skip, cell)
            job = replace(job, variant=skip.name)
        else:
            self._wait(cell, job, "measured")
        self.plan.add(job)

    def _choose_known(
        self,
        cell: GridCell,
        layers: int,
        statistics: selectors.ModelStatistics,
        owners: dict[SkipSet, GridCell],
    ) -> None:
        count = count_of(cell.frac or 0.0, layers)
        question = selectors.Question(str(cell.kind), count, layers, statistics, self.recipe.select.seed)
        try:
            skip = selectors.choose(str(cell.select), question).skip
        except UserError as error:  # last-but-final, asked for every layer
            self.plan.note(f"{self.jobs.model} {cell.words}: {error}")
            return
        owner = owners.setdefault(skip, cell)
        self.plan.add(self.jobs.known_choice(cell, skip, owner))

    def _layers(self) -> int | None:
        """L of the base graph that is there, else what the recipe says."""
        for precision in self.bases:
            path = store.graph_path(self.jobs.graphs, self.jobs.variant(BASE, precision))
            try:
                layers = store.graph_sidecar(path).num_layers
            except UserError:  # not there, or not what its sidecar says: it will be exported again
                continue
            if self.source.layers not in (None, layers):
                name, written = self.source.name, self.source.layers
                raise UserError(f"{name} has {layers} layers, and the recipe says {written}; mend it")
            return layers
        return self.source.layers

    # ---- what is done to a variant ----

    def _measure(self, skip: SkipSet, cell: GridCell, adapter: str | None = None, healed: str = "") -> None:
        """Exports, checks, builds, scores and benches one variant in all precisions.

        Args:
            skip: what it leaves out.
            cell: the first that chose it.
            adapter: name of its adapter.
            healed: id of the job that trains the adapter.
        """
        for precision in self.recipe.plain_precisions if adapter else self.recipe.precisions:
            target = Target(self.jobs.variant(skip, precision, adapter), cell)
            export = self.bases[precision]
            if skip:
                before = (export.id, healed) if healed else (export.id,)
                export = self.plan.add(self.jobs.export(target, before))
            self._measure_one(target, export)

    def _measure_one(self, target: Target, maker: Job) -> None:
        """Checks, builds, scores and benches the graph that the job `maker` writes."""
        artefact, needs = self._prove(target, maker)
        for task in self.recipe.tasks:
            self.plan.add(self.jobs.score(target, task, artefact, needs))
        self._bench(target, artefact, needs)
        if target.variant.precision_name in self.recipe.plain_precisions[:1]:  # its type is its own
            self._ship(target, maker)

    def _ship(self, target: Target, maker: Job) -> None:
        """Writes the variant for other engines, once the graph that the job `maker` writes is checked."""
        graph = maker.outputs[0]
        checks = (job.id for job in self.plan.jobs if job.stage == "check" and graph in job.inputs)
        needs = tuple(checks) or (maker.id,)
        for form in self.recipe.ship.to:
            self.plan.add(self.jobs.ship(target, form, graph, needs))

    def _compensate_and_measure(self, skip: SkipSet, cell: GridCell, form: str) -> None:
        """Puts one form in the place of what a variant skips, and measures that in all precisions."""
        for precision in self.recipe.precisions:
            cut = self.jobs.variant(skip, precision)
            if cut.quantisation and form.startswith("fold"):
                self.plan.note(f"{form} of {cut.quantisation}: nothing is folded into quantised weights")
                continue
            target = Target(replace(cut, compensation=form), cell)
            export = self.jobs.export(Target(cut, cell))
            self._measure_one(target, self.plan.add(self.jobs.compensate(target, export)))

    def _heal_and_measure(self, skip: SkipSet, cell: GridCell) -> None:
        """Trains an adapter on the variant in the first plain precision, and measures the healed variant."""
        target = Target(self.jobs.variant(skip, self.recipe.plain_precisions[0]), cell)
        heal = self.plan.add(self.jobs.heal(target, self.jobs.export(target)))
        self._measure(skip, cell, self.recipe.heal.name, heal.id)

    def _prove(self, target: Target, export: Job) -> tuple[Path, Needs]:
        """What is measured, graph or engine, and the jobs that a measurement waits for."""
        graph = export.outputs[0]
        needs = self._check(target, graph, export)
        if "build" not in self.recipe.stages or target.variant.precision != "fp16":
            return graph, needs
        build = self.plan.add(self.jobs.build(target, graph, needs))
        if self.recipe.measure == "graphs":
            return graph, needs
        return build.outputs[0], self._check(target, build.outputs[0], build)

    def _check(self, target: Target, artefact: Path, maker: Job) -> Needs:
        """Adds the check of what `maker` writes → what a measurement of it waits for."""
        if self.recipe.unchecked:
            return (maker.id,)
        job = self.plan.add(self.jobs.check(target, artefact, maker))
        if not target.variant.skip:
            self.base_checks.append(job)
        return (job.id,)

    def _bench(self, target: Target, artefact: Path, needs: Needs) -> None:
        if "bench" not in self.recipe.stages:
            return
        variant = target.variant
        checks = [job for job in self.base_checks if job.id not in needs]
        beside = [job.id for job in checks if job.precision == variant.precision_name]
        plain = [
            job
            for job in checks
            if job.precision == variant.precision != variant.precision_name
            and job.inputs[0].suffix == artefact.suffix
        ]
        more, files = [job.id for job in plain], tuple(job.inputs[0] for job in plain)
        for decode in (False, True) if self.recipe.bench.decode else (False,):
            self.benches.append(self.jobs.bench(target, artefact, (*needs, *beside, *more), decode, files))
