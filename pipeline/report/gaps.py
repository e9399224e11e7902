"""Artefacts and jobs by variant, and why a variant has no number."""

from __future__ import annotations

from pipeline.report import papers
from pipeline.report.rows import ArtefactResults, Collection
from pipeline.report.selection import COUNTED, variant_for
from pipeline.store.records import LedgerEntry


class Lookup:
    """Artefacts and jobs by (model, variant)."""

    def __init__(self, collection: Collection) -> None:
        self.artefacts: dict[tuple[str, str], list[ArtefactResults]] = {}
        self.jobs: dict[tuple[str, str], list[LedgerEntry]] = {}
        self.layers = {a.model: a.num_layers for a in collection.artefacts}
        for artefact in collection.artefacts:
            self.artefacts.setdefault((artefact.model, artefact.variant), []).append(artefact)
        for job in (job.record for job in collection.jobs):
            if variant := job.variant or self._planned(job):
                self.jobs.setdefault((job.model, variant), []).append(job)

    def layers_of(self, model: str) -> int | None:
        """How many layers a model has: by its files, else by the papers' table of models."""
        return self.layers.get(model) or papers.layers(model)

    def _planned(self, job: LedgerEntry) -> str | None:
        """The variant that a job is of, where the ledger does not name it yet."""
        layers = self.layers_of(job.model)
        if job.frac == 0:
            return "base"
        if layers is None or job.kind is None or job.frac is None or job.select not in COUNTED:
            return None
        return variant_for(job.kind, job.frac, layers, job.select)

    def of(self, model: str, variant: str) -> list[ArtefactResults]:
        """The artefacts of a variant."""
        return self.artefacts.get((model, variant), [])

    def gap(self, model: str, variant: str, stage: str, task: str | None = None) -> str:
        """Why there is no number: 'failed: …', 'needs a GPU', 'not run yet', 'not run'."""
        open_jobs = [job for job in self.jobs.get((model, variant), []) if job.state != "done"]
        of_stage = [
            job for job in open_jobs if job.stage == stage and (task is None or job.task in (None, task))
        ]
        if failure := self._failure(model, variant, open_jobs, of_stage):
            return failure
        if of_stage:
            return "running" if of_stage[0].state == "running" else "not run yet"
        unproven = [a.unproven for a in self.of(model, variant) if a.unproven and not a.latencies]
        return unproven[0] if unproven and stage == "bench" else "not run"

    def _failure(
        self, model: str, variant: str, open_jobs: list[LedgerEntry], of_stage: list[LedgerEntry]
    ) -> str | None:
        """What failed: the stage itself, else a stage that it needs, else the check."""
        for job in of_stage:
            if job.state == "failed":
                return f"failed: {job.error or 'no reason is written'}"
        for job in open_jobs:
            if job.state == "failed" and job.stage not in ("score", "bench", "heal"):
                return f"not run: its {job.stage} failed: {job.error or 'no reason is written'}"
        for artefact in self.of(model, variant):
            if artefact.check and artefact.check.startswith("failed"):
                return f"not run: its check {artefact.check}"
        return None
