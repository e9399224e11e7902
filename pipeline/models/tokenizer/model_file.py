"""sentencepiece's tokenizer.model made into a tokenizer of the `tokenizers` library, with the same ids.

transformers' own conversions differ from sentencepiece: 5.24's in leading and double spaces, 4.57's where the
model has a normalizer of its own. So it is made here, and compared with sentencepiece before it is used.

Source of every rule: sentencepiece's `src/normalizer.cc`, `src/bpe_model.cc` and `src/unigram_model.cc`; of
`legacy` and the special tokens: transformers 4.57's `LlamaConverter` and `GemmaConverter`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.models.tokenizer import classes, proof
from pipeline.models.tokenizer.sentencepiece import SPACE, bpe, merges, parts
from pipeline.models.tokenizer.settings import TokenizerSettings
from pipeline.store import records
from pipeline.types import UserError, first_line

NAMES = ("LlamaTokenizer", "GemmaTokenizer", classes.BASE)
"""transformers' classes whose tokenizer.model is read here."""
UNIGRAM, BPE = 1, 2
"""sentencepiece's kinds of model that are read."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""sentencepiece's types of pieces."""
_RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
"""User-defined pieces that GemmaConverter makes special."""
_CUT = "\U0005fffe"
"""No character: put between the characters of a text, and taken out of it."""
_ADVICE = "copy the model's tokenizer.json beside it"


def tokenizer(file: Path, settings: TokenizerSettings) -> tuple[Tokenizer, dict[str, str | list[str]]]:
    """The tokenizer of a tokenizer.model, and its special tokens by name.

    Args:
        file: the model.
        settings: of the checkpoint that it lies in.

    Raises:
        UserError: it is no model of sentencepiece's, has what a tokenizer.json cannot express, or does not
            read plain texts as sentencepiece does.
        ValueError, TypeError: settings that transformers refuses, too.
    """
    model = read(file)
    _refuse_other(file, model)
    wanted = settings.values.get("add_prefix_space")
    if isinstance(wanted, bool):
        model.normalizer_spec.add_dummy_prefix = wanted
    first_only = settings.name == "LlamaTokenizer" and settings.values.get("legacy") is False
    _rename(model, settings)
    words = _words(model)
    words.normalizer = _normalizers(model, first_only)
    words.decoder = parts(model.normalizer_spec.add_dummy_prefix)[1]
    _take_apart(words, model, first_only)
    turns = _TURNS if settings.name == "GemmaTokenizer" else ()
    special = [p.piece for p in model.pieces if p.type in (UNKNOWN, CONTROL) or p.piece in turns]
    words.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    # the space before a text is settled; `apply` would put Llama's parts in the place of these
    values = {key: value for key, value in settings.values.items() if key != "add_prefix_space"}
    words, named = classes.apply(words, replace(settings, values=values))
    _refuse_moved(file, words, settings)
    proof.refuse_other_ids(file, words, model, first_only)
    return words, named


def read(file: Path) -> Any:
    """The message ModelProto of a file, which sentencepiece can use.

    Raises:
        UserError: it is none.
    """
    data = records.read_bytes(file)
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(data)
        SentencePieceProcessor(model_proto=data)
    except (DecodeError, RuntimeError) as error:
        raise UserError(
            f"{file} is no model of sentencepiece's ({first_line(error)}); fetch it again, or {_ADVICE}"
        ) from None
    return model


def _refuse_other(file: Path, model: Any) -> None:
    """Refuses what the `tokenizers` library has no form for."""
    trained, normal = model.trainer_spec, model.normalizer_spec
    reasons = {
        "is neither BPE nor unigram": trained.model_type not in (UNIGRAM, BPE),
        "puts the space behind a word": trained.treat_whitespace_as_suffix,
        "leaves spaces as they are": not normal.escape_whitespaces,
        f"has a normalization rule of its own ({normal.name!r:.40})": normal.precompiled_charsmap
        and normal.name not in _RULES,
        "has unused pieces, which sentencepiece takes apart again": any(
            piece.type == UNUSED for piece in model.pieces
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise UserError(f"{file} {reason}, which is not read here; {_ADVICE}")


def _refuse_moved(file: Path, words: Tokenizer, settings: TokenizerSettings) -> None:
    """Refuses added tokens that would get other ids than the checkpoint says."""
    for number, token in settings.added.items():
        if words.token_to_id(token.content) != number:
            raise UserError(
                f"{file.parent}: {token.content!r:.60} has the id {number} by tokenizer_config.json or "
                f"added_tokens.json, and {words.token_to_id(token.content)} beside tokenizer.model; {_ADVICE}"
            )


def _rename(model: Any, settings: TokenizerSettings) -> None:
    """Gives special pieces the names of tokenizer_config.json: an unused one may be the end of a turn."""
    for number, piece in enumerate(model.pieces):
        token = settings.added.get(number)
        if token and token.content != piece.piece and piece.type in (UNKNOWN, CONTROL, USER_DEFINED):
            piece.piece = token.content
            piece.type = UNKNOWN if piece.type == UNKNOWN else CONTROL


def _user_defined(model: Any) -> list[str]:
    """Pieces that are always taken whole, the longest first."""
    found = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    return sorted(found, key=len, reverse=True)


def _words(model: Any) -> Tokenizer:
    """The pieces and their scores, of either kind of model."""
    trained, pieces = model.trainer_spec, model.pieces
    if trained.model_type == UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        return Tokenizer(models.Unigram(scored, trained.unk_id, trained.byte_fallback))
    normal = [piece for piece in pieces if piece.type == NORMAL]
    pairs = merges([piece.piece for piece in normal], [piece.score for piece in normal])
    unknown = pieces[trained.unk_id].piece
    return bpe([piece.piece for piece in pieces], pairs, unknown, trained.byte_fallback)


def _normalizers(model: Any, first_only: bool) -> normalizers.Normalizer:
    """What comes before pieces are looked for.

    Args:
        model: a ModelProto.
        first_only: the spaces are left to a pre-tokenizer.
    """
    spec = model.normalizer_spec
    spaces = [] if first_only else [parts(spec.add_dummy_prefix)[0]]
    rule = _charsmap(spec.precompiled_charsmap)
    if (
        not spec.remove_extra_whitespaces
    ):  # a text that the rule makes empty has its space before it all the same
        prefix = [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix and not first_only else []
        return normalizers.Sequence([*prefix, *rule, *([] if first_only else [parts(False)[0]])])
    ends = [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence([*rule, *ends, *spaces, normalizers.Replace(Regex(f"[ {SPACE}]+\\z"), "")])


def _charsmap(charsmap: bytes) -> list[normalizers.Normalizer]:
    """The normalization rule, without the fault of the library's own form of it.

    `Precompiled` replaces a whole grapheme by what stands for its beginning. So it is shown single
    characters, and what they compose to (NFC) is composed before and behind.
    """
    if not charsmap:
        return []
    between = normalizers.Replace(Regex("(?m)(?<=.)(?=.)"), _CUT)
    return [
        normalizers.NFC(),
        between,
        normalizers.Precompiled(charsmap),
        normalizers.Replace(_CUT, ""),
        normalizers.NFC(),
    ]


def _take_apart(words: Tokenizer, model: Any, first_only: bool) -> None:
    """Sets what takes spaces and pieces out of a text before the rest is merged."""
    splits: list[pre_tokenizers.PreTokenizer] = []
    if first_only:  # a space before a text, and none behind a special token in it
        scheme = "first" if model.normalizer_spec.add_dummy_prefix else "never"
        splits.append(pre_tokenizers.Metaspace(SPACE, scheme, split=False))
    patterns = list[str]()
    if model.trainer_spec.model_type == UNIGRAM:
        patterns += ["<(?=0x[0-9A-F]{2}>)"] if model.trainer_spec.byte_fallback else []
    elif whole := _user_defined(model):
        patterns += ["|".join(map(re.escape, whole)), _first_parts(words, model)]
        words.model.ignore_merges = True  # no merges lead to a user-defined piece
    splits += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns if pattern]
    if splits:
        words.pre_tokenizer = pre_tokenizers.Sequence(splits)


def _first_parts(words: Tokenizer, model: Any) -> str:
    """A pattern for the first token of a part of a text that is a piece by its letters alone.

    Where user-defined pieces are taken whole, every part of a text that is a piece is. Not meant are bytes
    ("<0x0A>") and pieces that no merges lead to: such a part is cut where its own tokens meet, which changes
    none of them.
    """
    names = [piece.piece for piece in model.pieces if piece.type not in (UNKNOWN, CONTROL, USER_DEFINED)]
    plain = Tokenizer(words.model)  # without the normalizer
    found = []
    for name, read in zip(names, plain.encode_batch(names), strict=True):
        if read.tokens != [name]:
            end = read.offsets[0][1]
            found.append(f"{re.escape(name[:end])}(?={re.escape(name[end:])}\\z)")
    return f"\\A(?:{'|'.join(found)})" if found else ""
