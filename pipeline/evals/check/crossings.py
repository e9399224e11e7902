"""Feeds that go beyond what a short text shows: a window's edge, a rope scaling's switch, two ropes.

Up to its window a model attends to everything, and up to its original context a rope scaling may be another
or hardly one at all: a graph without either would pass. So the window is crossed by tokens, or where it is
long by masked places in the cache, which cost nothing to compute; and the switch by positions that are far
apart, for a rope knows positions alone. Far apart, too, are the angles of two ropes of different bases.

Legend: P cached tokens, S tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.evals.check.scripted import LENGTHS, STEPS, Feed, longest_prompt
from pipeline.models.config import Config
from pipeline.runtime.runner import Array
from pipeline.store.records import EngineRecord, GraphRecord, Ranges, Sidecar

PREFILLED = 1024
"""Tokens of a window at most that a whole prompt is computed for."""
BEYOND = 16
"""Tokens of such a prompt beyond the window."""
PROMPT = 50
"""Tokens of a prompt with far positions."""
FAR = 2048
"""Positions that such a prompt reaches at most to tell two ropes apart. transformers computes a rope's
frequencies in float32: an angle is off by position · 1e-7, and at 16,384 Gemma 3 270M's logits by 4e-3."""


@dataclass(frozen=True, slots=True)
class Crossings:
    """The feeds, and in words what they cross and what no feed crosses."""

    feeds: tuple[Feed, ...] = ()
    crossed: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()

    def __add__(self, other: Crossings) -> Crossings:
        return Crossings(self.feeds + other.feeds, self.crossed + other.crossed, self.missed + other.missed)


def room(sidecar: Sidecar) -> Ranges | None:
    """The sizes that an artefact takes: an engine's ranges, a static cache's places; None where all fit."""
    if isinstance(sidecar, EngineRecord):
        return sidecar.ranges
    if not isinstance(sidecar, GraphRecord) or (places := sidecar.max_tokens) is None:
        return None
    most = (1, 1, places)
    return Ranges(batch=most, length=most, past=most, wanted=most)


def crossings(config: Config, tokens: Callable[[int], Array], ranges: Ranges | None = None) -> Crossings:
    """The feeds that a model needs beside the usual ones.

    Args:
        config: of the model, normalised.
        tokens: gives a row of so many token ids.
        ranges: of the artefact (`room`): no feed goes beyond them.
    """
    return _window(config, tokens, ranges) + _switch(config, tokens, ranges) + _ropes(config, tokens, ranges)


def _window(config: Config, tokens: Callable[[int], Array], ranges: Ranges | None) -> Crossings:
    """A prompt longer than the window, or a gap in the cache that moves the prompt out of it."""
    window, context = window_of(config), config.get("max_position_embeddings", 2**31)
    if window is None or window >= context:
        return Crossings()
    name, usual = f"the sliding window of {window} tokens", longest_prompt(config, max(LENGTHS))
    if window < usual and _fits(ranges, length=usual):
        return Crossings(crossed=(f"{name}, by prompts of {usual}",))
    length = window + BEYOND
    is_short = window <= PREFILLED and longest_prompt(config, length) == length
    if is_short and _fits(ranges, length=length, past=length + STEPS):
        positions = np.arange(length + STEPS)
        feed = _row(f"length {length}", tokens(length + STEPS), positions)
        return Crossings((feed,), (f"{name}, by a prompt of {length}",))
    gap = window - usual // 2  # the first step sees the second half of the prompt, each further one less
    past = usual + gap + STEPS
    if gap < 1 or not _fits(ranges, past=past):
        limit = f"there is room for {ranges.past[2]}" if ranges else f"the context is {context}"
        return Crossings(missed=(f"{name}: it needs {past} tokens, and {limit}",))
    feed = _row(f"cache of {past}", tokens(usual + STEPS), np.arange(usual + STEPS), gap=gap)
    return Crossings((feed,), (f"{name}, by a cache with {gap} masked places",))


def window_of(config: Config) -> int | None:
    """The window that some layer has."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return None
    return window if "sliding_attention" in config.get("layer_types", ["sliding_attention"]) else None


def _switch(config: Config, tokens: Callable[[int], Array], ranges: Ranges | None) -> Crossings:
    """A prompt whose positions go beyond the original context, and whose last one already does."""
    switch, context = switch_of(config), config.get("max_position_embeddings", 2**31)
    if switch is None:
        return Crossings()
    name, last = f"the rope's switch at {switch} tokens", min(context, 2 * switch) - 1
    if last - STEPS < switch:
        return Crossings(missed=(f"{name}: the context ends at {context}",))
    return _far(name, last, config, tokens, ranges)


def _ropes(config: Config, tokens: Callable[[int], Array], ranges: Ranges | None) -> Crossings:
    """A prompt with far positions, where layers with a window have a rope of their own (Gemma 3)."""
    local, kinds = config.get("rope_local_base_freq"), config.get("layer_types", ())
    if local is None or not {"sliding_attention", "full_attention"} <= set(kinds):
        return Crossings()
    name = f"the windows' rope of base {local:g} and the other layers' of {config['rope_theta']:g}"
    return _far(name, min(config["max_position_embeddings"], FAR) - 1, config, tokens, ranges)


def _far(
    name: str, last: int, config: Config, tokens: Callable[[int], Array], ranges: Ranges | None
) -> Crossings:
    """A short prompt whose positions are spread up to `last`."""
    prompt = longest_prompt(config, PROMPT)
    if not _fits(ranges, length=prompt):
        return Crossings(missed=(f"{name}: the engine takes prompts of {ranges.length[2] if ranges else 0}",))
    spread = np.linspace(0, last - STEPS, prompt).round().astype(np.int64)
    positions = np.concatenate([spread, np.arange(last - STEPS + 1, last + 1)])
    feed = _row(f"positions to {last}", tokens(prompt + STEPS), positions)
    return Crossings((feed,), (f"{name}, by positions up to {last}",))


def switch_of(config: Config) -> int | None:
    """The length beyond which a rope scaling is another, or was made for."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "dynamic":
        return int(config["max_position_embeddings"])
    if kind not in ("llama3", "yarn", "longrope"):
        return None
    key = "original_max_position_embeddings"
    return int(scaling.get(key) or config.get(key) or config["max_position_embeddings"])


def _fits(ranges: Ranges | None, *, length: int = 1, past: int = 0) -> bool:
    """Whether an engine takes so many new and so many cached tokens."""
    return ranges is None or (length <= ranges.length[2] and past <= ranges.past[2])


def _row(name: str, ids: Array, positions: Array, gap: int = 0) -> Feed:
    """One row without padding; `gap` places of the cache after its prompt are masked."""
    mask = np.ones(len(ids) + gap, np.int64)
    mask[len(ids) - STEPS : len(ids) - STEPS + gap] = 0
    return Feed(name, ids[None], mask[None], positions.astype(np.int64)[None])
