"""What models use of `triton_python_backend_utils`, which exists in Triton's Python processes alone."""

from __future__ import annotations

import json
import sys
import threading
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = range(4)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.text, self.code = message, code

    def message(self) -> str:
        return self.text


class TritonModelException(Exception):
    pass


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def values(self) -> dict[str, Any]:
        """Output → its only value, text decoded."""
        items = {tensor.name(): tensor.as_numpy().reshape(-1)[0] for tensor in self.output_tensors}
        return {name: item.decode() if isinstance(item, bytes) else item for name, item in items.items()}


class Sender:
    """Where a request's responses go."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.final, self.cancelled = threading.Event(), False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        self.responses.append(response)
        if flags:
            self.final.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class Request:
    """A request with these fields, shaped as Triton's generate endpoint shapes them."""

    def __init__(self, parameters: dict[str, Any] | None = None, **fields: Any) -> None:
        self.sender, self._parameters, self.fields = Sender(), parameters or {}, fields

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, _array(value)) for name, value in self.fields.items()]

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def get_response_sender(self) -> Sender:
        return self.sender

    def requested_output_names(self) -> list[str]:
        return self.fields["outputs"]


def _array(value: Any) -> Any:
    """The value as an array [1, values]."""
    if isinstance(value, np.ndarray):
        return value
    items = value if isinstance(value, list) else [value]
    is_text = isinstance(items[0], str | bytes)
    encoded = [item.encode() if isinstance(item, str) else item for item in items]
    return np.array([encoded], np.object_ if is_text else None)


class Metric:
    def __init__(self) -> None:
        self.value = 0

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        self.value += value


class MetricFamily:
    GAUGE, COUNTER = "gauge", "counter"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802 - Triton's name
        return Metric()


class Logger:
    lines: list[str] = []  # noqa: RUF012 - tests read it

    @classmethod
    def log_info(cls, line: str) -> None:
        cls.lines.append(line)

    log_warn = log_info


def get_input_tensor_by_name(request: Request, name: str) -> Tensor:
    return Tensor(name, request.fields["inputs"][name])


def install() -> None:
    """Makes it importable under Triton's name."""
    module = types.ModuleType("triton_python_backend_utils")
    names = (
        TritonError, TritonModelException, Tensor, InferenceResponse, MetricFamily, Logger,
        get_input_tensor_by_name,
    )  # fmt: skip
    vars(module).update({one.__name__: one for one in names}, TRITONSERVER_RESPONSE_COMPLETE_FINAL=1)
    sys.modules.setdefault(module.__name__, module)
