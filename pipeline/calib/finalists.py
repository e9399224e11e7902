"""Which skip sets stand beside the one that a rule chose: its own runners-up, or single swaps of its choice.

A swap puts back one thing that was chosen and leaves out one of the same kind that stays: it skips as much,
and is predicted to take the same time. Rules see each sublayer by itself, or one at a time; the loss of whole
skip sets decides among such neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.calib.selectors import Choice
from pipeline.types import SkipSet, UserError, shown

TRIED = 4
"""So many swaps a finalist are measured at most."""


def nominees(choice: Choice, num_layers: int, number: int) -> tuple[list[SkipSet], bool]:
    """The skip sets among which so many finalists are.

    Args:
        choice: of a rule.
        num_layers: L.
        number: finalists, at least 1.

    Returns:
        The choice and what stands beside it, the likeliest first; and whether they are the finalists in their
        order already, because the rule itself measured them.

    Raises:
        UserError: the choice leaves nothing out, or there are fewer skip sets like it.
    """
    if not choice.skip:
        raise UserError("--finalists compares skip sets, and nothing is left out: ask for one or more")
    ranked = list(dict.fromkeys([choice.skip, *(skip for skip, _ in choice.runners_up)]))
    if number <= len(ranked):
        return ranked[:number], True
    every = dict.fromkeys([*ranked, *swaps(choice, num_layers, TRIED * number)])
    if number > len(every):
        raise UserError(
            f"--finalists {number} is more than there are: {len(every)} "
            f"skip set{'s' * (len(every) > 1)} like {shown([choice.skip.name])}"
        )
    return list(every), False


def finalists(choice: SkipSet, losses: Mapping[SkipSet, float], number: int) -> list[SkipSet]:
    """Those of the lowest losses, best first; the choice is always one of them.

    Args:
        choice: the rule's own.
        losses: of the nominees, the choice among them.
        number: how many.
    """
    order = sorted(losses, key=losses.__getitem__)
    others = [skip for skip in order if skip != choice][: number - 1]
    return sorted([choice, *others], key=losses.__getitem__)


def swaps(choice: Choice, num_layers: int, limit: int) -> list[SkipSet]:
    """The choice with one thing put back and one of the same kind left out instead, the likeliest first.

    By the rule's order: the sum of the ranks behind the last that was chosen and behind the first that stays.
    Behind these, and where the rule has no order, by the distance of the two layers; of equal ones the deeper
    comes first, as in the rules.

    Args:
        choice: of a rule.
        num_layers: L.
        limit: how many at most.
    """
    chosen, stays = ([SkipSet.parse(name) for name, _ in ranked] for ranked in (choice.chosen, choice.stays))
    pairs = [
        (i + j, i, gone, other)
        for i, gone in enumerate(reversed(chosen))
        for j, other in enumerate(stays)
        if _shape(gone) == _shape(other)
    ]
    near = _by_distance(choice.skip, num_layers)
    order = [(gone, other) for _, _, gone, other in sorted(pairs, key=lambda pair: pair[:2])] + near
    neighbours = dict.fromkeys((choice.skip - gone) | other for gone, other in order)
    return [skip for skip in neighbours if skip != choice.skip and _shape(skip) == _shape(choice.skip)][
        :limit
    ]


def _by_distance(skip: SkipSet, num_layers: int) -> list[tuple[SkipSet, SkipSet]]:
    """(what was chosen, what stays) of one kind, the nearest layers first; of whole layers, whole layers."""
    groups = [("block", skip.attention)]
    if skip.attention != skip.mlp:
        groups = [("attn", skip.attention), ("mlp", skip.mlp)]
    pairs = [
        (abs(gone - other), -other, kind, gone)
        for kind, layers in groups
        for gone in layers
        for other in range(num_layers)
        if other not in layers
    ]
    return [(SkipSet.of(kind, [gone]), SkipSet.of(kind, [-other])) for _, other, kind, gone in sorted(pairs)]


def _shape(skip: SkipSet) -> tuple[int, int]:
    return len(skip.attention), len(skip.mlp)


def timed_choice(skip: SkipSet, damage: Mapping[SkipSet, float]) -> Choice:
    """What an integer programme chose, in the form of a rule's choice: its order is that of predicted damage.

    Args:
        skip: the skip set.
        damage: what might have gone → its predicted damage, in one kind or several.
    """
    order = sorted(damage, key=lambda one: (damage[one], one.name))
    ranked = [(one.name, damage[one]) for one in order]
    goes = [not one - skip for one in order]
    chosen = tuple(pair for pair, is_chosen in zip(ranked, goes, strict=True) if is_chosen)
    stays = tuple(pair for pair, is_chosen in zip(ranked, goes, strict=True) if not is_chosen)
    return Choice(skip, "1 - cosine; the smallest goes, as far as the time needs", chosen, stays)
