"""What an engine is built with, and for which GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.engines.builder import Builder
from pipeline.runtime import tensorrt_library
from pipeline.runtime.tensorrt_library import Range
from pipeline.types import UserError

_DATACENTRE = {"sm90", "sm100", "sm103"}


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What `build` takes beside the graph.

    Attributes:
        backend: 'tensorrt-rtx' or 'tensorrt'.
        targets: 'sm80', …; by default the GPU here, else sm80. TensorRT proper builds for the GPU here only.
        batch: minimum, optimum and maximum of B.
        length: of S in prefill, cut to the model's longest context.
        past: of P, cut likewise.
        strip_weights: leave the weights out of the plan; they are put back from the graph when it is loaded.
        keep_precision: build an fp32 graph as it is, its attention marked decomposable.
        force: build again what is there and matches.
    """

    backend: str = "tensorrt-rtx"
    targets: tuple[str, ...] = ()
    batch: Range = (1, 1, 8)
    length: Range = (1, 100, 2048)
    past: Range = (0, 100, 2048)
    strip_weights: bool = False
    keep_precision: bool = False
    force: bool = False


DEFAULTS = BuildSettings()


def choose_targets(builder: Builder, targets: tuple[str, ...]) -> list[str]:
    """The targets to build for, ascending, after a check of what the backend can do.

    Args:
        builder: of the backend.
        targets: names, several in one separated by commas; none is the default.

    Raises:
        UserError: the backend cannot build for one of them.
    """
    here = tensorrt_library.gpu_target()
    named = {part.strip().lower() for target in targets for part in target.split(",")}
    if builder.backend == "tensorrt":
        return [_only_target(here, named)]
    known = builder.targets()
    chosen = named or {here or "sm80"}
    for target in sorted(chosen - set(known)):
        if target in _DATACENTRE:
            raise UserError(
                f"TensorRT-RTX has no code for {target} (H100, H200, B200): "
                "use --backend tensorrt on that GPU"
            )
        raise UserError(f"TensorRT-RTX has no target {target!r}; choose from {', '.join(known)}")
    if "sm75" in chosen and len(chosen) > 1:
        raise UserError(
            "sm75 goes into a plan of its own: beside newer targets it would set the code for all of them"
        )
    return [target for target in known if target in chosen]


def _only_target(here: str | None, named: set[str]) -> str:
    """The one target of TensorRT proper: the GPU here."""
    if here is None:
        raise UserError(
            "TensorRT builds on and for an NVIDIA GPU, and none is seen here; use --backend tensorrt-rtx"
        )
    if named - {here}:
        raise UserError(f"TensorRT builds for the GPU it runs on ({here}); leave --target out")
    return here
