"""TOML and YAML that users write, read strictly: what their libraries let through is refused in one line.

YAML's anchors multiply (a file of 400 bytes becomes gigabytes), its tags name Python objects, and the last
of two equal keys wins. TOML's hexadecimal integers have any length, and cannot be printed; `tomllib` takes
memory by the square of a dotted key's parts (40 kB of `a.a.a` become 1.6 GB).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.store.records.base import read_bytes
from pipeline.types import UserError, first_line

MAX_BYTES = 2**20
"""Bytes of a file that is written by hand, at most."""
MAX_DEPTH = 32
"""Tables or lists inside each other."""
_PART = rb"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+')"""
_DEEP_KEY = re.compile(
    rb"(?<![A-Za-z0-9_-])" + _PART + rb"(?:[ \t]{0,9}+\.[ \t]{0,9}+" + _PART + rb"){%d}" % MAX_DEPTH
)
_INT64 = range(-(2**63), 2**63)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UserError: it is missing, no regular file, too large, no TOML, nested too deep, or has an integer
            beyond 64 bits.
    """
    data = read_bytes(path, MAX_BYTES)
    if _DEEP_KEY.search(data):
        raise UserError(f"{path} cannot be read as TOML: nested too deep")
    try:
        tables = tomllib.loads(data.decode())
        _refuse_odd(tables)
    except RecursionError:
        raise UserError(f"{path} cannot be read as TOML: nested too deep") from None
    except ValueError as error:  # TOML, UTF-8, or an integer of thousands of digits
        raise UserError(f"{path} cannot be read as TOML: {first_line(error)}") from None
    return tables


def read_yaml(path: Path) -> Any:
    """The document in a YAML file, of plain values only.

    Raises:
        UserError: it is missing, no regular file, too large, no YAML, has an anchor, a tag, a key twice or an
            integer beyond 64 bits, or is nested too deep.
    """
    import yaml

    data = read_bytes(path, MAX_BYTES)
    try:
        text = data.decode()
        _refuse_anchors(text)
        document = yaml.load(text, Loader=_plain_loader())
        _refuse_odd(document)
    except RecursionError:
        raise UserError(f"{path} cannot be read as YAML: nested too deep") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as YAML: {words:.300}") from None
    return document


def _refuse_anchors(text: str) -> None:
    """Refuses anchors, of which none is needed here, before anything is made of them; and depth."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(
                f"line {event.start_mark.line + 1} has an anchor or an alias; write the value out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"line {event.start_mark.line + 1} is nested too deep")


def _plain_loader() -> Any:
    """PyYAML's safe loader, which takes no key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(mapping) != len(node.value):
                raise ValueError(f"line {node.start_mark.line + 1}: a key stands there twice")
            return mapping

    return Loader


def _refuse_odd(value: Any) -> None:
    """Refuses depth, and integers that nothing here counts and that Python does not print."""
    for one, depth in _values(value):
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        if isinstance(one, int) and one not in _INT64:
            raise ValueError("an integer is beyond 64 bits")
        if isinstance(one, str):
            _refuse_halves(one)


def _refuse_halves(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, which is no character") from None


def _values(value: Any) -> Iterator[tuple[Any, int]]:
    """(value, depth) of everything in a document, the keys too."""
    stack = [(value, 0)]
    while stack:
        one, depth = stack.pop()
        yield one, depth
        inner = [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else ()
        stack.extend((part, depth + 1) for part in inner)
