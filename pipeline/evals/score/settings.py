"""How artefacts are scored: what the model takes, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How an artefact answers lm-eval's questions.

    Attributes:
        protocol: 'lm-eval' or 'v1' (no BOS).
        batch_tokens: tokens of one forward pass.
        memory_mb: of the prefix cache.
        threads: of the CPU; 0 is one a core.
        reuse: False computes each request whole.
        unchecked: take an artefact that has not passed its check.
        fresh: start without the answers that earlier runs kept.
        journal: False keeps no answers on disk (for measuring).
    """

    protocol: str = "lm-eval"
    batch_tokens: int = 2048
    memory_mb: int = 1024
    threads: int = 0
    reuse: bool = True
    unchecked: bool = False
    fresh: bool = False
    journal: bool = True

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The settings among options that hold others too: lm-eval adds its own device and batch size."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names})


@dataclass(frozen=True, slots=True)
class ScoreSettings(ModelSettings):
    """What `score` runs.

    Attributes:
        limit: documents a task at most; None is all of them.
        num_fewshot: examples before each question, where that differs from the benchmark's own number.
        data: folder of local rows; None takes them from the hub.
        log_samples: write every question's answers beside the result.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    data: Path | None = None
    log_samples: bool = False

    def validate(self) -> None:
        """Refuses values that mean nothing.

        Raises:
            UserError: names the option.
        """
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit} is not at least 1")
        if self.batch_tokens < 1 or self.memory_mb < 0:
            raise UserError("--batch-tokens must be at least 1, and --cache-mb not negative")
        if self.data is not None and not self.data.is_dir():
            raise UserError(f"--data {self.data} is no folder")
