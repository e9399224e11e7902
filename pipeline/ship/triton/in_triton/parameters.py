"""Parameters of NAME_generate in config.pbtxt, which users may change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class Parameters:
    """How the model runs.

    Attributes:
        rows: requests side by side at most.
        cache_tokens: tokens of keys and values that the batch may need at most.
        queue: requests that wait at most.
        provider: of ONNX Runtime: 'cpu', 'cuda', or 'auto' for CUDA where it is there.
        threads: of ONNX Runtime; 0 is one a core.
        verify: 'sha256' to hash the artefact before it is opened; anything else trusts it.
    """

    rows: int
    cache_tokens: int
    queue: int
    provider: str = "auto"
    threads: int = 0
    verify: str = "sha256"

    @classmethod
    def of(cls, model_config: str) -> Self:
        """From the JSON of config.pbtxt that Triton gives the model.

        Raises:
            UserError: a parameter is missing or is not a whole number.
        """
        entries = json.loads(model_config)["parameters"]
        texts = {name: entry["string_value"] for name, entry in entries.items()}
        try:
            numbers = {name: int(texts[name]) for name in ("rows", "cache_tokens", "queue", "threads")}
            return cls(**numbers, provider=texts["provider"], verify=texts["verify"])
        except KeyError as error:
            raise UserError(f"config.pbtxt lacks the parameter {error}; ship the model again") from None
        except ValueError as error:
            raise UserError(
                f"config.pbtxt: {error}; rows, cache_tokens, queue, threads are numbers"
            ) from None
