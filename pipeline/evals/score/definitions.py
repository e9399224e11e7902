"""What the YAML of a benchmark says, as types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.evals.score.row_checks import FORMS, FormName
from pipeline.store import markup
from pipeline.types import UserError

CHOSEN = ("acc", "acc_norm")
"""Metrics of a choice among several: those for which guessing has a known value."""
_FORM = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _within(path: str) -> str:
    """A path that stays in the folder which it is read from.

    Raises:
        ValueError: it does not, or no file can have it.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts or not path.isprintable() or len(path) > 1000:
        raise ValueError(f"{path[:80]!r} is no path inside the folder of what it names")
    return path


class Split(BaseModel):
    """The rows of one split.

    Attributes:
        file: in the data folder, without its suffix.
        rows: how many the official set has.
        home: the dataset of the hub that they come from ("from" in the file).
    """

    model_config = _FORM
    file: Annotated[str, AfterValidator(_within)]
    rows: int
    home: str = Field(alias="from")


class TaskDefinition(BaseModel):
    """A task of lm-eval's, or a family of them.

    Attributes:
        harness: the YAML's path under lm_eval/tasks; a `*` in it makes a family; None for a token loss.
        num_fewshot: examples before each question.
        metric: as lm-eval names it.
        columns: what a row must have.
        data: name of a split → its rows.
        form: what the columns hold (`row_checks.FORMS`); None where nobody here knows.
        choices: how many choices each question has; None for any number.
    """

    model_config = _FORM
    harness: Annotated[str, AfterValidator(_within)] | None
    num_fewshot: Annotated[int, Field(ge=0, le=1000)]
    metric: str
    columns: list[str]
    data: dict[str, Split]
    form: FormName | None = None
    choices: int | None = Field(default=None, ge=1)

    @property
    def chance(self) -> float | None:
        """The fraction that guessing gets right; None where it is not known."""
        return 1 / self.choices if self.choices and self.metric in CHOSEN else None

    @model_validator(mode="after")
    def _has_the_columns_of_its_form(self) -> Self:
        form = FORMS[self.form] if self.form else None
        if form and (lacking := sorted((form.values | form.texts) - set(self.columns))):
            raise ValueError(f"lacks columns of the form {self.form}: {', '.join(lacking)}")
        return self


class SingleDefinition(TaskDefinition):
    """A benchmark that is one task, or one family."""

    title: str
    source: str


class CompositeDefinition(BaseModel):
    """A benchmark of several tasks, whose value is their mean."""

    model_config = _FORM
    title: str
    source: str
    metric: str
    parts: dict[str, TaskDefinition]


class MeanDefinition(BaseModel):
    """The mean of benchmarks that lie beside it; scoring it scores each of them, too.

    Attributes:
        mean_of: their names.
    """

    model_config = _FORM
    title: str
    source: str
    metric: str
    mean_of: Annotated[list[Annotated[str, AfterValidator(_within)]], Field(min_length=1)]


Definition = SingleDefinition | CompositeDefinition | MeanDefinition


def read(file: Path) -> Definition:
    """A benchmark's definition.

    Raises:
        UserError: the file is none.
    """
    data = markup.read_yaml(file)
    keys = data.keys() if isinstance(data, dict) else ()
    form: type[Definition] = (
        MeanDefinition if "mean_of" in keys else CompositeDefinition if "parts" in keys else SingleDefinition
    )
    try:
        return form.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{file} is no benchmark: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from None


def read_single(file: Path) -> SingleDefinition:
    """The definition of a benchmark of one task.

    Raises:
        UserError: the file is missing, or is none.
    """
    if not isinstance(read_as := read(file), SingleDefinition):
        raise UserError(f"{file} is no benchmark of one task, and only such ones make a mean")
    return read_as
