"""Names that users may misspell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache

from pipeline.types import UserError


def refuse_unknown(
    option: str, names: Iterable[str], known: Iterable[str], quiet: Iterable[str] = ()
) -> None:
    """Refuses names that are not known: what nobody reads would be left out without a word.

    Args:
        option: where they stand, for the error.
        names: what the user wrote.
        known: those that there are.
        quiet: also known, but not offered.

    Raises:
        UserError: names the first unknown one, and the nearest that there is.
    """
    offered = list(known)
    for name in names:
        if name in offered or name in quiet:
            continue
        near = difflib.get_close_matches(str(name), [*offered, *quiet], 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(offered)}"
        raise UserError(f"{option} has no {name!r}; {hint}")


@cache
def of_harness() -> tuple[str, ...]:
    """lm-eval's own tasks and groups. Their 14,000 files are read once a process: some ten seconds."""
    from lm_eval.tasks import TaskManager

    return tuple(TaskManager().all_tasks)
