"""llama.cpp on a shipped file beside ONNX Runtime on the graph.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.engines import opening
from pipeline.evals.check import llamacpp
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.runner import Array

BEST = 20
"""Tokens of which the log-probabilities are compared, the most probable by ONNX Runtime."""


@dataclass(frozen=True)
class Comparison:
    """How far llama.cpp is from the graph.

    Attributes:
        distance: max|Δ log-probability| of the best tokens, over positions of a text.
        text: greedy tokens of the graph.
        theirs: for each of them, llama.cpp's likeliest token after the same tokens. They are equal where, and
            only where, llama.cpp's own greedy text is.
    """

    distance: float
    text: list[int]
    theirs: list[int]


def compared(
    graph: Path,
    file: Path,
    ids: list[int],
    positions: int,
    prompt: list[int],
    count: int,
    exact: bool = False,
) -> Comparison:
    """A graph beside its file.

    Args:
        graph: of the variant.
        file: the GGUF of it.
        ids: [T], a text.
        positions: so many of the last.
        prompt: tokens.
        count: of tokens that follow them.
        exact: ONNX Runtime rounds no activations in products with quantised weights.
    """
    rows = np.arange(len(ids) - positions, len(ids))
    with opening.open_runner(graph, exact=exact) as runner:
        logits, _ = runner.forward(np.array([ids]), logits_positions=rows[None])
        texts = greedy_batch(runner, [prompt], count, lambda _: False)
        text = next(texts).tokens if count else []
    ours = _logs(logits[0].astype(np.float64))
    prompts = [ids[: end + 1] for end in rows] + [prompt + text[:i] for i in range(len(text))]
    theirs = np.stack(llamacpp.answers(file, prompts, ours.shape[1], 512, min(ours.shape[1], 10 * BEST)))
    top = np.argsort(-ours, -1)[:, :BEST]
    gaps = np.abs(np.take_along_axis(ours, top, -1) - np.take_along_axis(theirs[:positions], top, -1))
    distance = float(gaps.max()) if np.all(np.isfinite(gaps)) else np.inf
    return Comparison(distance, text, np.nanargmax(theirs[positions:], -1).tolist() if text else [])


def distance(graph: Path, file: Path, ids: list[int], positions: int, exact: bool = False) -> float:
    """max|Δ log-probability| of the best tokens alone."""
    return compared(graph, file, ids, positions, [], 0, exact).distance


def _logs(logits: Array) -> Array:
    """Log-probabilities [T, V]."""
    shifted: Array = logits - logits.max(-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs
