"""The rules' names for --help; and the options that only some rules read: with any other they are refused."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path

RULES = sorted(
    module.name.replace("_", "-")
    for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "calib" / "selectors")])
)
"""`selectors.names()`, by the files alone: to import the rules takes longer than --help may."""


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
        read |= {"length"} if is_timed else set()
        read |= {"texts", "dataset"} if is_compared else set()
        for name in selectors.OPTIONS:
            if name not in read and getattr(self, name) not in (None, []):
                selectors.refuse_unread(name, rule, start)
