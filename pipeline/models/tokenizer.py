"""A checkpoint's tokenizer, its chat template, the ends of a text and its context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.models.config import read_config, read_generation_config
from pipeline.runtime.generation.prompts import Conventions, Prompts, plain
from pipeline.types import UserError, first_line

CONTEXT = 2048
"""Tokens of a context that the config does not name."""


def load(folder: Path) -> Any:
    """The model's tokenizer, as its authors published it.

    Raises:
        UserError: the folder holds none, or none that transformers can load.
    """
    from transformers import AutoTokenizer

    if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").is_file():
        raise UserError(f"{folder} holds no tokenizer; copy the model's tokenizer files into it")
    try:
        return AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds no tokenizer that transformers can load ({first_line(error)})"
        ) from None


def prompts(folder: Path) -> Prompts:
    """A checkpoint's tokenizer, chat template, ends of a text and context, for generation.

    Raises:
        UserError: no tokenizer, or one that has no fast form.
    """
    words = load(folder)
    if not getattr(words, "is_fast", False):
        raise UserError(
            f"{folder} holds a tokenizer without a fast form (tokenizer.json), which generation needs"
        )
    special = {key: value for key, value in words.special_tokens_map.items() if isinstance(value, str)}
    template = words.chat_template
    if isinstance(template, dict):  # several by name; transformers, too, takes the default one
        template = template.get("default")
    conventions = Conventions(context(folder), tuple(sorted(stop_tokens(folder))), template, special)
    return Prompts(plain(words.backend_tokenizer), conventions)


def context(folder: Path) -> int:
    """Tokens that a text may have: the model's window."""
    config = read_config(folder)
    lengths = (config.get(key) for key in ("max_position_embeddings", "n_positions", "n_ctx"))
    return int(next((length for length in lengths if length), CONTEXT))


def stop_tokens(folder: Path) -> frozenset[int]:
    """The end-of-text ids that the model's generation_config.json (or config.json) names."""
    for name, read in (("generation_config.json", read_generation_config), ("config.json", read_config)):
        ids = read(folder).get("eos_token_id") if (folder / name).is_file() else None
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()
