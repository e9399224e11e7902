"""Where a graph first leaves the reference: the residual stream after every sublayer, beside PyTorch's.

Legend: B batch, T tokens (prompt and decode steps), C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pipeline import store
from pipeline.engines.taps import stream_before, tapped
from pipeline.evals.check.scripted import Feed, play
from pipeline.graphs import anatomy, graphfile
from pipeline.models.reference import Reference
from pipeline.runtime.runner import Array, Runner
from pipeline.types import Precision

# Per precision: the relative error of a token's stream that is divergence; for fp16 also a multiple of PyTorch's own.
_DIVERGED: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-3}
_NOISE_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the stream first diverges.

    Attributes:
        where: 'layer 3 attn', 'the embedding', or 'the head' (after the last sublayer).
        error: max over the feed's unpadded tokens of ‖graph − reference‖ / ‖reference‖ there; None for the head.
        limit: above which that is divergence.
        feed: the feed that shows it.
    """

    where: str
    error: float | None
    limit: float | None
    feed: str

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.where}: no sublayer's residual output diverges (feed: {self.feed})"
        return f"{self.where}: relative error {self.error:.1e} of the residual stream, limit {self.limit:.1e} (feed: {self.feed})"


@dataclass(frozen=True, slots=True)
class _Tap:
    """A value of the graph that is read, what it is, and PyTorch's counterpart [B, T, C]."""

    where: str
    value: ir.Value
    expected: Array
    noisy: Array | None


class _Tapped(Runner):
    """A runner that keeps the tapped values of every call and hands on the rest."""

    def __init__(self, inner: Runner, names: list[str]) -> None:
        self.inner, self.path, self.inputs = inner, inner.path, inner.inputs
        self.outputs = {name: info for name, info in inner.outputs.items() if name not in names}
        self.seen: dict[str, list[Array]] = {name: [] for name in names}

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        found = self.inner.infer(feeds, [*(wanted or self.outputs), *self.seen])
        for name, values in self.seen.items():
            values.append(found.pop(name))
        return found


def first_divergence(path: Path, folder: Path, feed: Feed) -> Divergence:
    """Plays the feed on the graph with its residual stream exposed, and names the first place that leaves the reference.

    Args:
        path: a graph with its sidecar.
        folder: the checkpoint.
        feed: what to play.

    Raises:
        UserError: the joins of the graph are not found.
    """
    record = store.read_sidecar(path)
    precision: Precision = record["precision"]
    model = graphfile.load(path)
    taps = _taps(model, record, folder, feed, store.healed_weights(path))
    named = {tap.value.name or "": tap for tap in taps}
    with tapped(path, model, [tap.value for tap in taps]) as inner:
        runner = _Tapped(inner, list(named))
        play(runner, feed.arrays)
    batch = feed.input_ids.shape[0]
    for name, tap in named.items():
        steps = [step.reshape(batch, -1, tap.expected.shape[-1]) for step in runner.seen[name]]
        error = _error(np.concatenate(steps, axis=1), tap.expected, feed.attention_mask)
        limit = _DIVERGED[precision]
        if tap.noisy is not None:
            limit += _NOISE_FACTOR * _error(tap.noisy, tap.expected, feed.attention_mask)
        if not error <= limit:  # NaN too
            return Divergence(tap.where, error, limit, feed.name)
    return Divergence("the head", None, None, feed.name)


def _taps(
    model: ir.Model, record: dict[str, object], folder: Path, feed: Feed, healed: Path | None
) -> list[_Tap]:
    """The stream before the first sublayer and after each, in order."""
    variant = store.variant_of(record)
    joins = anatomy.find(model, int(str(record["num_layers"])), variant.skip)
    inputs = (feed.input_ids, feed.attention_mask, feed.position_ids)
    streams, branches, entering = Reference(folder, variant.skip, "fp32", healed).trace(*inputs)
    noisy = (
        Reference(folder, variant.skip, "fp16", healed).trace(*inputs)
        if variant.precision == "fp16"
        else None
    )
    taps = []
    if joins:
        taps.append(_Tap("the embedding", stream_before(joins[0]), entering, noisy[2] if noisy else None))
    shared = {id(join.stream) for join in joins if sum(other.stream is join.stream for other in joins) > 1}
    for join in joins:
        summed = (
            id(join.stream) in shared
        )  # branches that are added up before they join can only be told apart as branches
        part = join.sublayer
        expected = (branches if summed else streams)[part]
        theirs = (noisy[1] if summed else noisy[0])[part] if noisy else None
        taps.append(
            _Tap(f"layer {join.layer} {join.kind}", join.branch if summed else join.stream, expected, theirs)
        )
    return taps


def _error(found: Array, expected: Array, mask: Array) -> float:
    """max over the unpadded tokens of ‖found − expected‖ / ‖expected‖."""
    kept = mask == 1
    a, b = found[kept].astype(np.float64), expected[kept].astype(np.float64)
    return float((np.linalg.norm(a - b, axis=1) / (np.linalg.norm(b, axis=1) + 1e-30)).max())
