"""JSON that would end Triton 24.10, refused before it gets there.

Its parser overflows the stack where lists are nested 100,000 deep, and a shape whose bytes overflow 64 bits
writes beyond its buffer: 200 kB, or 80 bytes, of any client would end the server.
Format: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

from pipeline.types import UserError

LARGEST = 16 * 2**20
"""Bytes of JSON, at most; larger tensors are sent in binary form behind it."""
LONGEST = 2**31 - 1
"""Of a dimension: one that is 0 makes any other look small."""
UNREAD = "failed to parse the request JSON: "


def check(body: bytes, header: str | None, has_tensors: bool) -> None:
    """Whether Triton may read this body.

    Args:
        body: whole.
        header: Inference-Header-Content-Length, the bytes of JSON before the tensors; None for all.
        has_tensors: it is a request to `infer`, whose inputs have shapes. Others have no binary part.

    Raises:
        UserError: it may not; the message says why.
    """
    end = len(body)
    if has_tensors and header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 20 and int(header) <= end):
            raise UserError(f"inference header size should be in range [0, {end}], got: {header[:50]}")
        end = int(header)
        if not end:  # a tensor alone; its shape is what its bytes say
            return
    if end > LARGEST:
        raise UserError(f"there are more than {LARGEST:,} bytes of JSON; send tensors in binary form")
    fields = _parsed(body[:end])
    if has_tensors and isinstance(fields, dict):
        inputs = fields.get("inputs")
        for tensor in inputs if isinstance(inputs, list) else []:
            _check_shape(tensor, len(body))


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), strict=False, object_pairs_hook=_unique)
    except RecursionError:
        raise UserError(f"{UNREAD}it is nested too deep") from None
    except ValueError as error:
        raise UserError(f"{UNREAD}{error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two equal names Triton would read the other one."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return fields


def _check_shape(tensor: Any, size: int) -> None:
    """An element takes a byte at least, whether as JSON or in binary form."""
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise UserError("each of the inputs is an object with a shape of whole numbers")
    if len(shape) > 8 or max(shape, default=0) > LONGEST or prod(shape) > size:
        raise UserError(
            "an input's shape has more elements than the body has bytes, or more than 8 dimensions"
        )
