"""GPUs by name: what their datasheets say, and what a kernel launch costs in eager PyTorch (`gpus.toml`)."""

from __future__ import annotations

import functools
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.store import records
from pipeline.store.records import Record
from pipeline.types import UserError

Positive = Annotated[float, Field(gt=0)]


class Launch(Record):
    """What a kernel launch costs.

    Attributes:
        us: from one launch to the next, µs.
        source: of that number.
    """

    us: Positive
    source: str


class Gpu(Record):
    """One GPU; peak numbers, which no kernel exceeds.

    Attributes:
        name: as the datasheet has it.
        devices: names that CUDA's driver gives it.
        memory_gib: GiB.
        bandwidth_gb_s: 10⁹ bytes a second from its memory.
        fp16_tflops: 10¹² FLOP/s of FP16 products with sums in FP32, dense.
        launch_us: µs of a launch, where it was measured on this GPU; launch_source says where.
        source: what the document says of them.
        document: NVIDIA's, that the numbers are from: its address or its title.
        read: where somebody quotes it, since it was not opened itself.
    """

    name: str
    devices: tuple[str, ...] = ()
    memory_gib: Positive
    bandwidth_gb_s: Positive
    fp16_tflops: Positive
    launch_us: Positive | None = None
    launch_source: str = ""
    source: str
    document: str
    read: str

    @property
    def launch(self) -> Launch:
        """What a launch costs on a host of this GPU; that of any host where none was measured."""
        if self.launch_us is None:
            return _table().launch
        return Launch(us=self.launch_us, source=self.launch_source)

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * 2**30

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bandwidth_gb_s * 1e9

    @property
    def flops(self) -> float:
        """FLOP/s."""
        return self.fp16_tflops * 1e12


class GpuTable(Record):
    """gpus.toml.

    Attributes:
        launch: of a GPU that has none of its own.
        gpus: name on the command line → GPU.
    """

    launch: Launch
    gpus: dict[str, Gpu]


@functools.cache
def _table() -> GpuTable:
    text = resources.files("pipeline.evals").joinpath("gpus.toml").read_text(encoding="utf-8")
    return records.parse(GpuTable, json.dumps(tomllib.loads(text)).encode(), Path("gpus.toml"))


def known() -> dict[str, Gpu]:
    """Name on the command line → GPU."""
    return _table().gpus


def find(name: str) -> Gpu:
    """The GPU of a name, in upper or lower case.

    Raises:
        UserError: it is not known; lists those that are.
    """
    gpu = known().get(name.strip().lower())
    if gpu is None:
        raise UserError(f"no GPU {name.strip()!r:.40} is known; choose from {', '.join(known())}")
    return gpu


def of_device(device: str) -> Gpu | None:
    """The GPU that CUDA's driver names so; None where it is not known."""
    return next((gpu for gpu in known().values() if device in gpu.devices), None)
