"""The options of `pipeline select` that only some rules read: with any other rule they are refused."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Options as they were typed; None where nothing was.

    Attributes:
        seed: of rules that draw.
        tokens: where `angular` reads the distance.
        texts, dataset: that rules measure on, or finalists are compared on.
        samples: sequences of it.
        length: tokens of each; with a time, of what is timed.
    """

    seed: int | None = None
    tokens: str | None = None
    texts: list[Path] | None = None
    dataset: str | None = None
    samples: int | None = None
    length: int | None = None

    def belong_to(self, rule: str, start: str | None, is_timed: bool, is_compared: bool) -> None:
        """Refuses what neither the rule nor anything else here reads.

        Args:
            rule: of --select.
            start: of --start: a rule that `evo` begins with reads its own.
            is_timed: a time is asked for.
            is_compared: finalists are.

        Raises:
            UserError: no such rule, or an option would be passed over.
        """
        from pipeline.calib import selectors

        read = selectors.options_of(rule, start)
        for field in fields(self):
            is_read = field.name in read
            is_read |= is_compared and field.name in ("texts", "dataset")
            is_read |= is_timed and field.name == "length"
            if not is_read and getattr(self, field.name) not in (None, []):
                readers = " or ".join(selectors.readers(field.name))
                raise UserError(
                    f"--{field.name} belongs to --select {readers}, and the rule is {rule:.40}; leave it out"
                )
