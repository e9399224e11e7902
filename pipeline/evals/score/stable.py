"""Values of a task's configuration in a form that is the same in every process, for digests.

`str` of a function holds its address, and that of a set the order of its hashes: a digest of those never
comes again.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from pipeline import store

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def described(value: object) -> Any:
    """The value as JSON takes it. Functions are their code, all of their module included."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((described(item) for item in value), key=str)
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: described(getattr(value, field.name)) for field in fields(value)}
        return [type(value).__qualname__, named]
    if callable(value):
        return _function(value)
    return _ADDRESS.sub("", str(value))


def _function(function: Callable[..., Any]) -> list[Any]:
    """A function's name, the source of its module, and what it was given when it was made."""
    if isinstance(function, functools.partial):
        return ["partial", _function(function.func), described(function.args), described(function.keywords)]
    plain = inspect.unwrap(function)
    plain = getattr(plain, "__func__", plain)
    name = getattr(plain, "__qualname__", type(plain).__qualname__)
    code = getattr(plain, "__code__", None)
    given = [getattr(plain, "__defaults__", None), getattr(plain, "__kwdefaults__", None)]
    given += [_content(cell) for cell in getattr(plain, "__closure__", None) or ()]
    return [getattr(plain, "__module__", ""), name, _source(plain, code), described(given)]


def _source(plain: Any, code: CodeType | None) -> str:
    """A digest of the file that holds a function, or of its byte code where there is none."""
    try:
        file = inspect.getsourcefile(plain)
        return store.text_digest(Path(file or "").read_text(encoding="utf-8", errors="replace"))
    except (TypeError, OSError):
        return "" if code is None else str([code.co_code.hex(), code.co_names, described(code.co_consts)])


def _content(cell: Any) -> object:
    """What a function keeps of the function around it; itself where it calls itself."""
    try:
        content = cell.cell_contents
    except ValueError:
        return None
    return getattr(content, "__qualname__", content) if callable(content) else content
