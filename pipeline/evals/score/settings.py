"""How artefacts are scored: what the model takes, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from pipeline.evals.score import known
from pipeline.types import PROVIDERS, Provider, UserError

WORDS = {str: "text", int: "whole number", bool: "truth value (True or False)"}


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
        provider: of ONNX Runtime, 'cpu' or 'cuda'.
    """

    protocol: str = "lm-eval"
    batch_tokens: int = 2048
    memory_mb: int = 1024
    threads: int = 0
    reuse: bool = True
    unchecked: bool = False
    fresh: bool = False
    journal: bool = True
    provider: Provider = "cpu"

    HARNESS: ClassVar = ("batch_size", "max_batch_size", "device")
    """What lm-eval's own command adds; nothing here follows it."""

    @classmethod
    def names(cls) -> list[str]:
        """Every name in `--model_args`."""
        return ["artefact", *(field.name for field in fields(ModelSettings))]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The settings among options that hold lm-eval's own, too.

        Raises:
            UserError: an option is unknown, or of a wrong type.
        """
        known.refuse_unknown("--model_args", options, cls.names(), cls.HARNESS)
        settings = {name: value for name, value in options.items() if name not in ("artefact", *cls.HARNESS)}
        for name, value in settings.items():
            expected = type(getattr(cls(), name))
            if type(value) is not expected:
                raise UserError(f"--model_args: {name}={value} is no {WORDS[expected]}")
        if settings.get("provider", "cpu") not in PROVIDERS:
            raise UserError(f"--model_args: provider is cpu or cuda, not {settings['provider']}")
        return cls(**settings)


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
        if self.limit is not None and self.limit > 10**9:
            raise UserError(f"--limit {self.limit} is above 10^9; leave it out for all documents")
        if not 0 <= self.threads <= 10_000:
            raise UserError(f"--threads {self.threads} is not between 0 and 10,000")
        if self.num_fewshot is not None and self.num_fewshot > 1000:
            raise UserError(f"--num-fewshot {self.num_fewshot} is above 1,000")
        if self.batch_tokens < 1 or self.memory_mb < 0:
            raise UserError("--batch-tokens must be at least 1, and --cache-mb not negative")
        if self.data is not None and not self.data.is_dir():
            raise UserError(f"--data {self.data} is no folder")
