"""How much of a GPU's memory a command may load at once: what --device-memory says.

The number lies in the environment, so that processes that the command starts have it too.
"""

from __future__ import annotations

import math
import os

from pipeline.types import UserError

VARIABLE = "PIPELINE_DEVICE_MEMORY"
GB = 10**9
_RAN_OUT = ("out of memory", "failed to allocate memory", "available memory of")
"""PyTorch's words, and those of ONNX Runtime's arena when there is no more, and when its limit is reached."""


def parsed(text: str) -> float:
    """GB as a number.

    Raises:
        UserError: it is none, or not above 0.
    """
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise UserError(f"--device-memory ({VARIABLE}) is a number of GB above 0, not {text!r:.40}")
    return gigabytes


def bound() -> int | None:
    """Bytes that may be loaded at once; None where nothing bounds them.

    Raises:
        UserError: the environment names no number above 0.
    """
    text = os.environ.get(VARIABLE)
    return int(parsed(text) * GB) if text else None


def require_room(what: str, needed: float) -> None:
    """Refuses what is larger than the bound.

    Args:
        what: will be loaded, in words that `need` follows.
        needed: bytes of its weights.

    Raises:
        UserError: it does not fit.
    """
    given = bound()
    if given is not None and needed > given:
        raise UserError(
            f"{what} need {needed / GB:.3g} GB of the GPU's memory, and --device-memory gives "
            f"{given / GB:.3g} GB"
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error of PyTorch's or ONNX Runtime's says that the GPU's memory is full."""
    room = type(error).__module__.split(".")[0]
    return room in ("torch", "onnxruntime") and any(words in str(error).lower() for words in _RAN_OUT)
