"""What transformers' tokenizer classes make of tokenizer.json: `PreTrainedTokenizerFast.__init__` and below.

A class may add special tokens that the file lacks, change `add_prefix_space`, and put another post-processor
(the BOS and the EOS around a text) in the place of the file's. The same is done here with the `tokenizers`
library alone, as transformers 4.57 does it; `TokenizersBackend` as transformers 5 does it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from pipeline.models.tokenizer import sentencepiece
from pipeline.models.tokenizer.settings import BACKEND, Token, TokenizerSettings


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """One of transformers' classes.

    Attributes:
        special: its own special tokens.
        begins: its default of add_bos_token; None where the class leaves the file's post-processor alone.
        as_objects: its named tokens are made objects, which are added again.
        add_prefix_space: its default.
    """

    special: dict[str, str] = field(default_factory=dict)
    begins: bool | None = None
    as_objects: bool = False
    add_prefix_space: bool | None = False


def _tokens(unk: str, bos: str | None, eos: str, pad: str | None = None) -> dict[str, str]:
    named = {"unk_token": unk, "bos_token": bos, "eos_token": eos, "pad_token": pad}
    return {name: token for name, token in named.items() if token}


_END = "<|endoftext|>"
BASE = "PreTrainedTokenizer"
CLASSES = {
    BASE: TokenizerClass(),
    BACKEND: TokenizerClass(add_prefix_space=None),
    "LlamaTokenizer": TokenizerClass(_tokens("<unk>", "<s>", "</s>"), True, add_prefix_space=None),
    "GemmaTokenizer": TokenizerClass(_tokens("<unk>", "<bos>", "<eos>", "<pad>"), True),
    "GPTNeoXTokenizer": TokenizerClass(_tokens(_END, _END, _END), False),
    "GPT2Tokenizer": TokenizerClass(_tokens(_END, _END, _END)),
    "CodeGenTokenizer": TokenizerClass(_tokens(_END, _END, _END)),
    "Qwen2Tokenizer": TokenizerClass(_tokens(_END, None, _END, _END), as_objects=True),
}
"""Class without 'Fast' → what it does."""


def apply(backend: Tokenizer, settings: TokenizerSettings) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    """Makes of tokenizer.json's tokenizer what transformers makes of it.

    Args:
        backend: read from tokenizer.json; it is changed.
        settings: a class that CLASSES lacks is taken as the base class.

    Returns:
        the tokenizer, and name → special token.

    Raises:
        ValueError, TypeError: settings that transformers refuses, too.
    """
    kind = CLASSES.get(settings.name, CLASSES[BASE])
    special = settings.special(kind.special)
    if kind.as_objects:
        special = {key: _object(token) for key, token in special.items()}
    backend = _with_prefix_space(backend, settings, kind)
    backend.encode_special_tokens = bool(settings.values.get("split_special_tokens", False))
    _add_tokens(backend, settings, special)
    plain: dict[str, str | list[str]] = {
        key: [str(t) for t in token] if isinstance(token, list) else str(token)
        for key, token in special.items()
    }
    begins, ends = _frame(backend, settings, kind)
    if begins is not None:
        bos, eos = plain.get("bos_token"), plain.get("eos_token")
        if settings.name == BACKEND:  # transformers 5 passes over a token that there is not
            begins, ends = begins and bos is not None, ends and eos is not None
        backend.post_processor = _post_processor(
            backend, _wanted("bos", begins, bos), _wanted("eos", ends, eos), plain.get("unk_token")
        )
    return backend, plain


def _object(token: Token | list[Token]) -> Token | list[Token]:
    return AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token


def _add_tokens(
    backend: Tokenizer, settings: TokenizerSettings, special: dict[str, Token | list[Token]]
) -> None:
    """Adds the tokens that the file lacks, or has with other flags."""
    present = backend.get_added_tokens_decoder().values()
    forms = {repr(token) for token in present}
    new: list[Token] = [token for _, token in sorted(settings.added.items()) if repr(token) not in forms]
    texts = [token.content for token in present] + [str(token) for token in new]
    extended = list[Token]()
    for value in special.values():
        names = {str(token) for token in extended}
        extended += [
            token for token in (value if isinstance(value, list) else [value]) if str(token) not in names
        ]
    new += [token for token in extended if token not in texts and token not in new]
    names = {str(token) for token in extended}
    known = {token.content: token for token in present}
    objects = list[AddedToken]()
    for token in new:
        one = AddedToken(token, special=token in names) if isinstance(token, str) else token
        one.special = one.special or one.content in names
        objects.append(_merged(known[one.content], one) if one.content in known else one)
    backend.add_tokens(objects)


def _merged(old: AddedToken, new: AddedToken) -> AddedToken:
    """A token that is added again, as the library then reads texts; what it saves would be `new` alone."""
    return AddedToken(
        new.content,
        single_word=new.single_word,
        lstrip=new.lstrip,
        rstrip=new.rstrip,
        normalized=old.normalized and (old.special or new.normalized),
        special=old.special or new.special,
    )


def _with_prefix_space(backend: Tokenizer, settings: TokenizerSettings, kind: TokenizerClass) -> Tokenizer:
    """`add_prefix_space`, where the settings or the class want another one than the file has."""
    wanted = settings.values.get("add_prefix_space", kind.add_prefix_space)
    if not isinstance(wanted, bool) or settings.name == BACKEND:
        return backend
    splitter = backend.pre_tokenizer
    if isinstance(splitter, pre_tokenizers.ByteLevel):
        if splitter.add_prefix_space != wanted:
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=wanted, use_regex=splitter.use_regex
            )
    elif (
        settings.name == "LlamaTokenizer"
        and isinstance(backend.model, models.BPE)
        and backend.model.byte_fallback
    ):
        # transformers makes it anew from tokenizer.model: `LlamaConverter` of convert_slow_tokenizer
        return _as_sentencepiece(backend, wanted, settings.values.get("legacy") is not False)
    return backend


def _as_sentencepiece(backend: Tokenizer, add_prefix_space: bool, legacy: bool) -> Tokenizer:
    replace, decoder = sentencepiece.parts(add_prefix_space)
    scheme = "first" if add_prefix_space else "never"
    backend.normalizer = replace if legacy else None
    backend.pre_tokenizer = (
        None if legacy else pre_tokenizers.Metaspace(sentencepiece.SPACE, scheme, split=False)
    )
    backend.decoder = decoder
    return Tokenizer.from_str(backend.to_str())  # added tokens are normalised when they are read


def _frame(backend: Tokenizer, settings: TokenizerSettings, kind: TokenizerClass) -> tuple[bool | None, bool]:
    """Whether a BOS and an EOS stand around a text; None for the first where the file alone says it."""
    values = settings.values
    begins, ends = values.get("add_bos_token", kind.begins), bool(values.get("add_eos_token"))
    if settings.name == "CodeGenTokenizer" and values.get("add_bos_token"):
        raise ValueError("add_bos_token is true, which transformers' CodeGenTokenizerFast refuses")
    if settings.name == BACKEND:
        is_said = "add_bos_token" in values or "add_eos_token" in values
        return (bool(begins) if is_said or backend.post_processor is None else None), ends
    return (None if kind.begins is None else bool(begins)), ends


def _wanted(name: str, is_wanted: bool, token: str | list[str] | None) -> str | None:
    if is_wanted and not isinstance(token, str):
        raise ValueError(f"add_{name}_token is true, but there is no {name}_token")
    return token if is_wanted and isinstance(token, str) else None


def _post_processor(
    backend: Tokenizer, bos: str | None, eos: str | None, unk: Any
) -> processors.TemplateProcessing:
    first, second = (_place(bos, eos, name, kind) for name, kind in (("$A", 0), ("$B", 1)))
    ids = {token: backend.token_to_id(token) for token in (bos, eos) if token}
    unknown = backend.token_to_id(unk) if isinstance(unk, str) else None
    known = [(token, unknown if number is None else number) for token, number in ids.items()]
    return processors.TemplateProcessing(single=first, pair=f"{first} {second}", special_tokens=known)


def _place(bos: str | None, eos: str | None, name: str, kind: int) -> str:
    """One text between its BOS and its EOS, in the form of TemplateProcessing."""
    return " ".join(f"{part}:{kind}" for part in (bos, name, eos) if part)
