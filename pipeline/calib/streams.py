"""The residual stream of a sequence, from PyTorch; `engines/taps.py` gives that of a graph.

Legend: T tokens, L layers, C hidden size, M = L + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.types import Provider

if TYPE_CHECKING:
    from pipeline.models.reference import Dtype

Array = npt.NDArray[Any]
Streams = Callable[[Array], tuple[Array, Array]]
"""[T] token ids → (streams [M, T, C], middles [L, T, C])."""


def torch_streams(folder: Path, device: Provider = "cpu", dtype: Dtype = "fp32") -> Streams:
    """From transformers.

    Args:
        folder: the checkpoint.
        device: that PyTorch computes on.
        dtype: that it computes in; the arrays are in fp32.
    """
    from pipeline.models.reference import Reference

    reference = Reference(folder, dtype=dtype, device=device)

    def streams(row: Array) -> tuple[Array, Array]:
        ids = np.asarray(row, np.int64)[None]
        ones, positions = np.ones_like(ids), np.arange(ids.shape[1])[None]
        after, _, before = reference.trace(ids, ones, positions)
        layers = len(reference.layers)
        outer = np.stack([before[0], *(after[layer, "mlp"][0] for layer in range(layers))])
        middles = np.stack([after[layer, "attn"][0] for layer in range(layers)])
        return outer.astype(np.float32, copy=False), middles.astype(np.float32, copy=False)

    return streams
