"""A model's chat template, rendered as transformers renders it, in jinja2's sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.types import UserError, first_line


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables.

    Raises:
        UserError: it is no template, or refuses the variables.
    """
    try:
        return _environment().from_string(template).render(variables)
    except Exception as error:  # noqa: BLE001 - the template is the checkpoint's program; it may raise anything
        raise UserError(f"the model's chat template refuses these messages: {first_line(error)}") from None


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
