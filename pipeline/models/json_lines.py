"""Users' JSON lines, read strictly: what another reader passes over is refused with file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from pipeline.store import records
from pipeline.types import UserError, first_line

MAX_BYTES = 2**30
"""Bytes of a file of texts or rows at most: all of it is read into memory."""
Row = dict[str, Any]
"""Column → value."""


def read_text(file: Path) -> str:
    """A UTF-8 file as text, line feeds between its lines, without a byte order mark.

    Raises:
        UserError: it is missing, no regular file, larger than MAX_BYTES, no UTF-8, or holds a NUL, as UTF-16
            does.
    """
    try:
        text = records.read_bytes(file, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (position := text.find("\0")) >= 0:
        line = text.count("\n", 0, position) + 1
        raise UserError(f"{file}, line {line}: holds a NUL character; save the file as plain UTF-8")
    return text


def read(file: Path) -> list[tuple[int, Row]]:
    """(line, object) of every line that is not blank.

    Raises:
        UserError: as `read_text`; a line is no JSON object, names a key twice, or holds a number that JSON
            has not (NaN, infinity).
    """
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object")
        rows.append((number, row))
    return rows


def parse(text: str) -> Any:
    """Strict JSON.

    Raises:
        ValueError: malformed, a key twice in one object, a number that is not finite, half a surrogate pair,
            or too deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_a_number, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, which is no character") from None
    except ValueError as error:
        raise ValueError(first_line(error, 200)) from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for key, value in pairs:
        if key in whole:
            raise ValueError(f"the key {key!r:.100} stands there twice")
        whole[key] = value
    return whole


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits:.40} is beyond the largest number")
    return number
