"""Parameters of NAME_generate in config.pbtxt, which users may change."""

from __future__ import annotations

import json
import math
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
        request_timeout: seconds that a request may wait and run; what was shipped before 0.2 lacks it.
    """

    rows: int
    cache_tokens: int
    queue: int
    provider: str = "auto"
    threads: int = 0
    verify: str = "sha256"
    request_timeout: float = 300

    @classmethod
    def of(cls, model_config: str) -> Self:
        """From the JSON of config.pbtxt that Triton gives the model.

        Raises:
            UserError: a parameter is missing, or is not a number in its range.
        """
        entries = json.loads(model_config)["parameters"]
        texts = {name: entry["string_value"] for name, entry in entries.items()}
        try:
            numbers = {name: int(texts[name]) for name in ("rows", "cache_tokens", "queue", "threads")}
            timeout = seconds(texts.get("request_timeout", "300"), "config.pbtxt: request_timeout")
            return cls(**numbers, provider=texts["provider"], verify=texts["verify"], request_timeout=timeout)
        except KeyError as error:
            raise UserError(f"config.pbtxt lacks the parameter {error}; ship the model again") from None
        except ValueError as error:
            raise UserError(
                f"config.pbtxt: {error}; rows, cache_tokens, queue, threads are numbers"
            ) from None


def seconds(text: str, name: str) -> float:
    """A time above 0, from its text.

    Raises:
        UserError: it is none; `name` says where it stands.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{name} is {text!r}, and not a number of seconds above 0")
    return number
