"""TensorRT and TensorRT-RTX behind one adapter: parse and build; `runtime/tensorrt.py` runs what was built.

TensorRT-RTX builds ahead of time on any CPU; engines of either run on an NVIDIA GPU only. Networks are
strongly typed: precision lives in the graph (TensorRT 11 has no precision flags). What only a GPU can show
was written from NVIDIA's documentation (TensorRT 11, "Refitting an Engine", "Working with Dynamic Shapes");
its tests are marked `gpu`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline import store
from pipeline.engines.layout import Source
from pipeline.runtime.tensorrt_library import Profile, Shape, library, logger_of, one_line, started
from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What the builder says of GPU memory, in bytes.

    Attributes:
        activations: of each profile.
        weights: of the engine.
    """

    activations: tuple[int, ...]
    weights: tuple[int, ...]


class Builder:
    """One build with one backend.

    Attributes:
        backend: 'tensorrt-rtx' or 'tensorrt'.
        lines: TensorRT's log, newest last.

    Raises:
        UserError: the backend is not installed.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.trt = library(backend)
        self.logger = logger_of(self.trt)
        self.lines: list[str] = self.logger.lines
        self.lines.clear()

    @property
    def version(self) -> str:
        """Of the backend."""
        return str(self.trt.__version__)

    def targets(self) -> list[str]:
        """The compute capabilities that TensorRT-RTX can build for, as 'sm80'."""
        names = [name for name in dir(self.trt.ComputeCapability) if name.startswith("SM")]
        return sorted((name.lower() for name in names), key=lambda name: int(name[2:]))

    def parse(self, graph: Path, decomposable: bool, source: Source | None = None) -> None:
        """Reads the graph into a network, its external weights from the files beside it, which it maps.

        Args:
            graph: an ONNX file.
            decomposable: attention may be taken apart into other operators.
            source: what is read instead of the file; its weights must lie there until `build` ends.

        Raises:
            UserError: the parser refuses it; names node, operator and TensorRT's reason.
        """
        trt = self.trt
        self.builder = started(trt, "Builder")
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, self.logger)
        with _native_stderr(self.lines):
            parsed = self._parse_source(graph, source) if source else self.parser.parse_from_file(str(graph))
        if not parsed:
            errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
            named = bool(errors) and bool(errors[0].node_name() or errors[0].node_operator())
            where = f"node {errors[0].node_name()!r} ({errors[0].node_operator()}): " if named else ""
            reason = one_line(errors[0].desc()) if errors else self.first_error()
            raise UserError(f"{self.backend} cannot parse {graph}: {where}{reason}")
        if decomposable:
            self._decompose_attention()

    def _parse_source(self, graph: Path, source: Source) -> bool:
        """Whether a graph in memory is parsed, with weights from memory."""
        parser = self.parser
        return (
            parser.load_model_proto(source.proto, str(graph))
            and all(
                parser.load_initializer(name, weight.ctypes.data, weight.nbytes)
                for name, weight in source.weights.items()
            )
            and parser.parse_model_proto()
        )

    def _decompose_attention(self) -> None:
        """Allows TensorRT to take attention apart, for which FP32 has no fused kernel."""
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

    def memory(self) -> EngineMemory:
        """GPU memory of the engine, from the builder's log."""
        log = "\n".join(self.lines)
        sizes = {
            kind: tuple(int(size) for size in re.findall(rf"Total {kind} Memory: (\d+) bytes", log))
            for kind in ("Activation", "Weights")
        }
        return EngineMemory(sizes["Activation"], sizes["Weights"])

    def first_error(self) -> str:
        """TensorRT's first error, the cause of the others; a CPU without a CUDA driver is no error."""
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
        plan: Path,
    ) -> None:
        """Writes the serialised engine, piece by piece: it is never in memory as a whole.

        Args:
            profiles: shapes of the inputs, one mapping a profile.
            targets: compute capabilities of TensorRT-RTX; TensorRT builds for the GPU here.
            strip_weights: leave the weights out.
            timing_cache: read before the build and written after it; None for no cache.
            plan: the file.

        Raises:
            UserError: the builder fails; gives its first error.
            OSError: the plan cannot be written.
        """
        config = self._config(profiles, targets, strip_weights)
        if timing_cache is not None:
            known = timing_cache.read_bytes() if timing_cache.is_file() else b""
            timings = config.create_timing_cache(known)  # None where it cannot be read
            # A cache of another GPU or version is refused.
            if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        with plan.open("wb") as file:
            writer = _plan_stream(self.trt, file)
            with _native_stderr(self.lines):
                done = self.builder.build_serialized_network_to_stream(self.network, config, writer)
            if writer.error is not None:
                raise writer.error
        if not done:
            raise UserError(f"{self.backend} cannot build this network: {self.first_error()}")
        if timing_cache is not None:
            with store.atomic(timing_cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))

    def _config(self, profiles: Sequence[Profile], targets: Sequence[str], strip_weights: bool) -> Any:
        """TensorRT's IBuilderConfig."""
        trt, config = self.trt, self.builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; what the graph says is FP32 stays FP32
        for shapes in profiles:
            profile = self.builder.create_optimization_profile()
            for name, (low, best, high) in shapes.items():
                profile.set_shape(name, low, best, high)
            if config.add_optimization_profile(profile) < 0:
                raise UserError(f"{self.backend} refuses the shapes {one_line(shapes)}: {self.first_error()}")
        if self.backend == "tensorrt-rtx":
            config.num_compute_capabilities = len(targets)
            for k, target in enumerate(targets):
                if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), k):
                    raise UserError(f"{self.backend} refuses the target {target}: {self.first_error()}")
        if strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        return config


def _plan_stream(trt: Any, file: IO[bytes]) -> Any:
    """TensorRT's IStreamWriter into a file."""

    class PlanStream(trt.IStreamWriter):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # none can pass through TensorRT, which ends where less is written
                self.error = self.error or error
                return 0

    return PlanStream()


@contextlib.contextmanager
def _native_stderr(lines: list[str]) -> Iterator[None]:
    """Appends to the log what parser and compiler write to the process's stderr, past TensorRT's logger."""
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
