"""What a sweep would do, in numbers and in commands: `--dry-run`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipeline import store
from pipeline.models import costs
from pipeline.sweep import done
from pipeline.sweep.jobs import Job, Plan
from pipeline.sweep.ledger import Rates
from pipeline.sweep.progress import duration
from pipeline.sweep.recipe import STAGES, Recipe
from pipeline.types import SkipSet

GRAPH = 300_000
"""Bytes of a variant's graph and sidecar, about (measured: SmolLM2's are 280 kB)."""


@dataclass(slots=True)
class Overview:
    """A plan with what is known of each job.

    Attributes:
        done: ids of jobs whose results are there, and those of the jobs before them.
        seconds: id → seconds that it will take, where something like it was measured.
        disk: bytes that will be written, about; None where a model's size is not known.
        unknown: why disk is not known, model by model.
    """

    plan: Plan
    done: set[str]
    seconds: dict[str, float]
    disk: int
    unknown: list[str]

    @property
    def left(self) -> list[Job]:
        return [job for job in self.plan.running if job.id not in self.done]

    def record(self) -> dict[str, Any]:
        """For machines."""
        jobs = [
            {
                "id": job.id, "stage": job.stage, "model": job.model, "kind": job.cell.kind, "frac": job.cell.frac,
                "select": job.cell.select, "variant": job.variant, "precision": job.precision, "task": job.task,
                "done": job.id in self.done, "shared": job.shared, "seconds": self.seconds.get(job.id),
                "exclusive": job.exclusive, "needs": list(job.needs), "command": list(job.command),
                "outputs": [str(path) for path in job.outputs],
            }
            for job in self.plan.jobs
        ]  # fmt: skip
        pending = [
            {"model": one.model, "cell": one.cell.words, "needs": one.needs, "why": one.words}
            for one in self.plan.pending
        ]
        estimate = {
            "disk_bytes": self.disk,
            "disk_unknown": self.unknown,
            "seconds": self.total(),
            "unmeasured": self.unmeasured(),
        }
        return {"jobs": jobs, "pending": pending, "notes": self.plan.notes, **estimate}

    def total(self) -> float:
        """Seconds of what is left and was measured, one job after the other."""
        return sum(self.seconds.get(job.id, 0.0) for job in self.left)

    def unmeasured(self) -> dict[str, int]:
        """Stage → jobs left of which nothing like it was measured here."""
        return dict(Counter(job.stage for job in self.left if job.id not in self.seconds))

    def text(self) -> str:
        """For people: the commands in their order, what is shared and unknown, and the sums."""
        lines = [
            f"{'done' if job.id in self.done else '':<5}{' '.join(job.command)}" for job in self.plan.running
        ]
        lines += [f"     {one.words}: {one.model} {one.cell.words}" for one in self.plan.pending]
        owners = {job.id: job for job in self.plan.jobs}
        for job in self.plan.jobs:
            if job.shared:
                with_whom = owners[job.shared].cell.words
                lines.append(
                    f"shared: {job.model} {job.cell.words} is {job.variant}, as {with_whom}; run once"
                )
        lines += [f"note: {note}" for note in self.plan.notes]
        return "\n".join([*lines, "", *self._sums()])

    def _sums(self) -> list[str]:
        total, left = Counter(job.stage for job in self.plan.running), Counter(job.stage for job in self.left)
        stages = ", ".join(
            f"{stage} {total[stage] - left[stage]}/{total[stage]}" for stage in STAGES if total[stage]
        )
        variants = len({(job.model, job.variant, job.precision) for job in self.plan.running if job.variant})
        more = f", {len(self.plan.pending)} cells of the grid not known yet" if self.plan.pending else ""
        unmeasured = self.unmeasured()
        time = duration(self.total()) if self.left and len(unmeasured) < len(left) else ""
        if unmeasured:
            missing = ", ".join(f"{stage} {count}" for stage, count in unmeasured.items())
            time += f"{' for what was measured here, and ' if time else ''}unknown for {missing} (nothing like it was measured)"
        disk = f"{self.disk / 1e9:.2f} GB"
        disk += (
            f", and unknown for {', '.join(self.unknown)} (give `parameters` in the recipe)"
            if self.unknown
            else ""
        )
        return [
            f"jobs: {len(self.plan.running)}, done {len(self.plan.running) - len(self.left)}; {variants} variants{more}",
            f"done of each stage: {stages}",
            f"disk: {disk}",
            f"time, one job after the other: {time or ('0 s' if not self.left else 'unknown')}",
        ]


def of(planned: Plan, recipe: Recipe, rates: Rates) -> Overview:
    """The plan beside what is there and what was measured."""
    finished = set[str]()
    for job in planned.jobs:  # what stands behind a job that will run may have to run too
        if set(job.needs) <= finished and done.is_done(job, recipe):
            finished.add(job.id)
    known = {job.id: rate for job in planned.running if (rate := rates.of(job)) is not None}
    left = [job for job in planned.running if job.id not in finished]
    disk, unknown = 0, list[str]()
    for model in recipe.models:
        mine = [job for job in left if job.model == model.folder]
        written = _disk(mine, model.folder, model.parameters)
        if written is None:
            unknown.append(model.name)
        disk += written or 0
    return Overview(planned, finished, known, disk, unknown)


def _disk(jobs: list[Job], model: str, parameters: int | None) -> int | None:
    """Bytes that these jobs of one model will write: the checkpoint (16-bit, as published), graphs, merged adapters, engines."""
    graphs = store.graphs_dir(model)
    written, here = 0, (graphs / store.SOURCE).is_file()
    config = store.read_json(graphs / "config.json") if here else None
    for job in jobs:
        heavy = job.stage == "build" or (
            job.stage == "export" and (job.variant == "base" or "~" in (job.variant or ""))
        )
        if job.stage == "export":
            written += GRAPH
        if not heavy or (job.variant == "base" and job.stage == "export" and here):
            continue
        skip = SkipSet.parse((job.variant or "base").split("~")[0])
        size = costs.parameters(config, skip) if config else parameters
        if size is None:
            return None
        if job.stage == "export" and job.variant == "base":
            here = True
        written += size * costs.BYTES["fp16"]
    return written
