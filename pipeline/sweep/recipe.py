"""A recipe: the grid of a sweep and the settings of its stages, read from TOML. What it does not know it refuses."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline import store
from pipeline.calib import selectors
from pipeline.models.checkpoint import folder_name
from pipeline.types import UserError

STAGES = ("calibrate", "select", "export", "check", "build", "score", "bench", "heal")
Stage = Literal["calibrate", "select", "export", "check", "build", "score", "bench", "heal"]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """A model, and what a plan can say of it before it has been fetched.

    Attributes:
        name: as `pipeline export` takes it.
        layers: L; with it variants are known by name before the checkpoint is there.
        parameters: for the estimate of the disk.
    """

    name: str
    layers: Count | None = None
    parameters: Count | None = None

    @property
    def folder(self) -> str:
        """Its name under graphs/."""
        return folder_name(self.name)


class Text(Strict):
    """Where a stage takes its text from; the project's own by default."""

    texts: tuple[Path, ...] = ()
    dataset: str | None = None


class Calibrate(Text):
    samples: Count = 256
    length: Count = 512
    buckets: Count = 4


class Select(Text):
    """samples, length: of the text that a rule which measures (greedy) goes by; tokens: where angular reads the distance."""

    seed: int = 0
    samples: Count = 32
    length: Count = 256
    tokens: Literal["final", "mean"] = "final"


class Build(Strict):
    """accelerator: Ray's name of the GPU (`A100`) that engines are built and run on; length, past, batch: min, opt, max."""

    backend: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    target: str = "sm80"
    accelerator: str | None = None
    batch: tuple[int, int, int] = (1, 1, 8)
    length: tuple[int, int, int] = (1, 100, 2048)
    past: tuple[int, int, int] = (0, 100, 2048)


class Score(Strict):
    """limit: documents a task at most; limits: the same for single tasks."""

    limit: Count | None = None
    limits: dict[str, Count] = {}
    data: Path | None = None
    protocol: Literal["lm-eval", "v1"] = "lm-eval"

    def limit_of(self, task: str) -> int | None:
        return self.limits.get(task, self.limit)


class Bench(Strict):
    """decode: time a decode step too; threads: 0 is one a core."""

    sequences: Count = 1000
    lengths: tuple[Count, ...] = (50, 100)
    batch: Count = 1
    decode: bool = False
    threads: int = 0


class Heal(Text):
    name: str = "heal"
    loss: Literal["ce", "kl", "aux"] = "ce"
    steps: Count = 60
    batch: Count = 4
    length: Count = 256
    rank: Count = 64
    lr: Annotated[float, Field(gt=0)] = 3e-4
    targets: tuple[str, ...] = ("mlp",)
    quantize: Literal["4bit"] | None = None
    seed: int = 0


class Recipe(Strict):
    """models × kinds × fractions × selectors × precisions through the stages.

    Attributes:
        measure: what score and bench run on: graphs, or the engines that `build` makes.
    """

    models: Annotated[
        tuple[Model, ...],
        Field(min_length=1),
        BeforeValidator(lambda given: [{"name": m} if isinstance(m, str) else m for m in given]),
    ]
    kinds: Annotated[tuple[Literal["attn", "mlp", "block"], ...], Field(min_length=1)]
    fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    selectors: Annotated[tuple[str, ...], Field(min_length=1)]
    precisions: Annotated[tuple[Literal["fp32", "fp16"], ...], Field(min_length=1)] = ("fp32",)
    stages: tuple[Stage, ...] = ("calibrate", "select", "export", "check", "score", "bench")
    tasks: tuple[str, ...] = ()
    measure: Literal["graphs", "engines"] = "graphs"
    calibrate: Calibrate = Calibrate()
    select: Select = Select()
    build: Build = Build()
    score: Score = Score()
    bench: Bench = Bench()
    heal: Heal = Heal()

    @property
    def unchecked(self) -> bool:
        return "check" not in self.stages

    @property
    def settings(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return self.model_dump(mode="json")


def read(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        UserError: it is missing, no TOML, has a key or a value that is not known, or contradicts itself; one line.
    """
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; recipes lie in evals/recipes/") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None
    try:
        recipe = Recipe.model_validate(held)
    except ValidationError as error:
        raise UserError(f"{path}: {_words(error)}") from None
    if problem := _contradiction(recipe):
        raise UserError(f"{path}: {problem}")
    store.plain_name(path.stem)
    return recipe


def _words(error: ValidationError) -> str:
    """The first problem in one line: where, what, and for a key that is not known the nearest one that is."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        return f"{'.'.join(where)}: {first['msg']}" + (
            f", not {first['input']!r}" if first["type"] != "missing" else ""
        )
    table: Any = Recipe
    for part in where[:-1]:
        field = (
            table.model_fields.get(part) if isinstance(table, type) and issubclass(table, BaseModel) else None
        )
        table = (
            field.annotation if field else Model
        )  # the entries of models are the only tables inside a list
    near = difflib.get_close_matches(where[-1], table.model_fields, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(table.model_fields)}"
    return f"unknown key {'.'.join(where)}; {hint}"


def _contradiction(recipe: Recipe) -> str | None:
    """What cannot be done, in words."""
    folders = [model.folder for model in recipe.models]
    unknown = [name for name in recipe.selectors if name not in selectors.names()]
    if len(set(folders)) < len(folders):
        return f"two models would lie in graphs/{max(folders, key=folders.count)}; name each once"
    if unknown:
        return f"no selector {unknown[0]!r}; choose from {', '.join(selectors.names())}"
    if "score" in recipe.stages and not recipe.tasks:
        return "stages has score, and tasks names no benchmark"
    if recipe.tasks and "score" not in recipe.stages:
        return "tasks names benchmarks, and stages lacks score"
    if strange := set(recipe.score.limits) - set(recipe.tasks):
        return f"score.limits names {', '.join(sorted(strange))}, which tasks does not"
    if "build" in recipe.stages and "fp16" not in recipe.precisions:
        return 'stages has build, and engines are built from fp16 graphs: add "fp16" to precisions'
    if recipe.measure == "engines" and "build" not in recipe.stages:
        return 'measure = "engines" needs build among stages'
    return None
