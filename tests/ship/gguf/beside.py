"""llama.cpp on a shipped file beside ONNX Runtime on the graph.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.evals.check import llamacpp
from tests import truth

BEST = 20
"""Tokens of which the log-probabilities are compared, the most probable by ONNX Runtime."""


def distance(graph: Path, file: Path, ids: list[int], positions: int) -> float:
    """max|Δ log-probability| of the best tokens, over the last positions of a text.

    Args:
        graph: of the variant.
        file: the GGUF of it.
        ids: [T].
        positions: so many of the last.
    """
    logits = truth.graph_logits(graph, np.array([ids]))[0, -positions:].astype(np.float64)
    ours = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    ours -= logits.max(-1, keepdims=True)
    words, ends = logits.shape[-1], range(len(ids) - positions + 1, len(ids) + 1)
    best = min(words, 10 * BEST)
    theirs = llamacpp.answers(file, [ids[:end] for end in ends], words, 512, best)
    top = np.argsort(-ours, -1)[:, :BEST]
    gaps = np.abs(np.take_along_axis(ours, top, -1) - np.take_along_axis(np.stack(theirs), top, -1))
    return float(gaps.max()) if np.all(np.isfinite(gaps)) else np.inf
