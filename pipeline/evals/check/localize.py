"""Where a graph first leaves the reference: its residual stream after every sublayer, beside PyTorch's.

Legend: B batch, T tokens (prompt and decode steps), N unpadded tokens of a feed, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pipeline import store
from pipeline.engines.taps import tapped
from pipeline.evals.check.agreement import Agreements
from pipeline.evals.check.scripted import Feed, play
from pipeline.graphs import anatomy, graphfile
from pipeline.graphs.anatomy import MapJoin
from pipeline.models.quantisation import modules
from pipeline.models.reference import Reference
from pipeline.runtime.runner import Array, Runner
from pipeline.store.records import GraphRecord
from pipeline.types import CPU, Devices, Precision, Sublayer

_DIVERGED: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-3}
"""The relative error of a token's stream above which it diverges."""
_NOISE_FACTOR = 4.0
"""For fp16 the limit grows by this multiple of PyTorch's own error."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the stream first diverges.

    Attributes:
        where: 'layer 3 attn', 'layer 3 attn (compensation)' or 'layers 3-5 (compensation)' where a map stands
            in for it, 'the embedding', or 'the head' (after the last sublayer).
        error: max over the feed's unpadded tokens of ‖graph − reference‖ / ‖reference‖ there; None for the
            head.
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
        return (
            f"{self.where}: relative error {self.error:.1e} of the residual stream, limit {self.limit:.1e} "
            f"(feed: {self.feed})"
        )


@dataclass(frozen=True, slots=True)
class _Tap:
    """A value of the graph that is read.

    Attributes:
        where: what it is, in words.
        value: the value.
        expected: PyTorch's counterpart, [B, T, C].
        noisy: the same in fp16, for an fp16 graph.
    """

    where: str
    value: ir.Value
    expected: Array
    noisy: Array | None

    def limit(self, precision: Precision, mask: Array) -> float:
        """The relative error above which this value diverges."""
        noise = 0.0 if self.noisy is None else _error(self.noisy, self.expected, mask)
        return _DIVERGED[precision] + _NOISE_FACTOR * noise


class _TappedRunner(Runner):
    """A runner that keeps the tapped values of every call and hands on the other outputs."""

    def __init__(self, inner: Runner, names: list[str]) -> None:
        self.inner, self.path, self.inputs = inner, inner.path, inner.inputs
        self.outputs = {name: info for name, info in inner.outputs.items() if name not in names}
        self.values: dict[str, list[Array]] = {name: [] for name in names}

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        outputs = self.inner.infer(feeds, [*(wanted or self.outputs), *self.values])
        for name, values in self.values.items():
            values.append(outputs.pop(name))
        return outputs


def place(path: Path, folder: Path, feeds: list[Feed], agreements: Agreements, devices: Devices = CPU) -> str:
    """The first sublayer that diverges, in words, on the feed that failed first (else the one padded left).

    Args:
        path: a graph, or an engine, whose inner values cannot be read.
        folder: the checkpoint.
        feeds: those that were played.
        agreements: feed → output → how near it is.
        devices: that the graph and PyTorch run on.
    """
    if path.suffix != ".onnx":
        return (
            "an engine's inner values cannot be read; run `pipeline check --localize` on the graph that it "
            "was built from"
        )
    failed = [feed for feed in feeds if not all(agreements[feed.name].values())]
    if failed and all(feed.gap for feed in failed):
        return "attention beyond the sliding window: no other feed fails"
    failed = [feed for feed in failed if not feed.gap]
    if failed and not any(feed.attention_mask.all() for feed in failed) and _counts_padding(path):
        return "padding: the graph takes no position_ids, and counts padding's places as positions"
    divergence = first_divergence(path, folder, failed[0] if failed else feeds[-2], devices)
    wrong_caches = sorted(
        int(name.split(".")[1])
        for outputs in agreements.values()
        for name, agreement in outputs.items()
        if "present." in name and not agreement
    )
    if divergence.error is None and wrong_caches:
        # Noise hid it in the stream, but a wrong cache tensor is not the head's fault.
        return (
            f"layer {wrong_caches[0]} attn or the sublayer before it: its keys or values are the first to "
            "fail; the residual stream does not show the place"
        )
    return str(divergence)


def _counts_padding(path: Path) -> bool:
    """Whether a graph makes its positions itself, as optimum's of some architectures (Gemma) do."""
    return "position_ids" not in {value.name for value in graphfile.load(path).graph.inputs}


def first_divergence(path: Path, folder: Path, feed: Feed, devices: Devices = CPU) -> Divergence:
    """Plays the feed on the graph with its residual stream exposed, and names the first divergence.

    Args:
        path: a graph with its sidecar.
        folder: the checkpoint.
        feed: what to play.
        devices: that the graph and PyTorch run on.

    Raises:
        UserError: the joins of the graph are not recognised.
    """
    sidecar = store.graph_sidecar(path)
    model = graphfile.load(path)
    overlays = modules.overlays_of(path)

    def reference(dtype: Precision) -> Reference:
        return Reference(folder, sidecar.skip_set, dtype, overlays, device=devices.torch)

    taps = _taps(model, sidecar, feed, reference)
    by_name = {tap.value.name or "": tap for tap in taps}
    with tapped(path, model, [tap.value for tap in taps], devices.graphs, exact=True) as inner:
        runner = _TappedRunner(inner, list(by_name))
        play(runner, feed.arrays)
    batch = feed.input_ids.shape[0]
    for name, tap in by_name.items():
        steps = [step.reshape(batch, -1, tap.expected.shape[-1]) for step in runner.values[name]]
        error = _error(np.concatenate(steps, axis=1), tap.expected, feed.attention_mask)
        limit = tap.limit(sidecar.precision, feed.attention_mask)
        if not error <= limit:  # NaN too
            return Divergence(tap.where, error, limit, feed.name)
    return Divergence("the head", None, None, feed.name)


def _taps(
    model: ir.Model, sidecar: GraphRecord, feed: Feed, reference: Callable[[Precision], Reference]
) -> list[_Tap]:
    """The stream before the first sublayer and after each, and after what stands in for others, in order."""
    skip = sidecar.skip_set
    joins, constants = anatomy.stages(model, sidecar.num_layers, skip), anatomy.constants(model)
    inputs = (feed.input_ids, feed.attention_mask, feed.position_ids)
    streams, branches, entering = reference("fp32").trace(*inputs)
    noisy = None
    if sidecar.precision == "fp16":
        noisy = reference("fp16").trace(*inputs)
    taps = []
    if joins:
        start = anatomy.stream_before(joins[0])
        taps.append(_Tap("the embedding", start, entering, noisy[2] if noisy else None))
    shared = {id(join.stream) for join in joins if sum(other.stream is join.stream for other in joins) > 1}
    for join in joins:
        # Branches that are added up before they join the stream can only be told apart as branches; a bias
        # among them is no value of every token.
        summed = id(join.stream) in shared
        if summed and join.branch in constants:
            continue
        where, sublayer = _words(join)
        noise = None
        if noisy:
            noise = (noisy[1] if summed else noisy[0])[sublayer]
        value = join.branch if summed else join.stream
        taps.append(_Tap(where, value, (branches if summed else streams)[sublayer], noise))
    return taps


def _words(join: anatomy.Join | MapJoin) -> tuple[str, Sublayer]:
    """(what joins the stream, the sublayer under which the reference has the stream after it)."""
    if not isinstance(join, MapJoin):
        return f"layer {join.layer} {join.kind}", join.sublayer
    place = join.place
    if place.kind == "block":
        return f"{place.layers} (compensation)", (place.first, "mlp")
    return f"layer {place.first} {place.kind} (compensation)", place.sublayers[0]


def _error(stream: Array, expected: Array, mask: Array) -> float:
    """The maximum over the unpadded tokens of ‖stream − expected‖ / ‖expected‖, of [B, T, C]."""
    kept = mask == 1
    a, b = stream[kept].astype(np.float64), expected[kept].astype(np.float64)
    return float((np.linalg.norm(a - b, axis=1) / (np.linalg.norm(b, axis=1) + 1e-30)).max())
