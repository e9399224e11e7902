"""What a recipe says: the grid of a sweep, and the settings of its stages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.models.origins import folder_name
from pipeline.models.quantisation.names import requested
from pipeline.store.records import NumLayers
from pipeline.types import PRECISIONS, Kind, UserError

STAGES = ("calibrate", "select", "export", "compensate", "check", "build", "score", "bench", "heal", "ship")
"""Of all jobs. `compensate` and `ship` are asked for by their forms, and not among `stages`."""
Stage = Literal["calibrate", "select", "export", "check", "build", "score", "bench", "heal"]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Positive = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Size = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Parameters = Annotated[int, Field(strict=True, ge=1, le=10**15)]


def _text(text: str) -> str:
    """Refuses what a command line takes for an option, or cannot hold."""
    if not text.isprintable() or text[:1] in ("", "-", " ") or len(text) > 1000:
        raise ValueError(
            "no text that can stand in a command: empty, too long, unprintable, or begun by - or a space"
        )
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[^/\\~]{1,100}", _text(text)) or text.startswith("."):
        raise ValueError("no name: it has /, \\ or ~, begins with a dot, or has more than 100 characters")
    return text


def _precisions(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the graphs that are asked for."""
    try:
        return tuple(one.name for text in texts for one in requested(text))
    except UserError as error:
        raise ValueError(str(error)) from None


def _range(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    if not sizes[0] <= sizes[1] <= sizes[2] or sizes[2] == 0:
        raise ValueError(
            "no minimum, optimum and maximum: each is at least the one before it, the last above 0"
        )
    return sizes


Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[str, AfterValidator(_name)]
File = Annotated[Path, AfterValidator(lambda path: Path(_text(str(path))))]
SizeRange = Annotated[tuple[Size, Size, Size], AfterValidator(_range)]


class Section(BaseModel):
    """A table of the recipe. It refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """A model, and what a plan can say of it before it has been fetched.

    Attributes:
        name: as `pipeline export` takes it.
        layers: L; with it variants are known by name before the checkpoint is there.
        parameters: for the estimate of the disk.
    """

    name: Text
    layers: NumLayers | None = None
    parameters: Parameters | None = None

    @property
    def folder(self) -> str:
        """Its name under graphs/."""
        return folder_name(self.name)


class TextSection(Section):
    """Where a stage takes its text from; the project's own by default."""

    texts: tuple[File, ...] = ()
    dataset: Text | None = None


class CalibrateSection(TextSection):
    """Options of `pipeline calibrate`."""

    samples: Positive = 256
    length: Positive = 512
    buckets: Positive = 4


class SelectSection(TextSection):
    """Options of `pipeline select`.

    Attributes:
        seed: of rules that draw.
        samples, length: of the text that a rule which measures (greedy) reads; None: the rule's own default.
        tokens: at which token `angular` reads the distance.
        start, compensated, minutes, generations: of `evo` alone.
    """

    seed: Seed = 0
    samples: Positive | None = None
    length: Positive = 256
    tokens: Literal["final", "mean"] = "final"
    start: Text | None = None
    compensated: bool = False
    minutes: Annotated[float, Field(gt=0, le=10**6)] | None = None
    generations: Positive | None = None


class BuildSection(Section):
    """Options of `pipeline build-engine`.

    Attributes:
        accelerator: Ray's name of the GPU (`A100`) that engines are built and run on.
        batch, length, past: minimum, optimum and maximum of B, of S in prefill, and of P.
    """

    backend: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    target: Name = "sm80"
    accelerator: Name | None = None
    batch: SizeRange = (1, 1, 8)
    length: SizeRange = (1, 100, 2048)
    past: SizeRange = (0, 100, 2048)


class ScoreSection(Section):
    """Options of `pipeline score`.

    Attributes:
        limit: documents a task at most.
        limits: the same, for single tasks.
        data: folder of benchmark rows.
    """

    limit: Positive | None = None
    limits: dict[Name, Positive] = {}
    data: File | None = None
    protocol: Literal["lm-eval", "v1"] = "lm-eval"

    def limit_of(self, task: str) -> int | None:
        """Documents of this task at most; None for all."""
        return self.limits.get(task, self.limit)


class BenchSection(Section):
    """Options of `pipeline bench`.

    Attributes:
        decode: time a decode step too.
        threads: 0 is one a core.
    """

    sequences: Positive = 1000
    lengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (50, 100)
    batch: Positive = 1
    decode: bool = False
    threads: Annotated[int, Field(strict=True, ge=0, le=10_000)] = 0


class HealSection(TextSection):
    """Options of `pipeline heal`; name: of the adapter."""

    name: Name = "heal"
    loss: Literal["ce", "kl", "aux"] = "ce"
    steps: Positive = 60
    batch: Positive = 4
    length: Positive = 256
    rank: Positive = 64
    lr: Annotated[float, Field(strict=True, gt=0, le=1)] = 3e-4
    targets: Annotated[tuple[Name, ...], Field(min_length=1)] = ("mlp",)
    quantize: Literal["4bit"] | None = None
    seed: Seed = 0


class CompensateSection(TextSection):
    """Options of `pipeline compensate`.

    Attributes:
        forms: what is put in the place of what each variant skips, one after the other; each form makes a
            variant of its own.
    """

    forms: tuple[str, ...] = ()
    samples: Positive = 48
    length: Positive = 256
    refit: bool = False


class ShipSection(Section):
    """Options of `pipeline ship` to other engines.

    Attributes:
        to: forms that each variant is written in, into engines/<model>/<variant>/.
        type: of a GGUF; by default the command's own.
        force: also a folder that only some engines load.
    """

    to: tuple[Literal["gguf", "hf"], ...] = ()
    type: Name | None = None
    force: bool = False


class Recipe(Section):
    """models × kinds × fractions × selectors × precisions through the stages.

    Attributes:
        precisions: as --precision takes them, 'fp32' or 'int4-fp16'; 'int4' alone is both of its graphs.
        measure: what score and bench run on: graphs, or the engines that `build` makes.
        compensate, ship: a table, or the forms alone.
    """

    models: Annotated[
        tuple[ModelSection, ...],
        Field(min_length=1),
        BeforeValidator(lambda names: [{"name": m} if isinstance(m, str) else m for m in names]),
    ]
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    selectors: Annotated[tuple[Name, ...], Field(min_length=1)]
    precisions: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_precisions)] = ("fp32",)
    stages: tuple[Stage, ...] = ("calibrate", "select", "export", "check", "score", "bench")
    tasks: tuple[Name, ...] = ()
    measure: Literal["graphs", "engines"] = "graphs"
    calibrate: CalibrateSection = CalibrateSection()
    select: SelectSection = SelectSection()
    build: BuildSection = BuildSection()
    score: ScoreSection = ScoreSection()
    bench: BenchSection = BenchSection()
    heal: HealSection = HealSection()
    compensate: Annotated[
        CompensateSection,
        BeforeValidator(lambda value: {"forms": value} if isinstance(value, list) else value),
    ] = CompensateSection()
    ship: Annotated[
        ShipSection,
        BeforeValidator(lambda value: {"to": value} if isinstance(value, list) else value),
    ] = ShipSection()

    @property
    def plain_precisions(self) -> tuple[str, ...]:
        """Those with the checkpoint's own weights, which adapters and other engines take."""
        return tuple(name for name in self.precisions if name in PRECISIONS)

    @property
    def unchecked(self) -> bool:
        """Whether artefacts are measured without a check."""
        return "check" not in self.stages
