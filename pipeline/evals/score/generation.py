"""How a task wants its texts written, from lm-eval's `generation_kwargs` and `--gen_kwargs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lm_eval.models.utils import normalize_gen_kwargs

from pipeline.evals.score import known
from pipeline.types import UserError, first_line

TOKENS = 256
"""Tokens of a text at most where the task does not say, as in lm-eval."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the one length, as lm-eval takes them."""
DRAWS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "seed")
"""Settings of the draw: they change nothing where nothing is drawn."""
NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1,
    "no_repeat_ngram_size": 0, "presence_penalty": 0, "frequency_penalty": 0, "early_stopping": False,
    "use_cache": True,
}  # fmt: skip
"""Settings that must have the value under which they change nothing."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How texts are written: greedily.

    Attributes:
        max_tokens: of a text at most.
        until: strings that end it.
        room: tokens that the window leaves for the prompt.
    """

    max_tokens: int
    until: tuple[str, ...]
    room: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any], window: int) -> Self:
        """The settings in a request's arguments.

        Args:
            arguments: lm-eval's, as the task and `--gen_kwargs` say.
            window: tokens of the model's context.

        Raises:
            UserError: an argument is unknown, asks for what is not done here, or leaves no room.
        """
        refuse(arguments)
        try:
            settings: Any = normalize_gen_kwargs(dict(arguments), TOKENS)
        except (ValueError, TypeError) as error:
            raise UserError(f"--gen_kwargs or the task: {first_line(error)}") from None
        if settings["do_sample"]:
            raise UserError(
                "the task samples (do_sample: true), and scoring decodes greedily; "
                "pass --gen_kwargs do_sample=False"
            )
        until, most = settings["until"], settings["max_gen_toks"]
        if not all(isinstance(term, str) for term in until):
            raise UserError(f"until is no list of strings: {until!r}")
        if most < 1:
            raise UserError(f"max_gen_toks {most} is not at least 1")
        if most >= window:
            raise UserError(
                f"the task writes {most} tokens, and the model's window holds {window} with the prompt; "
                "take another task, or pass --gen_kwargs max_gen_toks=…"
            )
        return cls(most, tuple(until), window - most)


def refuse(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that nothing here would obey.

    Raises:
        UserError: names the argument, and the nearest one that there is.
    """
    known.refuse_unknown("--gen_kwargs", arguments, ("until", "do_sample", *LENGTHS, *DRAWS), NEUTRAL)
    for name, value in arguments.items():
        if name in NEUTRAL and value not in (None, NEUTRAL[name]):
            raise UserError(
                f"{name}={value} is not done here: scoring decodes greedily, one token after the other; "
                f"leave it out"
            )
