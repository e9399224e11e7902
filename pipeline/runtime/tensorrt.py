"""An engine on the GPU, in TensorRT or TensorRT-RTX; stripped plans are refitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime import tensorrt_library
from pipeline.runtime.cache import Cache
from pipeline.runtime.device_cache import Block, CacheLayout, DeviceCache, DeviceMemory
from pipeline.runtime.runner import Array, Limits, Pass, Runner, TensorInfo
from pipeline.runtime.tensorrt_library import Profile, Shape, library, logger_of, one_line, started
from pipeline.types import UserError


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
    """An engine on the GPU. A context for each profile; shapes pick one. Caches stay in the GPU's memory.

    Args:
        path: the plan.
        plan: what its sidecar says.

    Raises:
        UserError: this machine has no GPU or lacks the backend in the version that built the plan.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.engine, self.trt = _load(path, plan)
        self.profiles, self.limits = plan.profiles, plan.limits
        self.inputs, self.outputs = {}, {}
        for name in (self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)):
            shape = tuple(d if d >= 0 else None for d in self.engine.get_tensor_shape(name))
            info = TensorInfo(np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name))), shape)
            is_input = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = info
        self.layout = CacheLayout(self.cache_shapes(), self.max_tokens)
        self._refuse_unaliased()
        self.memory = self._try(DeviceMemory)
        self.blocks = dict[str, Block]()
        self.contexts = [self._context(k) for k in range(len(self.profiles))]

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        """Runs the engine on just its inputs; `wanted` names the outputs, all by default."""
        typed = {name: np.ascontiguousarray(feeds[name], info.dtype) for name, info in self.inputs.items()}
        pasts = {name: typed.pop(name) for name in self.layout.shapes}
        rows, tokens = next((array.shape[::2] for array in pasts.values()), (len(typed["input_ids"]), 0))
        if self.max_tokens is not None:  # all places are there before and after
            tokens = self.max_tokens - typed["input_ids"].shape[1]
        one = Pass(typed, self.cache_of(pasts, rows, tokens), typed["input_ids"])
        outputs, after = self._try(lambda: self._execute(one))
        arrays = after.arrays()
        outputs |= {name: arrays[past] for name, past in self._presents().items()}
        return {name: outputs[name] for name in wanted or self.outputs}

    def cache_of(self, arrays: Mapping[str, Array], rows: int, tokens: int) -> DeviceCache:
        """As `Runner.cache_of`, in the GPU's memory."""
        return DeviceCache(self.layout, self.memory, rows, tokens).fill(arrays)

    def close(self) -> None:
        """Frees the contexts and their memory on the GPU."""
        self.contexts, self.blocks = [], {}
        self.memory.close()

    def _run(self, one: Pass, keep_cache: bool) -> tuple[dict[str, Array], Cache | None]:
        outputs, after = self._try(lambda: self._execute(one))
        return outputs, after if keep_cache else None

    def _execute(self, one: Pass) -> tuple[dict[str, Array], DeviceCache]:
        assert isinstance(one.cache, DeviceCache), "a cache stays with the runner that made it"
        # An engine writes every output, wanted or not.
        cache, after = one.cache.before_and_after(one.tokens - one.cache.tokens)
        shapes = {name: array.shape for name, array in one.feeds.items()}
        shapes |= {name: cache.shape(name) for name in cache.addresses}
        context = self.contexts[pick_profile(self.profiles, shapes)]
        addresses = {name: self._uploaded(name, array) for name, array in one.feeds.items()}
        addresses |= cache.addresses | {
            name: after.addresses[past] for name, past in self._presents().items()
        }
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise UserError(f"{self.path}: {name} takes no shape {shape}{self._reason()}")
        logits = {
            name: tuple(context.get_tensor_shape(name)) for name in self.outputs if name not in addresses
        }
        addresses |= {name: self._room(name, shape) for name, shape in logits.items()}
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise UserError(f"{self.path}: {name} takes no memory at {address}{self._reason()}")
        if not context.execute_async_v3(self.memory.stream):
            raise UserError(f"{self.path} does not run{self._reason()}")
        outputs = {
            name: self.memory.download(addresses[name], shape, self.outputs[name].dtype)
            for name, shape in logits.items()
        }
        self.memory.synchronize()
        return outputs, after

    def _refuse_unaliased(self) -> None:
        """A static cache is written in place, past and present at one address: the engine must mean it so."""
        for name, past in self._presents().items() if self.max_tokens is not None else ():
            if self.engine.get_aliased_input_tensor(name) != past:
                raise UserError(f"{self.path} does not write {name} into {past}; build it again")

    def _context(self, profile: int) -> Any:
        context = self.engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, self.memory.stream):
            raise UserError(f"{self.path} gets no context for its profile {profile}{self._reason()}")
        return context

    def _uploaded(self, name: str, array: Array) -> int:
        """The address of an input on the GPU."""
        address = self._room(name, array.shape)
        self.memory.upload(address, array)
        return address

    def _room(self, name: str, shape: Sequence[int]) -> int:
        """Memory for an input or output that is no cache: the same as long as it is large enough."""
        dtype = (self.inputs | self.outputs)[name].dtype
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if name not in self.blocks or self.blocks[name].nbytes < nbytes:
            self.blocks[name] = Block(self.memory, nbytes)
        return self.blocks[name].address

    def _reason(self) -> str:
        lines = logger_of(self.trt).lines
        return f": {one_line(lines[-1])}" if lines else ""

    def _try(self, action: Callable[[], Any]) -> Any:
        """What the action returns; Polygraphy's and CUDA's errors become one line."""
        from polygraphy.exception import PolygraphyException

        try:
            return action()
        except (PolygraphyException, OSError) as error:
            raise UserError(f"{self.path} cannot run here: {one_line(error)}") from error


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
    engine = started(trt, "Runtime").deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = one_line(logger.lines[-1] if logger.lines else "no reason given")
        raise UserError(
            f"{path}, built for {'+'.join(plan.targets)}, does not load on this {target}: {reason}"
        )
    if plan.weights is not None:
        refit(trt, engine, plan.weights)
    return engine, trt


def pick_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Which profile to run: of those whose ranges hold the shapes, the one with the nearest optimum.

    The distance is the sum of the dimensions' relative differences.

    Args:
        profiles: of the engine.
        shapes: of the inputs.

    Returns:
        Its index.

    Raises:
        UserError: the ranges of none hold them.
    """

    def distance(profile: Profile) -> float:
        total = 0.0
        for name, shape in shapes.items():
            low, best, high = profile[name]
            if any(not small <= d <= large for small, d, large in zip(low, shape, high, strict=True)):
                return float("inf")
            total += sum(abs(d - b) / max(d, b, 1) for d, b in zip(shape, best, strict=True))
        return total

    distances = [distance(profile) for profile in profiles]
    if min(distances) == float("inf"):
        short = {name: shape for name, shape in shapes.items() if not name.startswith("past_key_values.")}
        raise UserError(
            f"the engine was not built for {one_line(short)}; "
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
