"""What `pipeline select --select published` prints: the sets that others published of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli.app import show_result
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.calib.published import Wanted
    from pipeline.calib.published_files import PublishedModel, PublishedSet


def refuse_other_options(selector: str, set_name: str | None, is_timed: bool, is_compared: bool) -> None:
    """Refuses what does not go with published sets.

    Args:
        selector: the rule.
        set_name: of a set.
        is_timed: a time is asked for.
        is_compared: finalists are.

    Raises:
        UserError: a set without `--select published`, a time, or finalists.
    """
    if selector != "published":
        raise UserError(f"--set {set_name} names a published set: add --select published")
    if is_timed:
        raise UserError("published sets are chosen by --kind, --count, --frac or --set, and not by a time")
    if is_compared:
        raise UserError(
            "--finalists needs a model that is here: export a published set (`pipeline export MODEL --select "
            "published`), then check, score and bench its graph"
        )


def wanted(kind: str | None, count: int | None, frac: float | None, set_name: str | None) -> Wanted:
    """Which sets the options mean.

    Raises:
        UserError: both a count and a fraction are there.
    """
    from pipeline.calib import published

    if None not in (count, frac):
        raise UserError("pipeline select --select published takes --count or --frac, not both")
    return published.Wanted(kind, count, frac, set_name)


def select(model: str, which: Wanted, as_json: bool) -> None:
    """Prints the one set that is asked for, else the list of those that match; no checkpoint is read.

    Args:
        model: as it was typed.
        which: sets are meant.
        as_json: print JSON.

    Raises:
        UserError: none is known of the model, none matches, or several do where one is asked for (they are
            listed).
    """
    from pipeline.calib import published

    known = published.find(published.ids_of(model), published.layers_of(model))
    sets = which.matching(known)
    if which.is_one and len(sets) == 1:
        show_result({"model": known.model, **sets[0].plain()}, as_json, _set_text(sets[0], whole=True))
        return
    listed = {"model": known.model, "layers": known.layers, "sets": [one.plain() for one in sets]}
    show_result(listed, as_json, _list_text(known, sets))
    if which.is_one:
        which.one(known)  # says how to name one


def _list_text(known: PublishedModel, sets: list[PublishedSet]) -> str:
    head = f"{known.model}, {known.layers} layers: {len(sets)} published sets"
    return "\n".join([head, *(_set_text(one) for one in sets)])


def _set_text(one: PublishedSet, whole: bool = False) -> str:
    """A set for a person: the skip set first where it is the choice, its name first in a list."""
    name, amount = one.name, f"{one.kind}, {one.sublayers} sublayers"
    if not whole:
        lines = [f"{name}  {amount}  {one.skip.name}", one.rule, one.entry.measured, one.origin]
    else:
        lines = [one.skip.name, f"{name}: {amount}", one.rule, one.entry.measured, one.origin]
        lines.append(f"layers are counted {one.source.numbering}")
        lines.append(one.entry.printed and f"printed: {one.entry.printed}")
        lines.append(one.source.inferred and f"inferred: {one.source.inferred}")
    return "\n  ".join(line for line in lines if line)
