"""An engine on the GPU: TensorRT or TensorRT-RTX through Polygraphy; stripped plans are refitted."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime import tensorrt_library
from pipeline.runtime.runner import Array, Limits, Runner, TensorInfo
from pipeline.runtime.tensorrt_library import Profile, library, logger_of, one_line
from pipeline.types import UserError


def _polygraphy(backend: str) -> Any:
    """Polygraphy's TrtRunner class, set to this backend.

    Polygraphy chooses its library by an environment variable at its first import, and `pipeline check`
    imports it before an artefact is opened. So its lazy handles are replaced wherever they refer to the other
    library.
    """
    from polygraphy import config
    from polygraphy.mod.trt_importer import lazy_import_trt

    library(backend)
    rtx = backend == "tensorrt-rtx"
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(rtx))
    if rtx is not config.USE_TENSORRT_RTX:
        config.USE_TENSORRT_RTX = rtx
        for name, module in list(sys.modules.items()):
            if name.startswith("polygraphy.") and type(vars(module).get("trt")).__name__ == "LazyModule":
                module.trt = lazy_import_trt()  # type: ignore[attr-defined]
    return importlib.import_module("polygraphy.backend.trt").TrtRunner


@dataclass(frozen=True, slots=True)
class Plan:
    """What a runner must know of an engine's file.

    Attributes:
        backend, version: which library built it; the same one runs it.
        targets: compute capabilities that it was built for, as 'sm89'.
        profiles: input name → its shape at minimum, optimum and maximum; one mapping a profile.
        limits: the largest B, S, P and K.
        weights: the graph whose weights a stripped plan takes at load; None where the plan holds its own.
    """

    backend: str
    version: str
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    limits: Limits
    weights: Path | None = None


class TrtRunner(Runner):
    """An engine on the GPU, through Polygraphy's TrtRunner. A context for each profile; shapes pick one.

    Args:
        path: the plan.
        plan: what its sidecar says.

    Raises:
        UserError: this machine has no GPU or lacks the backend in the version that built the plan.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.backend = path, plan.backend
        self.engine, trt = _load(path, plan)
        self.profiles, self.limits = plan.profiles, plan.limits
        self.inputs, self.outputs = {}, {}
        for name in (self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)):
            shape = tuple(d if d >= 0 else None for d in self.engine.get_tensor_shape(name))
            info = TensorInfo(np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))), shape)
            is_input = self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = info
        runner = _polygraphy(self.backend)
        self.contexts = [runner(self.engine, optimization_profile=k) for k in range(len(self.profiles))]
        for context in self.contexts:
            self._try(context.activate)

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        """Runs the engine on just its inputs; `wanted` names the outputs, all by default."""
        arrays = {name: np.ascontiguousarray(feeds[name], info.dtype) for name, info in self.inputs.items()}
        context = self.contexts[pick_profile(self.profiles, arrays)]
        _polygraphy(self.backend)  # an engine of the other backend may have run in between
        # The types are right by now, and TensorRT refuses wrong shapes. Only wanted outputs leave the GPU.
        outputs = self._try(lambda: context.infer(arrays, check_inputs=False, copy_outputs_to_host=False))
        return {name: outputs[name].numpy() for name in wanted or self.outputs}

    def _try(self, action: Callable[[], Any]) -> Any:
        """What the action returns; Polygraphy's and CUDA's errors become one line."""
        from polygraphy.exception import PolygraphyException

        try:
            return action()
        except (PolygraphyException, OSError) as error:
            raise UserError(f"{self.path} cannot run here: {one_line(error)}") from error

    def close(self) -> None:
        """Frees the contexts and their memory on the GPU."""
        for context in self.contexts:
            context.deactivate()
        self.contexts = []


def _load(path: Path, plan: Plan) -> tuple[Any, Any]:
    """The engine, its weights in it, and the library's module."""
    target = tensorrt_library.gpu_target()
    if target is None:
        raise UserError(
            f"{path} runs on an NVIDIA GPU only, and none is seen here; a graph (.onnx) runs on the CPU"
        )
    trt = library(plan.backend)
    if trt.__version__ != plan.version:
        raise UserError(
            f"{path} was built by {plan.backend} {plan.version}, and {trt.__version__} is installed; "
            "build it again"
        )
    logger = logger_of(trt)
    logger.lines.clear()
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = one_line(logger.lines[-1] if logger.lines else "no reason given")
        raise UserError(
            f"{path}, built for {'+'.join(plan.targets)}, does not load on this {target}: {reason}"
        )
    if plan.weights is not None:
        refit(trt, engine, plan.weights)
    return engine, trt


def pick_profile(profiles: Sequence[Profile], feeds: Mapping[str, Array]) -> int:
    """Which profile to run: of those whose ranges hold the feeds, the one with the nearest optimum.

    The distance is the sum of the dimensions' relative differences.

    Args:
        profiles: of the engine.
        feeds: the inputs' arrays.

    Returns:
        Its index.

    Raises:
        UserError: the ranges of none hold them.
    """

    def distance(profile: Profile) -> float:
        total = 0.0
        for name, array in feeds.items():
            shape, (low, best, high) = array.shape, profile[name]
            if any(not small <= d <= large for small, d, large in zip(low, shape, high, strict=True)):
                return float("inf")
            total += sum(abs(d - b) / max(d, b, 1) for d, b in zip(shape, best, strict=True))
        return total

    distances = [distance(profile) for profile in profiles]
    if min(distances) == float("inf"):
        shapes = {
            name: array.shape for name, array in feeds.items() if not name.startswith("past_key_values.")
        }
        raise UserError(
            f"the engine was not built for {one_line(shapes)}; "
            "build it with wider --batch, --length or --past "
            f"(logits_positions takes {profiles[0].get('logits_positions', ['all'])[-1]} at most)"
        )
    return int(np.argmin(distances))


def refit(trt: Any, engine: Any, graph: Path) -> None:
    """Puts the weights of the graph back into an engine that was built without them.

    Args:
        trt: the library's module.
        engine: of its.
        graph: that it was built from.

    Raises:
        UserError: a weight is missing or refused.
    """
    refitter = trt.Refitter(engine, logger_of(trt))
    parser = trt.OnnxParserRefitter(refitter, logger_of(trt))
    if not parser.refit_from_file(str(graph)):
        reason = one_line(parser.get_error(0).desc()) if parser.num_errors else "refused"
        raise UserError(f"the weights of {graph} do not fit the engine: {reason}")
    if missing := refitter.get_missing_weights():
        raise UserError(
            f"{graph} lacks {len(missing)} of the weights that the engine needs, {missing[0]} among them"
        )
    if not refitter.refit_cuda_engine():
        raise UserError(f"the engine could not be refitted with {graph}")
