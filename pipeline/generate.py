"""Greedy generation over a runner, on its cache: one text, or a batch of texts of different lengths.

Legend: B batch, S new tokens, P cached tokens, T = P + S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    for _, token in greedy_batch(runner, [prompt], max_tokens, lambda _, tokens: tokens[-1] in stop):
        yield token


def greedy_batch(
    runner: Runner, prompts: Sequence[Sequence[int]], max_tokens: int, ends: Callable[[int, list[int]], bool]
) -> Iterator[tuple[int, int]]:
    """Yields (number of the prompt, its next token), one of each unfinished prompt a step, until none is left.

    Prompts are padded on the left; one that ends leaves the batch, and its cache with it.

    Args:
        ends: whether a prompt is finished, given its number and the tokens written for it so far.

    Raises:
        UserError: a prompt is empty.
    """
    if not prompts or not all(prompts):
        raise UserError("the prompt holds no token")
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], np.int64)
    mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], np.int64)
    active, written, cache = list(range(len(prompts))), [list[int]() for _ in prompts], None
    for _ in range(max_tokens):
        logits, cache = runner.forward(ids, cache, attention_mask=mask)
        tokens = logits[:, -1].argmax(axis=-1).tolist()
        for number, token in zip(active, tokens, strict=True):
            written[number].append(token)
            yield number, token
        stay = [row for row, number in enumerate(active) if not ends(number, written[number])]
        if not stay:
            return
        if len(stay) < len(active):
            cache = {name: array[stay] for name, array in cache.items()}
        active = [active[row] for row in stay]
        mask = np.concatenate([mask[stay], np.ones((len(stay), 1), np.int64)], axis=1)
        ids = np.array([[tokens[row]] for row in stay], np.int64)


def stop_tokens(folder: Path) -> frozenset[int]:
    """The end-of-text ids that the model's generation_config.json (or config.json) names."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file() and (ids := store.read_json(folder / name).get("eos_token_id")) is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()
