"""What a sweep would do, in numbers and in commands: `--dry-run`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import store
from pipeline.models import costs
from pipeline.models.config import Config
from pipeline.models.quantisation.names import Quantisation, requested
from pipeline.sweep import done
from pipeline.sweep.jobs import Job, PendingCell, SweepPlan
from pipeline.sweep.ledger import Rates
from pipeline.sweep.progress import duration
from pipeline.sweep.sections import STAGES, Recipe
from pipeline.sweep.stages import known_config, weight_bytes
from pipeline.types import SkipSet, split_name

GRAPH = 300_000
"""Bytes of a variant's graph and sidecar, estimated (measured: SmolLM2's are 280 kB)."""


@dataclass(slots=True)
class Overview:
    """A plan with what is known of each job.

    Attributes:
        done: ids of jobs whose results are there, and those of the jobs before them.
        seconds: id → seconds that it will take, where something like it was measured.
        disk: bytes that will be written, estimated, by the models of which they are known.
        unknown: the models of which they are not.
    """

    plan: SweepPlan
    done: set[str]
    seconds: dict[str, float]
    disk: int
    unknown: list[str]

    @property
    def left(self) -> list[Job]:
        """Processes that are not done."""
        return [job for job in self.plan.processes if job.id not in self.done]

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "jobs": [self._job_record(job) for job in self.plan.jobs],
            "pending": [_pending_record(cell) for cell in self.plan.pending],
            "notes": self.plan.notes,
            "disk_bytes": self.disk,
            "disk_unknown": self.unknown,
            "seconds": self.total(),
            "unmeasured": self.unmeasured(),
        }

    def _job_record(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "stage": job.stage,
            "model": job.model,
            "kind": job.cell.kind,
            "frac": job.cell.frac,
            "select": job.cell.select,
            "variant": job.variant,
            "precision": job.precision,
            "task": job.task,
            "done": job.id in self.done,
            "shared": job.shared,
            "seconds": self.seconds.get(job.id),
            "exclusive": job.exclusive,
            "needs": list(job.needs),
            "command": list(job.command),
            "outputs": [str(path) for path in job.outputs],
        }

    def total(self) -> float:
        """Seconds of what is left and was measured, one job after the other."""
        return sum(self.seconds.get(job.id, 0.0) for job in self.left)

    def unmeasured(self) -> dict[str, int]:
        """Stage → jobs left of a kind that was never measured here."""
        return dict(Counter(job.stage for job in self.left if job.id not in self.seconds))

    def text(self) -> str:
        """For people: the commands in their order, what is shared and unknown, and the sums."""
        lines = [
            f"{'done' if job.id in self.done else '':<5}{shlex.join(job.command)}"
            for job in self.plan.processes
        ]
        lines += [f"     {cell.reason}: {cell.model} {cell.cell.words}" for cell in self.plan.pending]
        owners = {job.id: job for job in self.plan.jobs}
        for job in self.plan.jobs:
            if job.shared:
                variant = f"{job.variant}, as {owners[job.shared].cell.words}"
                lines.append(f"shared: {job.model} {job.cell.words} is {variant}; run once")
        lines += [f"note: {note}" for note in self.plan.notes]
        return "\n".join([*lines, "", *self._sums()])

    def _sums(self) -> list[str]:
        jobs, left = self.plan.processes, self.left
        total, open_jobs = Counter(job.stage for job in jobs), Counter(job.stage for job in left)
        stages = [f"{name} {total[name] - open_jobs[name]}/{total[name]}" for name in STAGES if total[name]]
        variants = len({(job.model, job.variant, job.precision) for job in jobs if job.variant})
        pending = f", {len(self.plan.pending)} cells of the grid not known yet" if self.plan.pending else ""
        return [
            f"jobs: {len(jobs)}, done {len(jobs) - len(left)}; {variants} variants{pending}",
            f"done of each stage: {', '.join(stages)}",
            f"disk: {self._disk_words()}",
            f"time, one job after the other: {self._time_words()}",
        ]

    def _disk_words(self) -> str:
        known = f"{self.disk / 1e9:.2f} GB"
        if not self.unknown:
            return known
        return f"{known}, and unknown for {', '.join(self.unknown)} (give `parameters` in the recipe)"

    def _time_words(self) -> str:
        unmeasured = self.unmeasured()
        if not self.left:
            return "0 s"
        known = duration(self.total()) if sum(unmeasured.values()) < len(self.left) else ""
        if not unmeasured:
            return known
        stages = ", ".join(f"{stage} {count}" for stage, count in unmeasured.items())
        before = f"{known} for what was measured here, and " if known else ""
        return f"{before}unknown for {stages} (nothing like it was measured)"


def _pending_record(pending: PendingCell) -> dict[str, Any]:
    return {
        "model": pending.model,
        "cell": pending.cell.words,
        "needs": pending.needs,
        "why": pending.reason,
    }


def of(plan: SweepPlan, recipe: Recipe, rates: Rates) -> Overview:
    """The plan, with what is done and how long the rest will take."""
    finished = set[str]()
    for job in plan.jobs:  # what stands behind a job that will run may have to run too
        if set(job.needs) <= finished and done.is_done(job, recipe):
            finished.add(job.id)
    seconds = {job.id: rate for job in plan.processes if (rate := rates.of(job)) is not None}
    disk, unknown = 0, list[str]()
    for model in recipe.models:
        left = [job for job in plan.processes if job.id not in finished and job.model == model.folder]
        written = _disk(left, model.folder, model.parameters)
        if written is None:
            unknown.append(model.name)
        disk += written or 0
    return Overview(plan, finished, seconds, disk, unknown)


def _maps(config: Config, skip: SkipSet) -> int:
    """Bytes of a matrix in fp32 for each skipped sublayer: what a compensation writes at most, or nearly."""
    return (len(skip.attention) + len(skip.mlp)) * int(config["hidden_size"]) ** 2 * costs.BYTES["fp32"]


def _disk(jobs: Iterable[Job], model: str, parameters: int | None) -> int | None:
    """Bytes that these jobs of one model will write; None where the model's size is not known.

    They are the checkpoint (16-bit, as published), the graphs, the overlays, quantised weights among them,
    the engines and what is shipped.
    """
    graphs = store.Project().graphs(model)
    is_there = (graphs / store.SOURCE).is_file()
    config = known_config(graphs)
    written, forms = 0, set[Quantisation]()
    for job in jobs:
        variant = job.variant or "base"
        is_checkpoint = job.stage == "export" and variant == "base" and not is_there
        is_adapter = job.stage == "export" and "~" in variant
        if job.stage in ("export", "compensate"):
            written += GRAPH
        if job.stage == "compensate" and config:
            written += _maps(config, SkipSet.parse(split_name(variant)[0]))
        form = requested(job.precision)[0].weights if job.precision else None
        is_quantised = form is not None and form not in forms and job.stage == "export"
        if not (is_checkpoint or is_adapter or is_quantised or job.stage in ("build", "ship")):
            continue
        skip = SkipSet.parse(split_name(variant)[0])
        size = costs.parameters(config, skip) if config else parameters
        if size is None:
            return None
        if form and is_quantised:
            forms.add(form)
            written += 0 if (graphs / form.file).is_file() else form.nbytes(size, form.bits)
        if form and job.stage == "build":
            written += weight_bytes(config, size, skip, str(job.precision))
        elif is_checkpoint or is_adapter or job.stage in ("build", "ship"):
            written += size * costs.BYTES["fp16"]
        is_there = is_there or is_checkpoint
    return written
