"""A checkpoint's tokenizer, its chat template, the ends of a text and its context.

The ids are those of transformers' class, from tokenizer.json by the `tokenizers` library alone, or those of
sentencepiece from tokenizer.model. Neither torch nor transformers is imported unless the checkpoint has
neither file, or a class that is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, models

from pipeline.models.config import read_config, read_generation_config
from pipeline.models.tokenizer import classes, conversion, qwen
from pipeline.models.tokenizer.settings import BACKEND, ChatTemplate, TokenizerSettings, read_settings
from pipeline.runtime.generation.prompts import Conventions, Prompts, plain
from pipeline.store import records
from pipeline.types import UserError, first_line

CONTEXT = 2048
"""Tokens of a context that the config does not name."""
SLOW_FILES = ("tokenizer.model", "vocab.json", qwen.FILE)
"""What a tokenizer is converted from where there is no tokenizer.json."""
_ANSWER = "The answer 7 8 9"
"""What an assistant says to a chat template, to learn what comes after it."""
_ARTIFACTS = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s",
    " 've": "'ve", " 're": "'re",
}  # fmt: skip
"""What `clean_up_tokenization_spaces` replaces, in transformers' order."""


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        backend: of the `tokenizers` library, as transformers sets it up.
        special: name → special token: bos_token, eos_token, …
        chat_template: one, several by name, or none.
        cleans_up: decoding joins spaces and punctuation, as tokenizer_config.json of old says.
    """

    backend: Tokenizer
    special: dict[str, str | list[str]] = field(default_factory=dict)
    chat_template: ChatTemplate = None
    cleans_up: bool = False

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, between the BOS and the EOS of the tokenizer where those are wanted.

        Raises:
            UserError: no Unicode text, or one that the tokenizer has no token for.
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # noqa: BLE001 - the library raises Exception itself
            raise UserError(f"the tokenizer cannot read the text ({first_line(error)})") from None
        return ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens, as transformers' `decode`."""
        text: str = self.backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        for artifact, clean in _ARTIFACTS.items() if self.cleans_up else ():
            text = text.replace(artifact, clean)
        return text

    @cached_property
    def prefix(self) -> list[int]:
        """What stands before every text: a BOS, or nothing."""
        encoding = self.backend.encode("a")
        mask: list[int] = encoding.special_tokens_mask
        return list(encoding.ids[: mask.index(0) if 0 in mask else 0])

    @property
    def bos_token_id(self) -> int | None:
        """None where there is no BOS."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """None where there is no EOS."""
        return self._id("eos_token")

    def beyond(self, rows: int) -> dict[str, int]:
        """The tokens whose id an embedding of so many rows lacks, in the order of their ids."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        beyond = [(number, token) for token, number in vocabulary.items() if number >= rows]
        return {token: number for number, token in sorted(beyond)}

    def _id(self, name: str) -> int | None:
        token = self.special.get(name)
        number: int | None = self.backend.token_to_id(token) if isinstance(token, str) else None
        return number


def exists(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a tokenizer."""
    return any(records.is_there(folder / name) for name in ("tokenizer.json", *SLOW_FILES))


def load(folder: Path) -> CheckpointTokenizer:
    """The model's tokenizer, as its authors published it.

    Raises:
        UserError: the folder holds none, or none that can be read.
    """
    if not exists(folder):
        raise UserError(f"{folder} holds no tokenizer; copy the model's tokenizer files into it")
    settings = read_settings(folder)
    if settings.name == qwen.NAME and records.is_there(folder / qwen.FILE):
        return _first_qwens(folder, settings)
    _refuse_program(folder, settings)
    if records.is_there(folder / "tokenizer.json") and _is_read_here(settings.name):
        backend, special = _from_file(folder, settings)
    else:
        backend, special = conversion.convert(folder, settings)
        backend.encode_special_tokens = bool(settings.values.get("split_special_tokens", False))
    return CheckpointTokenizer(plain(backend), special, settings.chat_template, _cleans_up(backend, settings))


def _first_qwens(folder: Path, settings: TokenizerSettings) -> CheckpointTokenizer:
    """The tokenizer of qwen.tiktoken, without the program that reads it elsewhere."""
    if settings.values.get("extra_vocab_file"):
        raise UserError(
            f"{folder}: tokenizer_config.json adds words with extra_vocab_file, which is not read here; "
            "save the tokenizer as a tokenizer.json, and remove tokenizer_class and auto_map"
        )
    backend, special = conversion.kept(folder, lambda: (qwen.read(folder), {"eos_token": qwen.END}))
    return CheckpointTokenizer(plain(backend), special, settings.chat_template)


def _refuse_program(folder: Path, settings: TokenizerSettings) -> None:
    """Refuses a class that is the checkpoint's own code, unless transformers has one of its name."""
    name, auto_map = settings.name, settings.values.get("auto_map")
    code = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if code and name not in classes.CLASSES and not conversion.is_known(name):
        raise UserError(
            f"{folder}: the tokenizer is a program of the checkpoint's own ({name}), which is not run; "
            "remove auto_map from tokenizer_config.json to take its tokenizer.json as it is"
        )


def _is_read_here(name: str) -> bool:
    return not name or name in classes.CLASSES or not conversion.is_known(name)


def _from_file(folder: Path, settings: TokenizerSettings) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    file = folder / "tokenizer.json"
    data = records.read_bytes(file)
    try:
        backend = Tokenizer.from_buffer(data)
        return classes.apply(backend, settings)
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself
        raise UserError(f"{file} is no tokenizer that can be read ({first_line(error)})") from None


def _cleans_up(backend: Tokenizer, settings: TokenizerSettings) -> bool:
    wanted = bool(settings.values.get("clean_up_tokenization_spaces", False))
    # transformers 5 passes over it for BPE, whose texts it would corrupt
    return wanted and not (settings.name == BACKEND and isinstance(backend.model, models.BPE))


def prompts(folder: Path) -> Prompts:
    """A checkpoint's tokenizer, chat template, ends of a text and context, for generation.

    Raises:
        UserError: no tokenizer, or none that can be read.
    """
    words = load(folder)
    template = words.chat_template
    if isinstance(template, dict):  # several by name; transformers, too, takes the default one
        template = template.get("default")
    conventions = Conventions(
        context=context(folder),
        ends=tuple(sorted(stop_tokens(folder))),
        chat_template=template,
        special=words.special,
        rows=rows(folder),
        splits_special_tokens=words.backend.encode_special_tokens,
    )
    ends = set(conventions.ends) | _own_ends(Prompts(words.backend, conventions), words)
    return Prompts(words.backend, replace(conventions, ends=tuple(sorted(ends))))


def _own_ends(chats: Prompts, words: CheckpointTokenizer) -> set[int]:
    """The tokenizer's EOS, and the special token with which the chat template ends an assistant's turn."""
    ends = {words.eos_token_id} - {None}
    messages = [{"role": "user", "content": "2 3 4"}, {"role": "assistant", "content": _ANSWER}]
    try:
        _, _, rest = chats.render(messages, "none").rpartition(_ANSWER)
    except UserError:  # no template, or one that wants other messages: it is refused when it is used
        rest = ""
    if following := words.encode(rest.strip(), add_special_tokens=False):
        added = words.backend.get_added_tokens_decoder()
        ends |= {following[0]} & set(added)
    return {end for end in ends if end is not None}


def context(folder: Path) -> int:
    """Tokens that a text may have: the model's window."""
    config = read_config(folder)
    lengths = (config.get(key) for key in ("max_position_embeddings", "n_positions", "n_ctx"))
    return int(next((length for length in lengths if length), CONTEXT))


def rows(folder: Path) -> int | None:
    """Tokens that the model's embedding has; None where the config does not say."""
    count = read_config(folder).get("vocab_size") if (folder / "config.json").is_file() else None
    return count if isinstance(count, int) else None


def stop_tokens(folder: Path) -> frozenset[int]:
    """The end-of-text ids that the model's generation_config.json (or config.json) names.

    They end what lm-eval lets a model write; `prompts` has those that end a generated text.

    Raises:
        UserError: one is no id.
    """
    for name, read in (("generation_config.json", read_generation_config), ("config.json", read_config)):
        ids = read(folder).get("eos_token_id") if records.is_there(folder / name) else None
        if ids is not None:
            listed = ids if isinstance(ids, list) else [ids]
            if any(type(token) is not int for token in listed):
                raise UserError(f"{folder / name}: eos_token_id is {ids!r}, which is no token id")
            return frozenset(listed)
    return frozenset()


def concern(folder: Path) -> str | None:
    """What is wrong with a checkpoint's tokenizer, in one line; None where nothing is.

    Graphs are exported all the same: without a tokenizer they can be checked, built and timed.
    """
    try:
        words = load(folder)
        stop_tokens(folder)
    except UserError as error:
        return f"{error}; `generate`, `score` and `ship` need it"
    count = rows(folder)
    beyond = words.beyond(count) if count is not None else {}
    if not beyond:
        return None
    named = ", ".join(f"{token!r} ({number})" for token, number in list(beyond.items())[:4])
    more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
    return (
        f"the tokenizer has {len(beyond)} tokens beyond the {count} rows of the model's embedding: "
        f"{named}{more}; prompts that hold one are refused (resize_token_embeddings adds rows)"
    )
