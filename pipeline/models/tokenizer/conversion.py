"""Tokenizers that the `tokenizers` library cannot read as they are: converted, and kept.

sentencepiece's tokenizer.model, vocab.json with merges.txt, and the classes of transformers that do more with
a tokenizer.json than `classes` knows. The conversion takes seconds, so that its result is kept
under calib/<model>/, named by the digest of what it was made of.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline import store
from pipeline.models import identity
from pipeline.models.checkpoint import project_of
from pipeline.models.tokenizer.settings import TokenizerSettings
from pipeline.store import records
from pipeline.types import UserError, first_line

_FORM = "2"
"""Of what is kept; what an earlier version made of a tokenizer.model may have other ids."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted tokenizer.

    Attributes:
        tokenizer: as tokenizer.json has it.
        special: name → special token.
    """

    tokenizer: str
    special: dict[str, str | list[str]]


def convert(folder: Path, settings: TokenizerSettings) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    """The tokenizer of a checkpoint's folder, and its special tokens by name.

    A tokenizer.model is read here where transformers' class is a usual one. What transformers makes of
    another is compared with sentencepiece.

    Raises:
        UserError: it cannot be made, a package that it needs is not installed, or plain texts would get other
            ids than sentencepiece's.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = _by_transformers(folder)
        return tokenizer.backend_tokenizer, tokenizer.special_tokens_map

    def convert_slowly() -> tuple[Tokenizer, dict[str, str | list[str]]]:
        model = folder / "tokenizer.model"
        if model.is_file():
            _refuse_unreadable(model)
            return _of_sentencepiece(model, settings)
        tokenizer = _by_transformers(folder)
        return tokenizer.backend_tokenizer, tokenizer.special_tokens_map

    return kept(folder, convert_slowly)


def _of_sentencepiece(
    model: Path, settings: TokenizerSettings
) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    from pipeline.models.tokenizer import model_file, proof

    if settings.name in model_file.NAMES:
        try:
            return model_file.tokenizer(model, settings)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - the libraries raise Exception itself
            raise UserError(f"{model} has no tokenizer with its settings ({first_line(error)})") from None
    tokenizer = _by_transformers(model.parent)
    proof.refuse_other_ids(model, tokenizer.backend_tokenizer, model_file.read(model))
    return tokenizer.backend_tokenizer, tokenizer.special_tokens_map


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
    parts = [_FORM, identity.tokenizer_digest(folder), config, *map(version, ("transformers", "tokenizers"))]
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


def _is_base64(word: bytes) -> bool:
    try:
        return bool(base64.b64decode(word, validate=True))
    except binascii.Error:
        return False
