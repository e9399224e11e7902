"""The options that belong to `--select evo` alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from pipeline.types import UserError

GENERATIONS = 50
PATIENCE = 15
"""Generations without a better set, after which a search ends."""


@dataclass(frozen=True, slots=True)
class EvoOptions:
    """How an evolutionary search is run, as it was typed; None or False where nothing was.

    Attributes:
        start: a rule, `cosine` by default, or a skip set.
        compensated: candidates have linear maps in the place of what is gone.
        minutes: of search, of all runs of it together; None: as long as it takes.
        generations: at most; GENERATIONS by default.
    """

    start: str | None = None
    compensated: bool = False
    minutes: float | None = None
    generations: int | None = None

    def belong_to(self, rule: str) -> None:
        """Refuses options that the rule does not have.

        Args:
            rule: of --select.

        Raises:
            UserError: the rule is not evo and one of these was typed, or a number is none.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        typed = [name for name, value in values.items() if value is not None and value is not False]
        if typed and rule != "evo":
            raise UserError(f"--{typed[0]} belongs to --select evo, and the rule is {rule}; leave it out")
        if self.minutes is not None and not (isfinite(self.minutes) and self.minutes > 0):
            raise UserError(f"--minutes {self.minutes:g} is not a number above 0")
        if self.generations is not None and self.generations < 1:
            raise UserError(f"--generations {self.generations} is not at least 1")
