"""The TensorRT of the tests, held to the bindings of TensorRT and RTX, and CUDA to Polygraphy's.

The package's modules run on the fakes in test_tensorrt.py and engines/test_builder.py. A method, parameter or
enum member that they use and TensorRT has not fails there, as the fakes have no more than what is seen here.
"""

from __future__ import annotations

import enum
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from polygraphy.cuda import cuda

from tests import bindings, fake_tensorrt
from tests.bindings import Signature, signatures
from tests.fake_gpu import FakeCuda


def classes(place: Any) -> dict[str, type]:
    """The classes of a module or class of the fakes, by their names in it; those inside of them too."""
    found: dict[str, type] = {}
    for kind in filter(inspect.isclass, vars(place).values()):
        own = kind.__module__ == fake_tensorrt.__name__ and kind is not fake_tensorrt.Machine
        if own and not kind.__name__.startswith("_"):
            found |= {kind.__qualname__: kind, **classes(kind)}
    return found


CLASSES = classes(fake_tensorrt)
SPECIAL = {"__init__", "__len__", "__getitem__"}
"""Those with two underscores that are calls of TensorRT's."""
MISSING = {"10.14.1.48.post1": ["ICudaEngine.get_aliased_input_tensor is not there"]}
"""What a version has not and is not asked for: it builds no static cache either, which came with 10.15."""
VERSIONS = [pytest.param(version, marks=pytest.mark.slow) for version in bindings.VERSIONS]
"""They come from the package index, where they are not in the cache yet: not in `make fast`."""


@pytest.fixture(scope="module", params=[*VERSIONS, "rtx"])
def real(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What bindings say of the fakes' classes."""
    source = bindings.tensorrt_rtx() if request.param == "rtx" else bindings.tensorrt(request.param)
    return {"version": request.param, **source.described([*CLASSES, "nptype"])}


def strangers(kind: type, real: dict[str, Any] | None) -> list[str]:
    """What a fake has that the real class has not, or has otherwise."""
    if real is None:
        return [f"there is no {kind.__qualname__}"]
    found = [base.__name__ for base in kind.__mro__[1:] if base.__name__ in CLASSES]
    problems = [f"{kind.__qualname__} is no {base}" for base in found if base not in real["bases"]]
    for name, member in vars(kind).items():
        if isinstance(member, enum.Enum):
            problems += [] if name in real["members"] else [f"{kind.__qualname__} has no {name}"]
        elif not inspect.isclass(member) and (name in SPECIAL or not name.startswith("_")):
            problem = differing(name, member, real["members"].get(name))
            problems += [f"{kind.__qualname__}.{name} {problem}"] if problem else []
    return problems


def differing(name: str, member: Any, real: dict[str, Any] | None) -> str:
    """How a method or property of a fake is not the real one; nothing where it is."""
    if real is None:
        return "is not there"
    if isinstance(member, property):
        return "" if real.get("property") and (real["set"] or not member.fset) else "is no such property"
    if not inspect.isfunction(member):
        return "is neither method nor property"
    ways = signatures(name, real.get("doc", ""))
    return "" if any(is_part(member, way) for way in ways) else f"is not to be called so: {ways}"


def is_part(member: Any, way: Signature) -> bool:
    """Whether each call that a fake takes is one that the real method takes, with the same result."""
    signature = inspect.signature(member)
    fakes = list(signature.parameters.values())[1:]
    names, required = list(way.parameters), [name for name, given in way.parameters.items() if not given]
    for fake, name in zip(fakes, names, strict=False):
        by_place = fake.kind is fake.POSITIONAL_ONLY  # pybind11 names what has no name arg0
        if by_place != name.startswith("arg") or (not by_place and fake.name != name):
            return False
        if fake.default is not fake.empty and name in required:
            return False
    result = str(signature.return_annotation).removesuffix(" | None").split(".")[-1].lower()
    parser_error = {result, way.result} == {"parsererror", "iparsererror"}  # its C++ name, in a docstring
    return len(required) <= len(fakes) <= len(names) and (result == way.result or parser_error)


def test_each_class_of_the_fake_is_part_of_the_real_one(real: dict[str, Any]) -> None:
    found = [line for name, kind in CLASSES.items() for line in strangers(kind, real[name])]
    assert found == MISSING.get(real["version"], [])
    assert real["nptype"]["signature"] == "(trt_type)"


def test_names_that_are_read_are_written_as_tensorrt_writes_them(real: dict[str, Any]) -> None:
    """The builder keeps the text of layers' types and of the logger's severities."""
    for kind in (fake_tensorrt.LayerType, fake_tensorrt.ILogger.Severity):
        for member in kind:
            assert real[kind.__qualname__]["members"][member.name]["text"] == str(member)


class IBuilderConfig:
    """What TensorRT's has not, and what it has."""

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool = False) -> bool: ...
    def get_timing_cache(self) -> bool: ...
    def create_timing_cache(self, data: bytes) -> fake_tensorrt.ITimingCache: ...
    def add_optimization_profile(self) -> int: ...
    def set_flag(self, flag: Any) -> None: ...
    def set_precision(self) -> None: ...
    @property
    def clear_flag(self) -> None: ...


class ILayer:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @type.setter
    def type(self, value: str) -> None: ...


class IAttentionInputLayer(fake_tensorrt.IAttention):
    pass


class BuilderFlag(enum.Enum):
    TF32, PRECISE = range(2)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (
            IBuilderConfig,
            [
                "set_timing_cache", "get_timing_cache", "create_timing_cache", "add_optimization_profile",
                "set_precision", "clear_flag",
            ],
        ),
        (ILayer, ["type"]),
        (IAttentionInputLayer, ["is no IAttention"]),
        (BuilderFlag, ["has no PRECISE"]),
    ],
)  # fmt: skip
def test_a_fake_that_takes_more_is_caught(kind: type, wrong: list[str], real: dict[str, Any]) -> None:
    found = strangers(kind, real[kind.__name__])
    assert len(found) == len(wrong) and all(name in line for name, line in zip(wrong, found, strict=True))
    assert strangers(kind, None) == [f"there is no {kind.__name__}"]


def test_a_fake_takes_no_attribute_that_it_has_not() -> None:
    layer = fake_tensorrt.ILayer()
    for name in ("attention", "precision"):
        with pytest.raises(AttributeError):
            setattr(layer, name, None)


def test_cuda_is_called_as_polygraphy_lets_it() -> None:
    for name, member in inspect.getmembers(FakeCuda, inspect.isfunction):
        if name != "at" and not name.startswith("_"):
            real = inspect.signature(getattr(cuda.Cuda, name)).parameters
            assert list(inspect.signature(member).parameters) == list(real), name


REFUSED = """
import sys
from pathlib import Path
from pipeline.engines.builder import Builder
from pipeline.types import UserError
try:
    Builder("tensorrt").parse(Path("g.onnx"), False)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_tensorrt_that_does_not_start_is_one_line(version: str) -> None:
    """The stubs give no builder, as TensorRT gives none where the driver is too old for it."""
    line = bindings.tensorrt(version).run(REFUSED).stdout
    assert re.fullmatch(
        rf"tensorrt_bindings {re.escape(version)} does not start on this machine, .* returned nullptr\n", line
    )


def test_the_oldest_version_is_that_of_the_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'"tensorrt-cu13>=([\d.]+)"', text)
    assert bindings.VERSIONS[-1].startswith(f"{oldest}.")
