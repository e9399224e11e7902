"""The sums of moments on a GPU, in float64 there as on the host.

The products of a sequence, 2·n·C² multiplications for each matrix, are the work; its activations, which the
host has seen, go back to the GPU for them: 4·n·C bytes each.

Legend: C hidden size, n tokens; h, f, y as in `gathering`. X is h with a column of ones appended.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.calib.compensation.maps import Moments
from pipeline.types import Provider

Array = npt.NDArray[Any]


def device_bytes(width: int, folds: bool) -> int:
    """Memory of one place's sums there.

    Args:
        width: C.
        folds: whether something was written before the place.
    """
    return 8 * (5 if folds else 2) * (width + 1) ** 2


class DeviceSums:
    """The products of one place.

    Args:
        width: C.
        folds: whether something was written before the place: then y is summed up, too.
        device: that they lie on.
    """

    def __init__(self, width: int, folds: bool, device: Provider) -> None:
        def zeros(columns: int) -> torch.Tensor:
            return torch.zeros(width + 1, columns, dtype=torch.float64, device=device)

        self.mapped = zeros(width + 1), zeros(width)
        self.folded = (zeros(width + 1), zeros(width), zeros(width)) if folds else None

    def add(self, entering: Array, added: Array, before: Array | None, weights: Array) -> None:
        """Adds tokens.

        Args:
            entering: h [n, C].
            added: f [n, C].
            before: y [n, C]; None where nothing was written before.
            weights: of each token [n].
        """
        f, w = self._uploaded(added), self._uploaded(weights)[:, None]
        x = self._with_ones(entering)
        _add((x * w).T, ((self.mapped[0], x), (self.mapped[1], f)))
        if self.folded is not None and before is not None:
            z = self._with_ones(before)
            _add((z * w).T, ((self.folded[0], z), (self.folded[1], f)))
            _add((x * w).T, ((self.folded[2], z[:, :-1]),))

    def add_to(self, mapped: Moments, folded: Moments | None, between: Array | None) -> None:
        """Adds what was summed up to the sums on the host, which are those of a place.

        Args:
            mapped: of h → f.
            folded: of y → f.
            between: Xᵀy.
        """
        targets = [mapped.gram, mapped.cross]
        if self.folded is not None and folded is not None and between is not None:
            targets += [folded.gram, folded.cross, between]
        for target, one in zip(targets, (*self.mapped, *(self.folded or ())), strict=True):
            target[...] += one.cpu().numpy()

    def _uploaded(self, rows: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.mapped[0].device).double()

    def _with_ones(self, rows: Array) -> torch.Tensor:
        """[n, C] → [n, C + 1]."""
        return torch.nn.functional.pad(self._uploaded(rows), (0, 1), value=1.0)


def _add(weighted: torch.Tensor, sums: tuple[tuple[torch.Tensor, torch.Tensor], ...]) -> None:
    """Adds weighted [C + 1, n] times each right side [n, …] to its sum, in place."""
    for total, right in sums:
        total.addmm_(weighted, right)
