"""Logits of graphs beside those of transformers on the user's own folder, and how far they are apart.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines import opening

Array = npt.NDArray[Any]


def loaded(folder: Path) -> Any:
    """The model that transformers loads from a folder, in fp32: version 5 would keep the file's precision."""
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def logits_of(model: Any, ids: Array) -> Array:
    """[B, T, V] of a model of transformers for ids [B, T], without a cache."""
    with torch.no_grad():
        logits: Array = model(torch.tensor(ids), use_cache=False).logits.numpy()
    return logits


def graph_logits(graph: Path, ids: Array) -> Array:
    """[B, T, V] of a graph for ids [B, T]."""
    with opening.open_runner(graph) as runner:
        every = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        logits, _ = runner.forward(ids, logits_positions=every)
    return logits


def relative_error(a: Array, b: Array) -> float:
    """max|a - b| / rms(b)."""
    return float(np.abs(a - b).max() / np.sqrt(np.mean(b**2)))
