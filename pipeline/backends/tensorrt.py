"""TensorRT and TensorRT-RTX behind one adapter: parse, build, run.

TensorRT-RTX builds ahead of time on any CPU; engines of either run on an NVIDIA GPU only. Networks are strongly typed:
precision lives in the graph (TensorRT 11 has no precision flags). What only a GPU can show was written from NVIDIA's
documentation (TensorRT 11, "Refitting an Engine", "Working with Dynamic Shapes") and is marked `gpu` in the tests.
"""

from __future__ import annotations

import ctypes.util
import importlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.backends import Array, Runner, TensorInfo
from pipeline.types import UserError

BACKENDS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_ADD = {"tensorrt-rtx": "pip install 'skip-pipeline[rtx]'", "tensorrt": "pip install 'skip-pipeline[tensorrt]'"}
Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Input name → its shape at minimum, optimum and maximum."""


def library(backend: str) -> Any:
    """The Python module of a backend, under the name that Polygraphy expects.

    Raises:
        UserError: unknown backend, or not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"no backend {backend!r}; choose from {', '.join(BACKENDS)}")
    name = BACKENDS[backend]
    for candidate in (name, f"{name}_bindings"):  # the RTX wheels bring the bindings without the front package
        try:
            module = importlib.import_module(candidate)
        except ModuleNotFoundError:
            continue
        sys.modules.setdefault(name, module)
        return module
    raise UserError(f"{backend} is not installed; run `{_ADD[backend]}`")


def gpu_target() -> str | None:
    """The compute capability of the first GPU as 'sm89', None without one."""
    if shutil.which("nvidia-smi") is None or ctypes.util.find_library("cuda") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return "sm" + answer.stdout.split()[0].replace(".", "") if answer.returncode == 0 and answer.stdout.split() else None


class Builder:
    """One build with one backend. TensorRT's own words are kept in `lines`, newest last."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.trt = library(backend)
        self.logger = _logger(self.trt)
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
        if not self.parser.parse_from_file(str(graph)):
            errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
            where = f"node {errors[0].node_name()!r} ({errors[0].node_operator()}): " if errors else ""
            what = errors[0].desc().strip() if errors else "no reason given"
            raise UserError(f"{self.backend} cannot parse {graph}: {where}{what}")
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
        kinds = (str(self.network.get_layer(i).type).removeprefix("LayerType.") for i in range(self.network.num_layers))
        return dict(Counter(kinds).most_common())

    def build(
        self, profiles: Sequence[Profile], targets: Sequence[str], strip_weights: bool, timing_cache: Path | None
    ) -> bytes:
        """The serialised engine.

        Raises:
            UserError: the builder fails; gives its last error.
        """
        trt, config = self.trt, self.builder.create_builder_config()
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
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        plan = self.builder.build_serialized_network(self.network, config)
        if plan is None:
            errors = [line for line in self.lines if line.startswith(("ERROR", "INTERNAL_ERROR"))]
            raise UserError(f"{self.backend} cannot build this network: {errors[-1] if errors else 'no reason given'}")
        if timing_cache is not None:
            with store.atomic(timing_cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        return bytes(plan)


_loggers: dict[str, Any] = {}


def _logger(trt: Any) -> Any:
    """One logger a library: TensorRT keeps the first that it is given for the life of the process."""
    if trt.__name__ not in _loggers:

        class Collector(trt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.lines: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity != trt.ILogger.Severity.VERBOSE:
                    self.lines.append(f"{str(severity).rsplit('.', 1)[-1]} {message}")

        _loggers[trt.__name__] = Collector()
    return _loggers[trt.__name__]


class TrtRunner(Runner):
    """An engine on the GPU, through Polygraphy's TrtRunner: one context a profile, picked by the shapes of the feeds."""

    def __init__(self, path: Path, backend: str, profiles: Sequence[Profile], graph: Path, stripped: bool) -> None:
        self.path = path
        trt = library(backend)
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if backend == "tensorrt-rtx" else "0"  # read when it is imported
        from polygraphy.backend.trt import TrtRunner as PolygraphyRunner

        self.engine = trt.Runtime(_logger(trt)).deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise UserError(f"{path}: this machine's {backend} cannot load the plan; build it again here")
        if stripped:
            refit(trt, self.engine, graph)
        self.profiles = profiles
        self.inputs, self.outputs = {}, {}
        for name in (self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)):
            shape = tuple(d if d >= 0 else None for d in self.engine.get_tensor_shape(name))
            info = TensorInfo(np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))), shape)
            is_input = self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = info
        self.contexts = [PolygraphyRunner(self.engine, optimization_profile=k) for k in range(len(profiles))]
        for context in self.contexts:
            context.activate()

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        outputs = self.contexts[pick_profile(self.profiles, feeds)].infer(dict(feeds))
        # Polygraphy reuses its host buffers in the next call
        return {name: np.array(outputs[name]) for name in wanted or self.outputs}

    def close(self) -> None:
        for context in self.contexts:
            context.deactivate()


def pick_profile(profiles: Sequence[Profile], feeds: Mapping[str, Array]) -> int:
    """The profile whose ranges hold the feeds and whose optimum is nearest (fewest elements apart).

    Raises:
        UserError: none holds them.
    """

    def distance(profile: Profile) -> float:
        apart = 0.0
        for name, (low, best, high) in profile.items():
            shape = feeds[name].shape
            if any(not small <= d <= large for small, d, large in zip(low, shape, high, strict=True)):
                return float("inf")
            apart += sum(abs(d - b) / max(d, b, 1) for d, b in zip(shape, best, strict=True))
        return apart

    distances = [distance(profile) for profile in profiles]
    if min(distances) == float("inf"):
        shapes = {name: array.shape for name, array in feeds.items() if not name.startswith("past_key_values.")}
        raise UserError(f"the engine was not built for shapes {shapes}; build it with wider --batch, --length or --past")
    return int(np.argmin(distances))


def refit(trt: Any, engine: Any, graph: Path) -> None:
    """Puts the weights of the graph back into an engine that was built without them.

    Raises:
        UserError: a weight is missing or refused.
    """
    refitter = trt.Refitter(engine, _logger(trt))
    parser = trt.OnnxParserRefitter(refitter, _logger(trt))
    if not parser.refit_from_file(str(graph)):
        raise UserError(
            f"the weights of {graph} do not fit the engine: {parser.get_error(0).desc() if parser.num_errors else 'refused'}"
        )
    if missing := refitter.get_missing_weights():
        raise UserError(f"{graph} lacks weights that the engine needs: {missing[0]} and {len(missing) - 1} more")
    if not refitter.refit_cuda_engine():
        raise UserError(f"the engine could not be refitted with {graph}")


def open_runner(path: Path, **_: Any) -> TrtRunner:
    """A plan as a runner.

    Raises:
        UserError: this machine has no GPU or lacks the backend.
    """
    record = store.read_sidecar(path)
    if gpu_target() is None:
        raise UserError(f"{path} runs on an NVIDIA GPU only, and none is seen here; a graph (.onnx) runs on the CPU")
    profiles: list[Any] = [{n: tuple(map(tuple, ranges)) for n, ranges in profile.items()} for profile in record["profiles"]]
    return TrtRunner(path, record["backend"], profiles, Path(record["folder"]) / record["graph"]["file"], record["stripped"])
