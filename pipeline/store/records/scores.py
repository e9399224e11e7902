"""What `score` found."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.store.records.artefacts import Weights
from pipeline.store.records.base import Count, Digest, Magnitude, Number, Record, VariantName

LOWER_IS_BETTER = ("loss",)
_LEAST_LOSS = 1e-12
_YEAR_9999 = 253_370_764_800
"""Its first second: the last year that dates are written for."""


class Score(Record):
    """One benchmark's value for one artefact.

    Attributes:
        artefact: its path; in a file relative to that file.
        metric: lm-eval's name of it; `loss` is the token loss over log V.
        value: as a fraction (a loss as it is); stderr its standard error, n the documents behind it.
        chance: the fraction that guessing gets right; None where it is not known.
        limit: documents a task at most, None for all of them.
        num_fewshot: examples before each question, where they are not the benchmark's own number.
        weights: identity of the checkpoint.
        contents: digest of all its bytes.
        complete: whether these are the rows of the published set; None where the hub gave them.
        protocol: 'lm-eval', 'v1', or 'v1-like' where the shots or rows are not those of the protocol.
        work: tokens, padding, passes and seconds that the answers took, in this run and in those before it
            whose answers it found; `asked` is what one pass per request would have taken.
        samples: file of the single answers, beside this one.
        provider: 'cuda' where a graph ran on ONNX Runtime's CUDA provider; None on the CPU, and of engines.
    """

    variant: VariantName
    artefact: str
    sha256: Digest
    weights: Weights | None = None
    contents: Digest | None = None
    benchmark: str
    title: str
    metric: str
    value: Number
    stderr: Magnitude | None = None
    chance: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Count
    limit: Count | None = None
    num_fewshot: Count | None = None
    protocol: str
    complete: bool | None = None
    shots: str | None = None
    checked: bool
    work: dict[str, Count] = {}
    samples: str | None = None
    provider: Literal["cuda"] | None = None

    @model_validator(mode="after")
    def _is_a_loss(self) -> Self:
        """A token loss is divided by, where losses are compared."""
        if self.is_loss and self.value < _LEAST_LOSS:
            raise ValueError(f"a token loss of {self.value} is none: it is above 0")
        return self

    @property
    def key(self) -> str:
        """'arc', 'arc.v1', 'arc.0shot.limit20': what tells it from other scores of the artefact."""
        return score_key(self.benchmark, self.protocol, self.num_fewshot, self.limit)

    @property
    def is_loss(self) -> bool:
        """Whether less of it is better."""
        return self.metric in LOWER_IS_BETTER

    @property
    def text(self) -> str:
        """'26.88 ±1.30', in % but for a loss."""
        scale, digits = (1, 4) if self.is_loss else (100, 2)
        error = "" if self.stderr is None else f" ±{self.stderr * scale:.{digits}f}"
        return f"{self.value * scale:.{digits}f}{error}"

    @property
    def is_whole(self) -> bool:
        """Whether it rests on the whole published set, as far as is known."""
        return self.limit is None and self.complete is not False


def score_key(benchmark: str, protocol: str, num_fewshot: int | None, limit: int | None) -> str:
    """'arc', 'arc.v1', 'arc.0shot.limit20': the name of a benchmark's result among those of an artefact."""
    version = "" if protocol == "lm-eval" else ".v1"
    shots = "" if num_fewshot is None else f".{num_fewshot}shot"
    return benchmark + version + shots + (f".limit{limit}" if limit else "")


class DataSource(Record):
    """Where the rows of a split came from.

    Attributes:
        file: their path, in a result relative to it; or a dataset of the hub.
        rows: how many there are.
        official_rows: how many the published set has; of a family, all its subjects together.
        sha256: of the file, or of the texts from the hub.
    """

    file: str
    rows: Count = 0
    official_rows: Count | None = None
    sha256: Digest | None = None


class ScoreConfig(Record):
    """The part of lm-eval's `config` that this project reads back."""

    device: str = "unknown"
    limit: Count | None = None


class ScoreRecord(Record):
    """evals/results/<model>/….score.<benchmark>.json: lm-eval's own form, with our score under `pipeline`.

    Attributes:
        pipeline: the score.
        date: when it was measured, seconds since 1970.
        data: task → split → where its rows came from.
    """

    pipeline: Score
    config: ScoreConfig = ScoreConfig()
    versions: dict[str, str | Number | None] = {}
    lm_eval_version: str | None = None
    date: Annotated[float, Field(ge=0, le=_YEAR_9999)] = 0.0
    data: dict[str, dict[str, DataSource]] = Field(default_factory=dict)
