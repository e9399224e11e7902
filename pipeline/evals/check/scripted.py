"""The script that `check` plays: the same tokens through an artefact and through PyTorch.

The artefact gets a prefill and then decodes on its own cache. Both sides get the same feed and give outputs
of the same names, so that Polygraphy's Comparator can run them: `prefill/logits` [B, K, V], `decode/logits`
[B, STEPS, V], `present.{i}.key|value` [N, G, D] (the final cache without padding).

Legend: B batch, S tokens of the padded prompt, T = S + STEPS, K positions whose logits are compared,
V vocabulary, G key/value heads, D head dimension, N unpadded tokens of a feed.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from pipeline.models.config import Config
from pipeline.models.quantisation.modules import Overlay
from pipeline.models.reference import Reference
from pipeline.runtime.runner import Array, Runner
from pipeline.types import Precision, Provider, SkipSet

LENGTHS = (1, 50, 100)
"""Tokens of the prompts."""
STEPS = 8
"""Tokens that are decoded one by one."""
POSITIONS = 8
"""Positions of a prompt whose logits are compared, at most."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One feed of the script: prompt and continuation of every row.

    Attributes:
        name: in words.
        input_ids, position_ids: [B, T] each.
        attention_mask: [B, T], or longer: then so many places of the cache between prompt and continuation
            hold nothing, and are masked.
    """

    name: str
    input_ids: Array
    attention_mask: Array
    position_ids: Array

    @property
    def gap(self) -> int:
        """Masked places between prompt and continuation that are in the cache alone."""
        return int(self.attention_mask.shape[1] - self.input_ids.shape[1])

    @property
    def arrays(self) -> dict[str, Array]:
        """Input name → array."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def longest_prompt(config: Config, length: int) -> int:
    """The tokens of a prompt, fewer where the context is short.

    A prompt stays within the original context: beyond it rotary frequencies change, and a short prefill
    rightly differs from the whole pass.
    """
    keys = ("max_position_embeddings", "original_max_position_embeddings")
    context = min(config.get(key) or 10**9 for key in keys)
    return min(length, max(context - STEPS, 1))


def feeds(tokens: Array, lengths: tuple[int, ...]) -> list[Feed]:
    """Single rows of every length, then all lengths in one batch, padded left, padded right.

    Args:
        tokens: [2 · len(lengths), max(lengths) + STEPS] int64; single rows and batch rows are different
            text.
        lengths: of the prompts, in tokens.
    """
    single = [_feed(f"length {n}", [row[: n + STEPS]], [n]) for n, row in zip(lengths, tokens, strict=False)]
    rows = [row[: n + STEPS] for n, row in zip(lengths, tokens[len(lengths) :], strict=True)]
    return [
        *single,
        _feed("batch padded left", rows, list(lengths)),
        _feed("batch padded right", rows, list(lengths), right=True),
    ]


def _feed(name: str, rows: list[Array], prompts: list[int], *, right: bool = False) -> Feed:
    """Rows of prompt + STEPS tokens as one batch.

    Padding on the right lies between prompt and continuation.
    """
    longest = max(prompts)
    ids = np.zeros((len(rows), longest + STEPS), np.int64)
    mask = np.zeros_like(ids)
    for b, (row, length) in enumerate(zip(rows, prompts, strict=True)):
        start = 0 if right else longest - length
        ids[b, start : start + length] = row[:length]
        mask[b, start : start + length] = 1
        ids[b, longest:], mask[b, longest:] = row[length:], 1
    return Feed(name, ids, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0))


def wanted_positions(prompt_mask: Array) -> Array:
    """Positions spread over each row's prompt, its last token always among them: [B, S] → [B, K]."""
    count = min(POSITIONS, prompt_mask.shape[1])
    rows = [np.flatnonzero(row) for row in prompt_mask]
    return np.stack(
        [
            row[np.linspace(0, len(row) - 1, count).round().astype(int)][-count:] if count > 1 else row[-1:]
            for row in rows
        ]
    )


def play(runner: Runner, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs to compare: a prefill, then STEPS tokens one by one on the runner's own cache.

    Args:
        runner: the artefact.
        feed: the three arrays of a `Feed`, [B, T].
    """
    ids, mask, positions = (feed[name] for name in ("input_ids", "attention_mask", "position_ids"))
    total = ids.shape[1]
    prompt, gap = total - STEPS, mask.shape[1] - total
    prefill, cache = runner.forward(
        ids[:, :prompt],
        attention_mask=mask[:, :prompt],
        position_ids=positions[:, :prompt],
        logits_positions=wanted_positions(mask[:, :prompt]),
    )
    if gap:  # the only pass through the host: elsewhere the cache stays with the runner
        wider = {name: np.pad(a, ((0, 0), (0, 0), (0, gap), (0, 0))) for name, a in cache.arrays().items()}
        cache = runner.cache_of(wider, cache.rows, cache.tokens + gap)
    steps = []
    for t in range(prompt, total):
        seen, position = mask[:, : gap + t + 1], positions[:, t : t + 1]
        logits, cache = runner.forward(ids[:, t : t + 1], cache, attention_mask=seen, position_ids=position)
        steps.append(logits)
    outputs = {"prefill/logits": prefill, "decode/logits": np.concatenate(steps, axis=1)}
    return outputs | {
        name.replace("past_key_values.", "present."): _unpadded(value, mask)
        for name, value in cache.arrays().items()
    }


def recompute(reference: Reference, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The same outputs as `play`, by one whole forward pass of PyTorch, or two with the gap in between."""
    mask = feed["attention_mask"]
    prompt = feed["input_ids"].shape[1] - STEPS
    wanted = wanted_positions(mask[:, :prompt])
    columns = [*np.unique(wanted), *range(prompt, prompt + STEPS)]
    logits, cache = reference.forward(feed["input_ids"], mask, feed["position_ids"], prompt, columns)
    places = np.searchsorted(columns, wanted)
    outputs = {
        "prefill/logits": np.take_along_axis(logits, places[:, :, None], axis=1),
        "decode/logits": logits[:, -STEPS:],
    }
    for layer, (keys, values) in cache.items():
        outputs[f"present.{layer}.key"] = _unpadded(keys, mask)
        outputs[f"present.{layer}.value"] = _unpadded(values, mask)
    return outputs


def _unpadded(cache: Array, mask: Array) -> Array:
    """The cache without padding: [B, G, T, D] → [N, G, D].

    A cache of another length than the mask stays whole, and fails by its shape.
    """
    return cache.transpose(0, 2, 1, 3)[mask == 1] if cache.shape[2] == mask.shape[1] else cache


class _Player(BaseRunner):
    """What both sides share: the inputs of the script, and the time that it takes."""

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for name in ("input_ids", "attention_mask", "position_ids"):
            metadata.add(name, np.dtype(np.int64), (None, None))
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = self.outputs(feed_dict)
        self.inference_time = time.perf_counter() - start
        return outputs

    @abstractmethod
    def outputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The named outputs of one feed."""


class ArtefactRunner(_Player):
    """A graph or an engine as a Polygraphy runner that plays the script."""

    def __init__(self, open_runner: Callable[[], Runner], name: str) -> None:
        super().__init__(name=name)
        self._open = open_runner

    def activate_impl(self) -> None:
        """Opens the artefact."""
        self._runner: Any = self._open()

    def deactivate_impl(self) -> None:
        """Closes it."""
        self._runner.close()
        del self._runner

    def outputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """As `play`."""
        return play(self._runner, feed)


class TorchRunner(_Player):
    """The PyTorch reference as a Polygraphy runner."""

    def __init__(
        self,
        folder: Path,
        skip: SkipSet,
        dtype: Precision,
        overlays: Sequence[Overlay] = (),
        device: Provider = "cpu",
        name: str = "",
    ) -> None:
        super().__init__(name=name or f"torch-{dtype}")
        self._arguments, self._device = (folder, skip, dtype, overlays), device

    def activate_impl(self) -> None:
        """Loads the model."""
        self._reference: Any = Reference(*self._arguments, device=self._device)

    def deactivate_impl(self) -> None:
        """Frees it."""
        del self._reference

    def outputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """As `recompute`."""
        return recompute(self._reference, feed)
