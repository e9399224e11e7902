"""An engine on the GPU: TensorRT or TensorRT-RTX through Polygraphy, and weights put back into a stripped plan."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime.runner import Array, Limits, Runner, TensorInfo
from pipeline.runtime.tensorrt_library import Profile, gpu_target, library, logger_of, one_line
from pipeline.types import UserError


def _polygraphy(backend: str) -> Any:
    """Polygraphy's TrtRunner class, speaking to this backend.

    Polygraphy chooses its library by an environment variable when it is first imported, and `pipeline check` has imported
    it before an artefact is opened: so its lazy handles are pointed anew wherever they point at the other library.
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
    """An engine on the GPU, through Polygraphy's TrtRunner: one context a profile, picked by the shapes of the feeds.

    Raises:
        UserError: this machine has no GPU or lacks the backend in the version that built the plan.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.backend = path, plan.backend
        if gpu_target() is None:
            raise UserError(
                f"{path} runs on an NVIDIA GPU only, and none is seen here; a graph (.onnx) runs on the CPU"
            )
        trt = library(self.backend)
        if trt.__version__ != plan.version:
            raise UserError(
                f"{path} was built by {plan.backend} {plan.version}, and {trt.__version__} is installed; build it again"
            )
        logger = logger_of(trt)
        logger.lines.clear()
        self.engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            why = one_line(logger.lines[-1] if logger.lines else "no reason given")
            raise UserError(
                f"{path}, built for {'+'.join(plan.targets)}, does not load on this {gpu_target()}: {why}"
            )
        if plan.weights is not None:
            refit(trt, self.engine, plan.weights)
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
        given = {name: np.ascontiguousarray(feeds[name], info.dtype) for name, info in self.inputs.items()}
        context = self.contexts[pick_profile(self.profiles, given)]
        _polygraphy(self.backend)  # an engine of the other backend may have run in between
        # Types were made right above, and TensorRT itself refuses shapes; only what is wanted leaves the GPU.
        outputs = self._try(lambda: context.infer(given, check_inputs=False, copy_outputs_to_host=False))
        return {name: outputs[name].numpy() for name in wanted or self.outputs}

    def _try(self, action: Callable[[], Any]) -> Any:
        """What the action returns; Polygraphy's and CUDA's errors become one line."""
        from polygraphy.exception import PolygraphyException

        try:
            return action()
        except (PolygraphyException, OSError) as error:
            raise UserError(f"{self.path} cannot run here: {one_line(error)}") from error

    def close(self) -> None:
        for context in self.contexts:
            context.deactivate()
        self.contexts = []


def pick_profile(profiles: Sequence[Profile], feeds: Mapping[str, Array]) -> int:
    """The profile whose ranges hold the feeds and whose optimum is nearest (least sum of relative differences).

    Raises:
        UserError: none holds them.
    """

    def distance(profile: Profile) -> float:
        apart = 0.0
        for name, array in feeds.items():
            shape, (low, best, high) = array.shape, profile[name]
            if any(not small <= d <= large for small, d, large in zip(low, shape, high, strict=True)):
                return float("inf")
            apart += sum(abs(d - b) / max(d, b, 1) for d, b in zip(shape, best, strict=True))
        return apart

    distances = [distance(profile) for profile in profiles]
    if min(distances) == float("inf"):
        shapes = {
            name: array.shape for name, array in feeds.items() if not name.startswith("past_key_values.")
        }
        raise UserError(
            f"the engine was not built for {one_line(shapes)}; build it with wider --batch, --length or --past "
            f"(logits_positions takes {profiles[0].get('logits_positions', ['all'])[-1]} at most)"
        )
    return int(np.argmin(distances))


def refit(trt: Any, engine: Any, graph: Path) -> None:
    """Puts the weights of the graph back into an engine that was built without them.

    Raises:
        UserError: a weight is missing or refused.
    """
    refitter = trt.Refitter(engine, logger_of(trt))
    parser = trt.OnnxParserRefitter(refitter, logger_of(trt))
    if not parser.refit_from_file(str(graph)):
        why = one_line(parser.get_error(0).desc()) if parser.num_errors else "refused"
        raise UserError(f"the weights of {graph} do not fit the engine: {why}")
    if missing := refitter.get_missing_weights():
        raise UserError(
            f"{graph} lacks {len(missing)} of the weights that the engine needs, {missing[0]} among them"
        )
    if not refitter.refit_cuda_engine():
        raise UserError(f"the engine could not be refitted with {graph}")
