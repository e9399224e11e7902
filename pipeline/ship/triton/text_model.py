"""Requests to NAME_generate over gRPC."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tritonclient.grpc as client

Field = str | bool | int | float | list[str]
"""The value of one field of a request."""
TYPES: dict[type, tuple[str, Any]] = {
    bool: ("BOOL", np.bool_),
    int: ("INT32", np.int32),
    float: ("FP32", np.float32),
    str: ("BYTES", np.object_),
}
"""Type of a field → Triton's name for it, and numpy's type."""


def tensors(fields: Mapping[str, Field]) -> list[Any]:
    """The fields as Triton's input tensors, each of shape [1, values].

    Raises:
        OverflowError: a number is too large for its type.
    """
    return [_tensor(name, value if isinstance(value, list) else [value]) for name, value in fields.items()]


def _tensor(name: str, values: list[Any]) -> Any:
    kind, dtype = ("UINT64", np.uint64) if name == "seed" else TYPES[type(values[0])]
    tensor = client.InferInput(name, [1, len(values)], kind)
    items = [value.encode() if isinstance(value, str) else value for value in values]
    tensor.set_data_from_numpy(np.array([items], dtype))
    return tensor


def stream(address: str, model: str, fields: Mapping[str, Field], timeout: float = 300) -> Iterator[str]:
    """The pieces of a text as they come, over gRPC's decoupled stream.

    Args:
        address: host:port of the server's gRPC.
        model: NAME_generate.
        fields: of the request.
        timeout: seconds that the server may be silent.

    Raises:
        RuntimeError: the model's error.
    """
    responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with client.InferenceServerClient(address) as triton:
        triton.start_stream(lambda result, error: responses.put((result, error)))
        triton.async_stream_infer(model, tensors(fields), enable_empty_final_response=True)
        while True:
            result, error = responses.get(timeout=timeout)
            if error is not None:
                raise RuntimeError(str(error))
            text = result.as_numpy("text_output")
            if text is not None:
                yield text.reshape(-1)[0].decode()
            if is_last(result):
                return


def is_last(result: Any) -> bool:
    """Whether no further response to the request follows."""
    return bool(result.get_response().parameters["triton_final_response"].bool_param)
