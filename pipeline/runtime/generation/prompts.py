"""Prompts as a model wants them: tokenizer, chat template, what ends a text, size of the context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from pipeline.types import UserError, first_line

FILES = ("tokenizer.json", "generation.json")
"""What `Prompts.save` writes into a folder and `Prompts.load` reads there."""
ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, str]
"""{'role': one of ROLES, 'content': text}."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """What a model expects of texts, beyond what its tokenizer's file says.

    Attributes:
        context: tokens that prompt and text may have together.
        ends: token ids that end a text.
        chat_template: Jinja, as its authors published it; None where the model has none.
        special: bos_token, eos_token, … as the template names them.
    """

    context: int
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    special: dict[str, str] = field(default_factory=dict)


class Prompts:
    """Texts and chats → tokens."""

    def __init__(self, tokenizer: Tokenizer, conventions: Conventions) -> None:
        self.tokenizer, self.conventions = tokenizer, conventions
        self.ends = frozenset(conventions.ends)

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """From a folder that `save` wrote."""
        fields = json.loads((folder / FILES[1]).read_text())
        return cls(
            plain(Tokenizer.from_file(str(folder / FILES[0]))),
            Conventions(**{**fields, "ends": tuple(fields["ends"])}),
        )

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and generation.json."""
        (folder / FILES[0]).write_text(self.tokenizer.to_str())
        (folder / FILES[1]).write_text(
            json.dumps(asdict(self.conventions), indent=1, ensure_ascii=False) + "\n"
        )

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """The tokens of a prompt, begun as the tokenizer begins a text; a BOS is not doubled.

        Args:
            text: the prompt.
            begin: False where the text has its own beginning (a chat template's).

        Raises:
            UserError: no text, no Unicode, or certainly more than the context holds.
        """
        if not text:
            raise UserError("the prompt is empty")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise UserError(
                f"the prompt is no Unicode text: half a surrogate pair at character {error.start}"
            ) from None
        context = self.conventions.context
        if size > context * self.longest:  # it cannot fit, whatever its tokens: megabytes are not tokenized
            raise UserError(f"the prompt of {size:,} bytes is longer than the context of {context} tokens")
        bos = self.conventions.special.get("bos_token")
        special = begin and not (bos and text.startswith(bos))
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, ended where the assistant's answer begins.

        Raises:
            UserError: malformed messages, no chat template, or one that refuses them.
        """
        return self.encode(self.render(messages), begin=False)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, as transformers renders the model's template, in jinja2's sandbox."""
        if self.conventions.chat_template is None:
            raise UserError("the model has no chat template; give it a plain prompt")
        _check(messages)
        variables = {
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self.conventions.special,
        }
        try:
            return _environment().from_string(self.conventions.chat_template).render(variables)
        except Exception as error:  # noqa: BLE001 - the template is the checkpoint's program; it may raise anything
            raise UserError(
                f"the model's chat template refuses these messages: {first_line(error)}"
            ) from None

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(len(word.encode()) for word in self.tokenizer.get_vocab())


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without the truncation and padding that its file may set."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check(messages: Sequence[Message]) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError("messages is not a list of at least one message")
    for number, message in enumerate(messages):
        if (
            not isinstance(message, Mapping)
            or not isinstance(message.get("content"), str)
            or message.get("role") not in ROLES
        ):
            raise UserError(f"messages[{number}] is not a role ({', '.join(ROLES)}) with a content of text")


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
