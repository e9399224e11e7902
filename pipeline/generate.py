"""Greedy generation over a runner, on its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.backends import Runner
from pipeline.types import UserError


def greedy(runner: Runner, prompt: Sequence[int], max_tokens: int, stop: frozenset[int] = frozenset()) -> Iterator[int]:
    """Yields the most likely next token until `stop` or `max_tokens`.

    A variant without any attention has no cache, and needs none: its logits depend on the last token alone.

    Raises:
        UserError: the prompt is empty.
    """
    if not prompt:
        raise UserError("the prompt holds no token")
    ids, cache = np.array([prompt], np.int64), None
    for length in range(len(prompt), len(prompt) + max_tokens):
        logits, cache = runner.forward(ids, cache, attention_mask=np.ones((1, length), np.int64))
        token = int(logits[0, -1].argmax())
        yield token
        if token in stop:
            return
        ids = np.array([[token]], np.int64)


def stop_tokens(folder: Path) -> frozenset[int]:
    """The end-of-text ids that the model's generation_config.json (or config.json) names."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file() and (ids := store.read_json(folder / name).get("eos_token_id")) is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()
