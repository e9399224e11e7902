"""usage: python -m runs.gpu.machine cpu|cuda: what this machine can do of a proof, as JSON.

It runs in a process of its own, which gives the GPU's memory back when it ends.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import psutil

from pipeline import store
from pipeline.types import Provider, UserError

NO_GPU = "no NVIDIA GPU is seen here; `make gpu SHAPE=tiny PROVIDER=cpu` rehearses without one"
REHEARSAL = "a100"
"""The GPU that a rehearsal predicts for."""
PACKAGES = (
    "torch",
    "transformers",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13-bindings",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What can be done here. A field that ends in `_lack` says why not; None: it can.

    Attributes:
        provider: that was asked for.
        graphs_lack: of ONNX Runtime on it; torch_lack: of PyTorch.
        backend: that builds engines; None where none does. engines_lack: why they cannot run, or be built.
        target: that a rehearsal builds for, where there is no GPU.
        demo_lack: of the demo model.
        gpu: as CUDA's driver names it; known_as: by `pipeline predict --gpu`.
        device_bytes: of the GPU, free; host_bytes: of the machine, free.
    """

    provider: Provider
    graphs_lack: str | None
    torch_lack: str | None
    backend: str | None
    engines_lack: str | None
    target: str | None
    demo_lack: str | None
    gpu: str | None
    known_as: str | None
    device_bytes: float | None
    host_bytes: float
    versions: dict[str, str]

    @property
    def graphs_on(self) -> Provider:
        """Where `--provider` puts graphs, and PyTorch beside engines."""
        return "cpu" if self.graphs_lack else self.provider

    @property
    def is_rehearsal(self) -> bool:
        """Nothing here is a number of a GPU."""
        return self.provider == "cpu"


def look(provider: Provider) -> Machine:
    """Looks at the machine.

    Raises:
        UserError: CUDA is asked for, and there is no GPU.
    """
    from pipeline.models import demo, devices
    from pipeline.runtime import onnxruntime, tensorrt_library

    is_cuda = provider == "cuda"
    if is_cuda and tensorrt_library.gpu_target() is None:
        raise UserError(NO_GPU)
    torch_lack, gpu = devices.refusal(provider), tensorrt_library.gpu_name() if is_cuda else None
    backend, engines_lack = _backend(is_cuda)
    model = demo.MODELS[store.DEMO]
    has_demo = store.is_installed(model.module)
    return Machine(
        provider=provider,
        graphs_lack=onnxruntime.refusal(provider),
        torch_lack=torch_lack,
        backend=backend,
        engines_lack=engines_lack,
        target=None if is_cuda else "sm80",
        demo_lack=None if has_demo else f"the demo model is not installed: {model.command}",
        gpu=gpu,
        known_as=_known_as(gpu) if is_cuda else REHEARSAL,
        device_bytes=_device_bytes(torch_lack, gpu) if is_cuda else None,
        host_bytes=float(psutil.virtual_memory().available),
        versions=store.versions(*PACKAGES),
    )


def _backend(is_cuda: bool) -> tuple[str | None, str | None]:
    """(what builds engines here, why they cannot be built or run)."""
    from pipeline.engines.builder import Builder
    from pipeline.runtime import tensorrt_library

    lacks = []
    for backend in ("tensorrt", "tensorrt-rtx") if is_cuda else ("tensorrt-rtx",):
        try:
            tensorrt_library.library(backend)
            here = tensorrt_library.gpu_target()
            if is_cuda and backend == "tensorrt-rtx" and here not in Builder(backend).targets():
                lacks.append(f"TensorRT-RTX has no code for {here}")
                continue
        except UserError as error:
            lacks.append(str(error))
            continue
        return backend, None if is_cuda else "parsed and built on a CPU; engines run on an NVIDIA GPU only"
    return None, "; ".join(lacks)


def _known_as(gpu: str | None) -> str | None:
    from pipeline.evals import gpus

    return next((key for key, one in gpus.known().items() if gpu in one.devices), None)


def _device_bytes(torch_lack: str | None, gpu: str | None) -> float | None:
    """Free memory of the GPU: PyTorch's answer, else what the datasheet says of all of it.

    PIPELINE_DEVICE_MEMORY bounds it, as it bounds the commands that the stages run.
    """
    if torch_lack is None:
        from pipeline.models import devices

        return float(devices.free_bytes("cuda"))
    from pipeline.evals import gpus
    from pipeline.runtime import device_memory

    known, given = gpus.of_device(gpu or ""), device_memory.bound()
    bounds = [one for one in (known.memory if known else None, given) if one is not None]
    return float(min(bounds)) if bounds else None


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(look("cuda" if sys.argv[1] == "cuda" else "cpu")), indent=1))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
