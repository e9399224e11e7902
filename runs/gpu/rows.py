"""Rows of what a proof found: engines, checks, times beside the paper's and predicted ones, texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckRow:
    """An artefact beside PyTorch in fp32.

    Attributes:
        max_rel, top1: worst of all logits; noise: max_rel of PyTorch in fp16, where that was measured.
        device: of the artefact.
        failure: the first of the check's; '' where it passed.
    """

    variant: str
    runtime: str
    passed: bool
    max_rel: float | None
    noise: float | None
    top1: float | None
    device: str
    failure: str


@dataclass(frozen=True, slots=True)
class TimeRow:
    """A variant's time at one length; % are of the base's time that is saved.

    With weights of 4 bits, too, that is the time of the base in fp16.

    Attributes:
        is_base: the others are compared with it.
        is_decode: one further token on a cache of `length`, not a prefill of it.
        ms: median; low, high: 95 % interval of `saved`.
        ceiling: % that what binds allows to save.
        torch_ms, torch_saved: of eager PyTorch, in the same run.
        paper_saved: of Tyukin et al., where they have it.
        engine_ms, engine_saved, eager_ms, eager_saved: that `pipeline predict` says.
        is_checked: every artefact of the run had passed its check.
        is_disturbed: other work, or heat, disturbed the samples.
        device_mb: MiB of the GPU; attention: the kernels that it ran on, where that is told.
        on_host: operators that compute, and that ONNX Runtime ran on the CPU, with their number.
    """

    variant: str
    runtime: str
    is_base: bool
    length: int
    is_decode: bool
    ms: float
    saved: float
    low: float
    high: float
    ceiling: float | None
    torch_ms: float | None
    torch_saved: float | None
    paper_saved: float | None
    engine_ms: float | None
    engine_saved: float | None
    eager_ms: float | None
    eager_saved: float | None
    is_checked: bool
    is_disturbed: bool = False
    device_mb: float | None = None
    attention: str | None = None
    on_host: str = ""


@dataclass(frozen=True, slots=True)
class EngineRow:
    """An engine that was built.

    Attributes:
        plan_mb: MB of the plan; None where it is gone.
        seconds: of the build; peak_mb: MiB of memory that its process took.
        layers: of the engine.
    """

    variant: str
    runtime: str
    plan_mb: float | None
    seconds: float
    peak_mb: float
    layers: int


@dataclass(frozen=True, slots=True)
class LoadRow:
    """The GPU while one length was timed.

    Attributes:
        run: the stage.
        text: clocks, power and heat; problems: what disturbed it, '' where nothing did.
    """

    run: str
    length: int
    text: str
    problems: str


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text that was generated.

    Attributes:
        tokens: that were decoded.
        first_ms: until the first came; ms: of each one after it.
        engine_ms: that `pipeline predict` says of a decoding step.
    """

    variant: str
    runtime: str
    tokens: int
    first_ms: float | None
    ms: float | None
    engine_ms: float | None


@dataclass(frozen=True, slots=True)
class DemoRow:
    """The demo model's text. `is_same`: as on the CPU; None where it is the CPU's."""

    provider: str
    text: str
    is_same: bool | None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was found."""

    engines: tuple[EngineRow, ...]
    checks: tuple[CheckRow, ...]
    times: tuple[TimeRow, ...]
    loads: tuple[LoadRow, ...]
    texts: tuple[TextRow, ...]
    demo: tuple[DemoRow, ...]
