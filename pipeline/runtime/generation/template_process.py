"""The process that renders chat templates: a line of JSON in, a line of JSON out, within bounds.

A template is the checkpoint's program. jinja2's sandbox keeps it from the machine, but not from time and
memory: `'a' * 10**9` or `'%999999999d' % 1` is one call in C, which no timer in Python interrupts. So it runs
in this process, which `chat_template` starts and may kill.
"""

from __future__ import annotations

import functools
import json
import resource
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.types import first_line

MEMORY = 512 * 2**20
"""Bytes of address space that a rendering may have, the interpreter's 40 MB included."""
OUTPUT = 10**6
"""Characters that a template may write."""
SECONDS = 3
"""Of the processor's time, after which the kernel ends a rendering that nobody waits for any more."""


def serve() -> None:
    """Answers each line of stdin, {"template": …, "variables": …}, by {"text": …} or {"error": …} on stdout.

    It ends with its stdin, so with the process that holds the other end, however that one ends.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("{}", flush=True)  # it is up: from here on a rendering takes a millisecond
    for line in sys.stdin.buffer:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps(_answer(line)), flush=True)


def _answer(line: bytes) -> dict[str, str]:
    try:
        request = json.loads(line)
        return {"text": _render(request["template"], request["variables"])}
    except MemoryError:
        return {"error": f"it takes over {MEMORY // 2**20} MB of memory"}
    except Exception as error:  # noqa: BLE001 - the template is the checkpoint's program; it may raise anything
        return {"error": first_line(error)}


def _render(template: str, variables: Mapping[str, Any]) -> str:
    pieces, size = list[str](), 0
    for piece in _compiled(template).generate(variables):
        size += len(piece)
        if size > OUTPUT:
            raise TemplateError(f"it writes over {OUTPUT:,} characters")
        pieces.append(piece)
    return "".join(pieces)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """jinja2 with what transformers gives its templates."""
    extensions: list[Any] = [loopcontrols, _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment


class _Generation(Extension):
    """The block that marks the assistant's words for training: its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> list[Node]:
        """The nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
