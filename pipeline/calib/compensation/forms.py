"""The forms that a compensation may have, and the map of one form that fits a place's moments.

Legend: n tokens, C hidden size, R rank; h what a map reads in its place, f what it is to add there, y what
the sublayer just before the place added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.calib.compensation import maps
from pipeline.calib.compensation.gathering import Array, PlaceMoments
from pipeline.calib.compensation.maps import RIDGES, LinearMap, Moments
from pipeline.models.compensation import rank_of
from pipeline.types import UserError, is_compensation

AUTO = "auto"
KNOWN = f"bias, linear, matrix, rank16 (any rank), fold, fold+rank16, {AUTO}"


@dataclass(frozen=True, slots=True)
class Form:
    """A form in its parts.

    Attributes:
        name: 'bias', 'linear', 'matrix', 'rank16', 'fold', 'fold+rank16'.
        folds: whether a matrix is folded into the projection before the place.
        rank: of the map that stands in the place; 0 for its bias alone, None for a whole matrix.
    """

    name: str
    folds: bool
    rank: int | None

    @classmethod
    def parse(cls, name: str, width: int) -> Form:
        """A form by its name.

        Args:
            name: of the form.
            width: C.

        Raises:
            UserError: there is no such form; a rank above C.
        """
        if not is_compensation(name):
            raise UserError(f"no compensation {name!r:.40}; choose from {KNOWN}")
        rank = rank_of(name)
        if rank is not None and rank > width:
            raise UserError(f"{name}: a rank of {rank} is not between 1 and the hidden size {width}")
        return cls(name, name.startswith("fold"), rank)

    @property
    def has_bias(self) -> bool:
        """Whether its maps have a bias, which engines that know linear maps have no place for."""
        return self.name != "matrix"

    @property
    def has_runs(self) -> bool:
        """Whether one map may stand for a run of layers; biases of sublayers sum to that of their run."""
        return self.has_bias and (self.rank != 0 or self.folds)

    @property
    def unfolded(self) -> Form:
        """What stands in the place, where nothing can be folded."""
        return Form("bias", False, 0)


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted for one place.

    Attributes:
        form: its own form.
        map: of h, in the place itself.
        fold: of y; None where nothing is folded.
        ridge, fold_ridge: those that were chosen.
        r2: share of f on held-back tokens that is explained; None where f does not vary.
        refitted: on what the variant itself computes.
        note: what else a person should know.
    """

    form: str
    map: LinearMap
    fold: LinearMap | None = None
    ridge: float | None = None
    fold_ridge: float | None = None
    r2: float | None = None
    refitted: bool = False
    note: str = ""


def fit(moments: PlaceMoments, form: Form) -> Fit:
    """The map of a form for one place; each ridge is chosen on the held-back tokens.

    Args:
        moments: of the place.
        form: whose fold has a y to read, if it folds.

    Raises:
        UserError: as `maps.linear`.
    """
    h, f = (moments.held_tokens[name].astype(np.float64) for name in "hf")
    mean = moments.mapped.cross[-1] / moments.mapped.gram[-1, -1]
    fold, fold_ridge, rest, moved = None, None, f, moments.mapped
    if form.folds:
        assert moments.folded is not None and moments.between is not None
        folded, y = moments.folded, moments.held_tokens["y"].astype(np.float64)
        fold, fold_ridge = _best(lambda ridge: maps.linear(folded, ridge), y, f)
        rest = f - fold(y)
        moved = _left_over(moments.mapped, moments.between, fold)
    if form.rank == 0:
        chosen, ridge = (maps.bias(moved) if fold is None else _nothing(fold)), None
    else:
        chosen, ridge = _best(lambda ridge: _map(moved, ridge, form), h, rest)
    spread = float(np.square(f - mean).sum())
    error = float(np.square(rest - chosen(h)).sum())
    r2 = 1 - error / spread if spread > 0 else None
    return Fit(form.name, chosen, fold, ridge, fold_ridge, r2)


def _map(moments: Moments, ridge: float, form: Form) -> LinearMap:
    if form.rank is not None:
        return maps.low_rank(moments, ridge, form.rank)
    return maps.linear(moments, ridge) if form.has_bias else maps.matrix(moments, ridge)


def _nothing(like: LinearMap) -> LinearMap:
    return LinearMap((), np.zeros_like(like.bias))


def _best(make: Callable[[float], LinearMap], entering: Array, wanted: Array) -> tuple[LinearMap, float]:
    """(map, ridge) of the candidate that errs least on held-back tokens.

    By the sum of the errors' lengths, not of their squares: one token with a massive activation would decide.
    """
    candidates = [(make(ridge), ridge) for ridge in RIDGES]
    return min(candidates, key=lambda one: float(np.linalg.norm(wanted - one[0](entering), axis=1).sum()))


def _left_over(mapped: Moments, between: Array, fold: LinearMap) -> Moments:
    """The moments of h → f − (yT + b): what a fold leaves over."""
    (matrix,) = fold.factors
    explained = between @ matrix + np.outer(mapped.gram[:, -1], fold.bias)
    return Moments(mapped.gram, mapped.cross - explained)
