"""What stands in for a skipped sublayer, in closed form from sums over tokens.

Legend: N tokens, C hidden size, R rank; h [N, C] what enters the sublayer (its norm's output), f [N, C] what
it adds to the stream. X is h with a column of ones appended, [N, C + 1].

`linear` is ridge regression of f on X (Hoerl & Kennard 1970), the bias not penalised; `matrix` the same on h
alone. `rank` is reduced-rank regression (Izenman 1975): the linear prediction, projected on the R directions
in which it varies most. `bias` is the mean of f. That a linear map in the place of whole blocks heals much of
a cut: ReplaceMe (arXiv:2505.02819), Ghosted Layers (arXiv:2605.15491).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from pipeline.types import UserError

Array = npt.NDArray[Any]
RIDGES = (0.003, 0.03, 0.3)
"""Candidates of the ridge, relative to the median mean square of an entry of h: massive activations, which
are in a few entries, would raise the mean a hundredfold."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens, of which every form and every rank follows.

    Attributes:
        gram: XᵀX, [C + 1, C + 1] float64; its last entry is N. Each token counts with its weight.
        cross: Xᵀf, [C + 1, C] float64.
    """

    gram: Array
    cross: Array

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Of no tokens.

        Args:
            width: C.
        """
        return cls(np.zeros((width + 1, width + 1)), np.zeros((width + 1, width)))

    @property
    def tokens(self) -> int:
        """N."""
        return round(float(self.gram[-1, -1]))

    def add(self, entering: Array, added: Array, weights: Array) -> Array:
        """Adds tokens in place.

        Args:
            entering: h [n, C].
            added: f [n, C].
            weights: of each token in the sums [n].

        Returns:
            The weighted rows of X [n, C + 1], of which other sums may be made.
        """
        x = np.concatenate([entering.astype(np.float64), np.ones((len(entering), 1))], axis=1)
        weighted: Array = x * weights[:, None]
        self.gram[...] += weighted.T @ x
        self.cross[...] += weighted.T @ added.astype(np.float64)
        return weighted


@dataclass(frozen=True)
class LinearMap:
    """h ↦ h · factors[0] · … + bias; without factors, the bias alone.

    Attributes:
        factors: none, one [C, C], or two, [C, R] and [R, C].
        bias: [C].
    """

    factors: tuple[Array, ...]
    bias: Array

    def __call__(self, entering: Array) -> Array:
        """[n, C] → [n, C]."""
        y = entering
        for factor in self.factors:
            y = y @ factor
        mapped: Array = y + self.bias if self.factors else np.broadcast_to(self.bias, entering.shape)
        return mapped

    @property
    def parameters(self) -> int:
        """Numbers that it holds."""
        return sum(factor.size for factor in self.factors) + self.bias.size


def bias(moments: Moments) -> LinearMap:
    """The mean of f."""
    return LinearMap((), moments.cross[-1] / moments.gram[-1, -1])


def linear(moments: Moments, ridge: float) -> LinearMap:
    """The matrix and the bias that minimise |f − hA − b|² + λ|A|².

    Args:
        moments: of at least as many tokens as h has entries.
        ridge: λ, relative to the median of the diagonal of hᵀh.

    Raises:
        UserError: fewer tokens than unknowns, or activations that are not finite.
    """
    solution = _solution(moments, ridge)
    return LinearMap((solution[:-1],), solution[-1])


def matrix(moments: Moments, ridge: float) -> LinearMap:
    """The matrix alone that minimises |f − hA|² + λ|A|², and a bias of zeros.

    Args:
        moments: as `linear`.
        ridge: as `linear`.

    Raises:
        UserError: as `linear`.
    """
    solution = _solution(moments, ridge, has_bias=False)
    return LinearMap((solution[:-1],), solution[-1])


def low_rank(moments: Moments, ridge: float, rank: int) -> LinearMap:
    """The linear map at a rank: A·V·Vᵀ, V the leading eigenvectors of the prediction's covariance.

    The bias is that of the projected map, so that the means of f and of its prediction are the same.

    Args:
        moments: as `linear`.
        ridge: as `linear`.
        rank: R, from 1 to C.

    Raises:
        UserError: as `linear`; a rank out of range.
    """
    width = len(moments.gram) - 1
    if not 1 <= rank <= width:
        raise UserError(f"a rank of {rank} is not between 1 and the hidden size {width}")
    matrix = _solution(moments, ridge)[:-1]
    count = moments.gram[-1, -1]
    mean = moments.gram[-1, :-1] / count
    covariance = moments.gram[:-1, :-1] - count * np.outer(mean, mean)
    _, directions = scipy.linalg.eigh(
        matrix.T @ covariance @ matrix, subset_by_index=[width - rank, width - 1], check_finite=False
    )
    down = matrix @ directions
    target = moments.cross[-1] / count
    return LinearMap((down, directions.T.copy()), target - mean @ down @ directions.T)


def folded(weight: Array, matrix: Array) -> Array:
    """The projection that wrote y, so that it writes y + yT: its matrix becomes (I + Tᵀ)W, its bias likewise.

    Args:
        weight: W [C, I], as Hugging Face keeps it: y = xWᵀ; or the bias [C].
        matrix: T [C, C], fitted from y to f.
    """
    changed: Array = weight + matrix.T @ weight
    return changed


def unexplained(moments: Moments, energy: float, ridge: float) -> float:
    """Σ|f − hA − b|²: what the best linear map cannot say of f.

    Args:
        moments: as `linear`.
        energy: Σ|f|².
        ridge: as `linear`.

    Raises:
        UserError: as `linear`.
    """
    solution = _solution(moments, ridge)
    explained = 2 * np.sum(solution * moments.cross) - np.sum(solution * (moments.gram @ solution))
    return max(float(energy - explained), 0.0)


def _solution(moments: Moments, ridge: float, has_bias: bool = True) -> Array:
    """[C + 1, C]: the matrix, and the bias below it; zeros where there is to be none."""
    width = len(moments.gram) - 1
    if moments.tokens < 2 * width:
        raise UserError(
            f"{moments.tokens} tokens are too few to fit a map of {width} × {width} numbers; "
            f"at least {2 * width} are needed (--samples × --length)"
        )
    penalty = np.full(width + 1, ridge * float(np.median(moments.gram.diagonal()[:-1])))
    penalty[-1] = 0.0
    unknowns = slice(None) if has_bias else slice(width)
    gram, solution = moments.gram + np.diag(penalty), np.zeros_like(moments.cross)
    try:
        solution[unknowns] = scipy.linalg.solve(
            gram[unknowns, unknowns], moments.cross[unknowns], assume_a="pos"
        )
    except (ValueError, np.linalg.LinAlgError):
        raise UserError("no map can be fitted: activations are not finite, or all the same") from None
    return solution
