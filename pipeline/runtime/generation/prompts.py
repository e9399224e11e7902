"""Prompts as a model wants them: tokenizer, chat template, what ends a text, size of the context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from pipeline.runtime.generation import chat_template
from pipeline.runtime.generation.spelling import Spelling
from pipeline.types import UserError, first_line

FILES = ("tokenizer.json", "generation.json")
"""What `Prompts.save` writes into a folder and `Prompts.load` reads there."""
ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, str]
"""{'role': one of ROLES, 'content': text}."""
Answer = Literal["begins", "goes on", "none"]
"""What stands at the end of a rendered conversation."""
_OPEN = "CONTINUE_FINAL_MESSAGE_TAG "
"""transformers' mark of where the last message ends, in the text that the template makes."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """What a model expects of texts, beyond what its tokenizer's file says.

    Attributes:
        context: tokens that prompt and text may have together.
        ends: token ids that end a text.
        chat_template: Jinja, as its authors published it; None where the model has none.
        special: bos_token, eos_token, … as the template names them.
        rows: tokens that the model's embedding has; None where nothing says it.
        splits_special_tokens: those that a text spells out are read as text.
    """

    context: int
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    special: dict[str, str | list[str]] = field(default_factory=dict)
    rows: int | None = None
    splits_special_tokens: bool = False


class Prompts:
    """Texts and chats → tokens."""

    def __init__(self, tokenizer: Tokenizer, conventions: Conventions) -> None:
        self.tokenizer, self.conventions = tokenizer, conventions
        self.ends = frozenset(conventions.ends)
        if conventions.splits_special_tokens:  # tokenizer.json does not keep it
            tokenizer.encode_special_tokens = True

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """From a folder that `save` wrote."""
        fields = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        return cls(
            plain(Tokenizer.from_file(str(folder / FILES[0]))),
            Conventions(**{**fields, "ends": tuple(fields["ends"])}),
        )

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and generation.json."""
        (folder / FILES[0]).write_text(self.tokenizer.to_str(), encoding="utf-8")
        (folder / FILES[1]).write_text(
            json.dumps(asdict(self.conventions), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """The tokens of a prompt, begun as the tokenizer begins a text; a BOS is not doubled.

        Args:
            text: the prompt.
            begin: False where the text has its own beginning (a chat template's).

        Raises:
            UserError: no text, no Unicode, certainly more than the context holds, or a token that the model's
                embedding has no row for.
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
        special = begin and not (isinstance(bos, str) and text.startswith(bos))
        try:
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        except Exception as error:  # noqa: BLE001 - the library raises Exception itself
            raise UserError(f"the tokenizer cannot read the prompt ({first_line(error)})") from None
        self._refuse_beyond(tokens)
        return tokens

    def _refuse_beyond(self, tokens: Sequence[int]) -> None:
        """Refuses tokens that were added to the tokenizer and never to the model."""
        rows = self.conventions.rows
        if rows is not None and (token := max(tokens, default=0)) >= rows:
            raise UserError(
                f"the prompt holds {self.tokenizer.id_to_token(token)!r}, whose id {token} is beyond the "
                f"{rows} rows of the model's embedding; leave it out, or add rows (resize_token_embeddings)"
            )

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, ended where the assistant's answer begins.

        Raises:
            UserError: malformed messages, no chat template, or one that refuses them.
        """
        return self.encode(self.render(messages), begin=False)

    def render(self, messages: Sequence[Message], answer: Answer = "begins") -> str:
        """The conversation as text, as transformers renders the model's template, in jinja2's sandbox.

        Args:
            messages: the conversation.
            answer: 'begins' asks for an assistant's turn at the end, 'goes on' leaves the last message open,
                'none' does neither.

        Raises:
            UserError: malformed messages, no chat template, or one that refuses them.
        """
        if self.conventions.chat_template is None:
            raise UserError("the model has no chat template; give it a plain prompt")
        _check(messages)
        said = [dict(message) for message in messages]
        if answer == "goes on":
            said[-1]["content"] += _OPEN
        variables = {
            "messages": said,
            "tools": None,
            "documents": None,
            "add_generation_prompt": answer == "begins",
            **self.conventions.special,
        }
        text = chat_template.render(self.conventions.chat_template, variables)
        return _opened(text, messages[-1]["content"]) if answer == "goes on" else text

    @cached_property
    def spelling(self) -> Spelling:
        """The bytes of its tokens."""
        return Spelling(self.tokenizer)

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


def _opened(text: str, last: str) -> str:
    """The text up to the end of the last message, as transformers' `continue_final_message` cuts it."""
    place = text.rfind(_OPEN.strip())
    if place < 0 or last.strip() not in text:
        raise UserError("the model's chat template leaves out the end of the last message, which is to go on")
    return text[:place] if text[place:].startswith(_OPEN) else text[:place].rstrip()
