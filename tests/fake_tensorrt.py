"""A TensorRT that is not there: this module stands for `tensorrt`, its engines run the toy model.

Names, parameters, results and enum members are TensorRT's: tests/runtime/test_tensorrt_bindings.py holds
every class here to the real bindings, so that what the package calls on these is there in them. Nothing else
can be called or assigned: what a test wants to know lies in `machine`, and what an object keeps in names that
begin with `_`.
A graph may be any file, whose bytes make the model's only weight (`weight_of`).
"""

from __future__ import annotations

import enum
import inspect
import json
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polygraphy import cuda

from pipeline.runtime import tensorrt_library
from pipeline.runtime.cache import Array
from tests.fake_gpu import (
    INPUTS,
    OUTPUTS,
    STATIC_INPUTS,
    STATIC_OUTPUTS,
    STREAM,
    WORDS,
    FakeCuda,
    static_toy,
    toy,
)

__version__ = "11.4.0"


@dataclass
class Machine:
    """The machine that TensorRT runs on, and what was asked of it.

    Attributes:
        cuda: its GPU.
        fails: the call that does not work, by its name.
        missing: weights that a refit does not find.
        runs: the profile of each.
        builds: of each, its flags, profiles, layers whose attention may be taken apart, and known timings.
    """

    cuda: FakeCuda = field(default_factory=FakeCuda)
    fails: str = ""
    missing: list[str] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    builds: list[dict[str, Any]] = field(default_factory=list)

    def works(self, call: str, logger: ILogger) -> bool:
        """Whether a call works; TensorRT logs why not."""
        if call == self.fails:
            logger.log(ILogger.Severity.ERROR, f"the toy's\n{call} fails")
        return call != self.fails


machine = Machine()


def install(monkeypatch: pytest.MonkeyPatch, on: Machine) -> Machine:
    """Makes this module `tensorrt`, and a machine the one here: its GPU is CUDA's, of the kind sm90."""
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "machine", on)
    monkeypatch.setitem(sys.modules, "tensorrt", here)
    monkeypatch.setattr(cuda, "wrapper", lambda: on.cuda)
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm90")
    return on


def weight_of(graph: Path) -> float:
    """The weight of the model in a graph's file: from 1 to 2."""
    return 1 + zlib.crc32(graph.read_bytes()) / 2**32


class _Bound:
    """An object of pybind11's: it takes no attribute that its class has not."""

    def __setattr__(self, name: str, value: Any) -> None:
        member = inspect.getattr_static(type(self), name, None)
        if not name.startswith("_") and not isinstance(member, property):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super().__setattr__(name, value)


class _Members(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)


class TensorIOMode(_Members):
    NONE, INPUT, OUTPUT = range(3)


class DataType(_Members):
    FLOAT, INT64 = 0, 8


class LayerType(_Members):
    ELEMENTWISE, ATTENTION_INPUT = 5, 55


class BuilderFlag(_Members):
    TF32, REFIT_IDENTICAL, STRIP_PLAN = range(3)


class NetworkDefinitionCreationFlag(_Members):
    STRONGLY_TYPED = 1


def nptype(trt_type: DataType) -> type[np.generic]:
    return {DataType.FLOAT: np.float32, DataType.INT64: np.int64}[trt_type]


class ILogger:  # Python subclasses it: their objects take attributes
    class Severity(_Members):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError


class Dims(_Bound):
    def __init__(self, shape: Any) -> None:
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, k: int, /) -> int:
        return int(self._shape[k])


class IHostMemory(bytes):  # a buffer, which Python 3.11 cannot write otherwise
    @property
    def nbytes(self) -> int:
        return len(self)


class Runtime(_Bound):
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        if not machine.works("Runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not machine.works("deserialize_cuda_engine", self._logger):
            return None
        return ICudaEngine._of(json.loads(serialized_engine), self._logger)


class ICudaEngine(_Bound):
    @classmethod
    def _of(cls, plan: dict[str, Any], logger: ILogger) -> ICudaEngine:
        """Of a plan: with a static cache where that says so."""
        engine = cls()
        engine._weight, engine._profiles, engine._logger = plan["weight"], plan["profiles"], logger
        engine._is_static = plan.get("is_static", False)
        engine._inputs, engine._outputs = (
            (STATIC_INPUTS, STATIC_OUTPUTS) if engine._is_static else (INPUTS, OUTPUTS)
        )
        return engine

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(d if isinstance(d, int) else -1 for d in (self._inputs | self._outputs)[name].shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        is_long = (self._inputs | self._outputs)[name].dtype == np.int64
        return DataType.INT64 if is_long else DataType.FLOAT

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_aliased_input_tensor(self, name: str) -> str | None:
        """None where the output has memory of its own."""
        is_aliased = self._is_static and name.startswith("present.") and machine.fails != "alias"
        return name.replace("present", "past_key_values") if is_aliased else None

    def create_execution_context(self) -> IExecutionContext | None:
        if not machine.works("create_execution_context", self._logger):
            return None
        return IExecutionContext._of(self)


class IExecutionContext(_Bound):
    @classmethod
    def _of(cls, engine: ICudaEngine) -> IExecutionContext:
        context = cls()
        context._engine, context._logger, context._profile = engine, engine._logger, -1
        context._shapes, context._addresses = dict[str, tuple[int, ...]](), dict[str, int]()
        return context

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM and profile_index < self._engine._profiles
        self._profile = profile_index
        return machine.works("set_optimization_profile_async", self._logger)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in self._engine._inputs and isinstance(shape, tuple)
        self._shapes[name] = shape
        return machine.works("set_input_shape", self._logger)

    def get_tensor_shape(self, name: str) -> Dims:
        if name == "logits":
            return Dims((*self._shapes["logits_positions"], WORDS))
        past = self._shapes[name.replace("present", "past_key_values")]
        return Dims((*past[:2], self._shapes["attention_mask"][1], past[3]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0 and memory
        self._addresses[name] = memory
        return machine.works("set_tensor_address", self._logger)

    def execute_async_v3(self, stream_handle: int) -> bool:
        inputs, model = self._engine._inputs, static_toy if self._engine._is_static else toy
        assert stream_handle == STREAM and set(self._addresses) == {*inputs, *self._engine._outputs}
        machine.runs.append(self._profile)
        shapes, weight = dict(self._shapes), self._engine._weight or np.nan
        places = {name: self._place(name) for name in (*inputs, *self._engine._outputs)}
        _refuse_overlaps(places, {name: self._engine.get_aliased_input_tensor(name) for name in OUTPUTS})

        def bytes_of(name: str) -> Array:
            return machine.cuda.at(places[name].start, len(places[name]))

        def run() -> None:
            feeds = {
                name: np.ndarray(shapes[name], info.dtype, bytes_of(name).tobytes())
                for name, info in inputs.items()
            }
            for name, array in model(feeds, weight).items():
                bytes_of(name)[:] = np.frombuffer(array.tobytes(), np.uint8)

        machine.cuda.queue.append(run)
        return machine.works("execute_async_v3", self._logger)

    def _place(self, name: str) -> range:
        """The addresses of a tensor."""
        inputs = self._engine._inputs
        shape = self._shapes[name] if name in inputs else tuple(self.get_tensor_shape(name))
        nbytes = int(np.prod(shape)) * (inputs | self._engine._outputs)[name].dtype.itemsize
        return range(self._addresses[name], self._addresses[name] + nbytes)


def _refuse_overlaps(places: dict[str, range], aliased: dict[str, str | None]) -> None:
    """An output may lie neither over an input nor over another output: kernels read while others write.

    What is written in place lies where its input does, no more and no less.
    """
    for name, own in aliased.items():
        for other in places:
            shared = range(
                max(places[name].start, places[other].start), min(places[name].stop, places[other].stop)
            )
            if other == own:
                assert places[name] == places[other], f"{name} is not written into {other}"
            else:
                assert name == other or not shared, f"{name} lies over {other}"


class Refitter(_Bound):
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine, self._logger = engine, logger

    def get_missing_weights(self) -> list[str]:
        return list(machine.missing)

    def refit_cuda_engine(self) -> bool:
        self._engine._weight = getattr(self, "_found", None)
        return machine.works("refit_cuda_engine", self._logger)


class ParserError(_Bound):
    def desc(self) -> str:
        return "types\ndiffer"

    def node_name(self) -> str:
        return "/layers.0/x"

    def node_operator(self) -> str:
        return "Bernoulli"


class OnnxParserRefitter(_Bound):
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter, self._logger = refitter, logger

    @property
    def num_errors(self) -> int:
        return int(machine.fails == "refit_from_file")

    def get_error(self, index: int) -> ParserError:
        assert index < self.num_errors
        return ParserError()

    def refit_from_file(self, model: str) -> bool:
        self._refitter._found = weight_of(Path(model))
        return machine.works("refit_from_file", self._logger)


class ITensor(_Bound):
    @classmethod
    def _of(cls, name: str) -> ITensor:
        tensor = cls()
        tensor._name = name
        return tensor

    @property
    def name(self) -> str:
        return self._name

    @property
    def shape(self) -> Dims:
        return Dims(d if isinstance(d, int) else -1 for d in INPUTS[self._name].shape)


class IAttention(_Bound):
    @property
    def decomposable(self) -> bool:
        return self._index in self._network._apart

    @decomposable.setter
    def decomposable(self, value: bool) -> None:
        (self._network._apart.add if value else self._network._apart.discard)(self._index)


class ILayer(_Bound):
    @property
    def type(self) -> LayerType:
        return (LayerType.ATTENTION_INPUT, LayerType.ELEMENTWISE)[self._index % 2]


class IAttentionInputLayer(ILayer):
    @property
    def attention(self) -> IAttention:
        assert self.type == LayerType.ATTENTION_INPUT
        attention = IAttention()
        attention._network, attention._index = self._network, self._index
        return attention


class INetworkDefinition(_Bound):
    @classmethod
    def _of(cls, flags: int) -> INetworkDefinition:
        network = cls()
        network._flags, network._apart, network._weight = flags, set[int](), 0.0
        return network

    @property
    def num_layers(self) -> int:
        return 4

    def get_layer(self, index: int) -> ILayer:
        layer = ILayer()  # of the base class, as pybind11 gives it
        layer._network, layer._index = self, index
        return layer

    @property
    def num_inputs(self) -> int:
        return len(INPUTS)

    def get_input(self, index: int) -> ITensor:
        return ITensor._of(list(INPUTS)[index])


class OnnxParser(_Bound):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger

    @property
    def num_errors(self) -> int:
        return int(machine.fails == "parse_from_file")

    def get_error(self, index: int) -> ParserError:
        assert index < self.num_errors
        return ParserError()

    def parse_from_file(self, model: str) -> bool:
        self._network._weight = weight_of(Path(model))
        return machine.works("parse_from_file", self._logger)


class IOptimizationProfile(_Bound):
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not hasattr(self, "_shapes"):
            self._shapes = dict[str, Any]()
        self._shapes[input] = min, opt, max


class ITimingCache(_Bound):
    def serialize(self) -> IHostMemory:
        return IHostMemory(self._timings)


class IBuilderConfig(_Bound):
    @classmethod
    def _of(cls, logger: ILogger) -> IBuilderConfig:
        config = cls()
        config._flags, config._profiles = {BuilderFlag.TF32}, list[IOptimizationProfile]()
        config._timings, config._logger = None, logger
        return config

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not machine.works("add_optimization_profile", self._logger):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        """None for what is no timing cache."""
        if serialized_timing_cache and not serialized_timing_cache.startswith(b"timings of "):
            return None
        cache = ITimingCache()
        cache._timings = serialized_timing_cache
        return cache

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Refuses one of another version."""
        if not ignore_mismatch and cache._timings and __version__.encode() not in cache._timings:
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timings


class IStreamWriter:  # Python subclasses it, and takes `data` as bytes, without `size`
    def __init__(self) -> None:
        pass

    def write(self, data: Any, size: int) -> int:
        raise NotImplementedError


class Builder(_Bound):
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        if not machine.works("Builder", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition._of(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig._of(self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network_to_stream(
        self, network: INetworkDefinition, config: IBuilderConfig, writer: Any
    ) -> bool:
        """The plan: JSON, in pieces. The kernels that it times go into the timing cache."""
        if not machine.works("build_serialized_network_to_stream", self._logger):
            return False
        known = b"" if config._timings is None else config._timings._timings
        flags = {flag.name for flag in config._flags}
        profiles = [profile._shapes for profile in config._profiles]
        machine.builds.append(
            {"flags": flags, "profiles": profiles, "apart": sorted(network._apart), "known": known}
        )
        if config._timings is not None:
            config._timings._timings = known or f"timings of {__version__}".encode()
        for kind, size in (("Activation", 1024), ("Weights", 4)):
            self._logger.log(ILogger.Severity.INFO, f"Total {kind} Memory: {size} bytes")
        self._logger.log(ILogger.Severity.VERBOSE, "a line too many")
        weight = None if "STRIP_PLAN" in flags else network._weight
        plan = json.dumps({"weight": weight, "profiles": len(profiles)}).encode()
        pieces = [plan[start : start + 10] for start in range(0, len(plan), 10)]
        return all(writer.write(piece) == len(piece) for piece in pieces)
