"""Tokenizers that the `tokenizers` library cannot read as they are: converted by transformers, and kept.

sentencepiece's tokenizer.model, vocab.json with merges.txt, and the classes of transformers that do more with
a tokenizer.json than `classes` knows. The conversion takes seconds, so that its result is kept
under calib/<model>/, named by the digest of what it was made of.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline import store
from pipeline.models import identity
from pipeline.models.checkpoint import project_of
from pipeline.store import records
from pipeline.types import UserError, first_line

log = logging.getLogger(__name__)
_PLAIN = ("a", " a b", "  two  spaces ", "naïve café\n", "日本語 🙂")
"""Texts without a special token, which every conversion has to read as sentencepiece does."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted tokenizer.

    Attributes:
        tokenizer: as tokenizer.json has it.
        special: name → special token.
    """

    tokenizer: str
    special: dict[str, str | list[str]]


def convert(folder: Path) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    """The tokenizer of a checkpoint's folder as transformers makes it, and its special tokens by name.

    Raises:
        UserError: transformers cannot make it, or a package that it needs is not installed.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = _by_transformers(folder)
        return tokenizer.backend_tokenizer, tokenizer.special_tokens_map

    def convert_slowly() -> tuple[Tokenizer, dict[str, str | list[str]]]:
        _refuse_unreadable(folder / "tokenizer.model")
        tokenizer = _by_transformers(folder)
        _warn_of_other_ids(folder / "tokenizer.model", tokenizer.backend_tokenizer)
        return tokenizer.backend_tokenizer, tokenizer.special_tokens_map

    return kept(folder, convert_slowly)


def kept(
    folder: Path, convert_slowly: Callable[[], tuple[Tokenizer, dict[str, str | list[str]]]]
) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    """A tokenizer and its special tokens by name, converted now or once before.

    Args:
        folder: of the checkpoint.
        convert_slowly: makes them of its files.
    """
    file = _kept_file(folder)
    conversion = records.read_if_valid(Conversion, file)
    if conversion is None:
        tokenizer, special = convert_slowly()
        conversion = Conversion(tokenizer.to_str(), special)
        store.write_json(file, asdict(conversion))
    return Tokenizer.from_str(conversion.tokenizer), conversion.special


def is_known(name: str) -> bool:
    """Whether transformers has a tokenizer class of this name, written without 'Fast'."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return tokenizer_class_from_name(f"{name}Fast") is not None  # type: ignore[no-untyped-call]


def _kept_file(folder: Path) -> Path:
    """Named by all that the conversion is made of."""
    config = store.sha256(folder / "config.json") if (folder / "config.json").is_file() else None
    parts = [identity.tokenizer_digest(folder), config, *map(version, ("transformers", "tokenizers"))]
    digest = store.text_digest(" ".join(map(str, parts)))
    return project_of(folder).calib(folder.resolve().name) / f"tokenizer-{digest[:16]}.json"


def _by_transformers(folder: Path) -> Any:
    """Transformers' tokenizer, of a class with a fast form."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - the classes of transformers raise what they like
        raise UserError(
            f"{folder} holds no tokenizer that transformers can load ({first_line(error)})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{folder} holds a tokenizer without a fast form ({type(tokenizer).__name__}); "
            "copy a tokenizer.json of this model into it"
        )
    return tokenizer


def _refuse_unreadable(model: Path) -> None:
    """Refuses a tokenizer.model of tiktoken's, and one of sentencepiece's where no package reads it."""
    if not model.is_file():
        return
    with model.open("rb") as file:
        line = file.readline(1000).split()
    if len(line) == 2 and line[1].isdigit() and _is_base64(line[0]):
        raise UserError(
            f"{model} is tiktoken's, and has neither its pattern nor its special tokens; "
            "copy the tokenizer.json of this model beside it"
        )
    missing = [name for name in ("sentencepiece", "google.protobuf") if not store.is_installed(name)]
    if missing:
        raise UserError(
            f"{model} is sentencepiece's: its conversion needs {', '.join(missing)}; "
            "run `pip install 'skip-pipeline[sentencepiece]'`, or copy a tokenizer.json beside it"
        )


def _warn_of_other_ids(model: Path, tokenizer: Tokenizer) -> None:
    """Says so where plain text gets other ids than sentencepiece's, as Llama's do by transformers 5.24."""
    if not model.is_file():
        return
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in _PLAIN:
        if tokenizer.encode(text, add_special_tokens=False).ids != own.encode(text):
            log.warning(
                "warning: %s: transformers %s makes a tokenizer of it that reads %r otherwise than "
                "sentencepiece does; copy the model's tokenizer.json beside it, or convert with version 4.57",
                model, version("transformers"), text,
            )  # fmt: skip
            return


def _is_base64(word: bytes) -> bool:
    try:
        return bool(base64.b64decode(word, validate=True))
    except binascii.Error:
        return False
