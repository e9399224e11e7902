"""TensorRT and TensorRT-RTX behind one adapter: parse and build; `runtime/tensorrt.py` runs what was built.

TensorRT-RTX builds ahead of time on any CPU; engines of either run on an NVIDIA GPU only. Networks are strongly typed:
precision lives in the graph (TensorRT 11 has no precision flags). What only a GPU can show was written from NVIDIA's
documentation (TensorRT 11, "Refitting an Engine", "Working with Dynamic Shapes") and is marked `gpu` in the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import store
from pipeline.runtime.tensorrt_library import Profile, Range, Shape, library, logger_of, one_line
from pipeline.types import UserError

MAX_WANTED = 128
"""K at most: positions whose logits an engine gives at once. Every one costs B·V numbers of activation memory."""


def ranges(folder: Path, batch: Range, length: Range, past: Range) -> dict[str, list[int]]:
    """The ranges of an engine: no longer than the model's context.

    Args:
        folder: of the checkpoint.
        batch, length, past: of B, of S in prefill, and of P.

    Returns:
        "batch", "length", "past" and "wanted" (K) → minimum, optimum, maximum.

    Raises:
        UserError: one is not in ascending order.
    """
    for option, (low, best, high), least in (
        ("--batch", batch, 1),
        ("--length", length, 1),
        ("--past", past, 0),
    ):
        if not least <= low <= best <= high:
            raise UserError(
                f"{option} {low},{best},{high} is not min,opt,max in ascending order from {least}"
            )
    context = store.read_json(folder / "config.json").get("max_position_embeddings")
    cut = {"length": list(length), "past": list(past)}
    if isinstance(context, int):
        cut = {"length": [min(n, context) for n in length], "past": [min(n, context - 1) for n in past]}
    return {"batch": list(batch), **cut, "wanted": [1, 1, min(MAX_WANTED, cut["length"][2])]}


class Builder:
    """One build with one backend. TensorRT's own words are kept in `lines`, newest last."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.trt = library(backend)
        self.logger = logger_of(self.trt)
        self.lines: list[str] = self.logger.lines
        self.lines.clear()

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def targets(self) -> list[str]:
        """The compute capabilities that TensorRT-RTX can build for, as 'sm80'."""
        names = [name for name in dir(self.trt.ComputeCapability) if name.startswith("SM")]
        return sorted((name.lower() for name in names), key=lambda name: int(name[2:]))

    def parse(self, graph: Path, decomposable: bool) -> None:
        """Reads the graph into a network; external weights resolve beside the file.

        Raises:
            UserError: the parser refuses it; names node, operator and TensorRT's reason.
        """
        trt = self.trt
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, self.logger)
        with _native_stderr(self.lines):
            parsed = self.parser.parse_from_file(str(graph))
        if not parsed:
            errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
            named = bool(errors) and bool(errors[0].node_name() or errors[0].node_operator())
            where = f"node {errors[0].node_name()!r} ({errors[0].node_operator()}): " if named else ""
            raise UserError(
                f"{self.backend} cannot parse {graph}: {where}{one_line(errors[0].desc()) if errors else self.first_error()}"
            )
        if decomposable:
            self._decompose_attention()

    def _decompose_attention(self) -> None:
        """FP32 attention has no fused kernel: allow TensorRT to take it apart (the API's only way to say so)."""
        for layer in (self.network.get_layer(i) for i in range(self.network.num_layers)):
            if layer.type == self.trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = self.trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def inputs(self) -> dict[str, Shape]:
        """Network inputs; -1 is dynamic."""
        tensors = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        return {tensor.name: tuple(tensor.shape) for tensor in tensors}

    def layers(self) -> dict[str, int]:
        """How many layers of each type the network has."""
        kinds = (
            str(self.network.get_layer(i).type).removeprefix("LayerType.")
            for i in range(self.network.num_layers)
        )
        return dict(Counter(kinds).most_common())

    def memory(self) -> dict[str, list[int]]:
        """What the builder said of GPU memory, in bytes: activations of each profile, weights of the engine."""
        said = re.findall(r"Total (Activation|Weights) Memory: (\d+) bytes", "\n".join(self.lines))
        return {
            f"{kind.lower()}_bytes": [int(size) for what, size in said if what == kind]
            for kind in ("Activation", "Weights")
        }

    def first_error(self) -> str:
        """TensorRT's first error, which is the cause of the others; that the CPU has no CUDA driver is none."""
        errors = (
            line
            for line in self.lines
            if line.startswith(("ERROR", "INTERNAL_ERROR")) and "catchCudaError" not in line
        )
        return one_line(next(errors, "no reason given"))

    def build(
        self,
        profiles: Sequence[Profile],
        targets: Sequence[str],
        strip_weights: bool,
        timing_cache: Path | None,
    ) -> memoryview:
        """The serialised engine.

        Raises:
            UserError: the builder fails; gives its first error.
        """
        trt, config = self.trt, self.builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; what the graph says is FP32 stays FP32
        for shapes in profiles:
            profile = self.builder.create_optimization_profile()
            for name, (low, best, high) in shapes.items():
                profile.set_shape(name, low, best, high)
            config.add_optimization_profile(profile)
        if self.backend == "tensorrt-rtx":
            config.num_compute_capabilities = len(targets)
            for k, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), k)
        if strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        if timing_cache is not None:
            known = timing_cache.read_bytes() if timing_cache.is_file() else b""
            # A cache of another GPU or version is refused.
            if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        with _native_stderr(self.lines):
            plan = self.builder.build_serialized_network(self.network, config)
        if plan is None:
            raise UserError(f"{self.backend} cannot build this network: {self.first_error()}")
        if timing_cache is not None:
            with store.atomic(timing_cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        return memoryview(plan)


@contextlib.contextmanager
def _native_stderr(lines: list[str]) -> Iterator[None]:
    """Puts what parser and compiler write to the process's stderr, past TensorRT's logger, with the logger's lines."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            lines += [f"STDERR {line}" for line in caught.read().decode(errors="replace").splitlines()]
