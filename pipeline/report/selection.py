"""Which rules chose a variant: what ledgers say, and the two rules that need nothing but a count."""

from __future__ import annotations

from pipeline.calib.selectors import ModelStatistics, Question, last, last_but_final
from pipeline.report.rows import Collection
from pipeline.types import KINDS, UserError, count_of

_RULES = {"last": last.choose, "last-but-final": last_but_final.choose}
COUNTED = tuple(_RULES)
"""Rules that need nothing but how many layers go."""


def chosen_by(kind: str, count: int, num_layers: int, rule: str) -> str | None:
    """The variant's name that `last` or `last-but-final` gives; None where a model has too few layers."""
    try:
        return _RULES[rule](Question(kind, count, num_layers, ModelStatistics())).skip.name
    except UserError:
        return None


def variant_for(kind: str, frac: float, num_layers: int, rule: str) -> str | None:
    """The same for a fraction, by the count rule n = ceil(frac · L)."""
    return chosen_by(kind, count_of(frac, num_layers), num_layers, rule)


def name_selectors(collection: Collection) -> None:
    """Fills in `selectors` of every artefact."""
    by_ledger: dict[tuple[str, str], set[str]] = {}
    for job in (job.record for job in collection.jobs):
        if job.variant and job.select:
            by_ledger.setdefault((job.model, job.variant.partition("~")[0]), set()).add(job.select)
    for artefact in collection.artefacts:
        name = artefact.variant.partition("~")[0]
        artefact.selectors |= by_ledger.get((artefact.model, name), set())
        count = max(len(artefact.skip.attention), len(artefact.skip.mlp))
        if artefact.num_layers and artefact.kind in KINDS:
            artefact.selectors |= {
                rule for rule in COUNTED if name == chosen_by(artefact.kind, count, artefact.num_layers, rule)
            }
