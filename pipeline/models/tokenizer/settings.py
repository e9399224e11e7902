"""What a checkpoint says about its tokenizer beside tokenizer.json, read as transformers reads it.

tokenizer_config.json, special_tokens_map.json, added_tokens.json and the chat templates are those of
`PreTrainedTokenizerBase.from_pretrained` (transformers 4.57), with the two forms that transformers 5 writes:
`extra_special_tokens` as a list, and `model_specific_special_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken

from pipeline.store import records
from pipeline.types import UserError

SPECIAL = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens",
)  # fmt: skip
"""Names of special tokens in transformers, in its order; the last is a list."""
CLASSES = {
    "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer", "gpt_neox": "GPTNeoXTokenizer", "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer", "phi": "CodeGenTokenizer", "phi3": "LlamaTokenizer",
    "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "qwen": "QWenTokenizer",
}  # fmt: skip
"""model_type → transformers' class of its tokenizer, where no file names one."""

BACKEND = "TokenizersBackend"
"""Class of transformers 5 that takes tokenizer.json as it is."""
BACKEND_KIND = "tokenizers"
"""What version 5 calls a tokenizer of that library."""

Token: TypeAlias = str | AddedToken
ChatTemplate: TypeAlias = str | dict[str, str] | None
"""One template, several by name, or none."""


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """A tokenizer's settings, with its tokens as objects.

    Attributes:
        name: transformers' class without 'Fast'; '' where nothing names one.
        values: what the class is made with: tokenizer_config.json, its tokens replaced by objects.
        added: id → token, of tokens beyond the vocabulary.
        chat_template: as transformers takes it.
    """

    name: str
    values: dict[str, Any]
    added: dict[int, AddedToken]
    chat_template: ChatTemplate

    def special(self, defaults: dict[str, Any]) -> dict[str, Token | list[Token]]:
        """Name → special token, in transformers' order; what neither settings nor defaults name is left out.

        Args:
            defaults: the class's own tokens, where the settings do not name another (null is another).

        Raises:
            TypeError: a token is no text.
        """
        wanted = {**defaults, **self.values}
        named = _named(self.values)
        tokens = {key: wanted.get(key) for key in SPECIAL[:-1]}
        tokens |= {SPECIAL[-1]: _listed(self.values)} | named
        for key, token in tokens.items():
            for one in token if isinstance(token, list) and key == SPECIAL[-1] else [token]:
                if one is not None and not isinstance(one, str | AddedToken):
                    raise TypeError(f"{key} is {one!r}, which is no token")
        return {key: token for key, token in tokens.items() if token}


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings of the tokenizer in a checkpoint's folder.

    Raises:
        UserError: a file is no JSON, or its tokens have no form that transformers knows.
    """
    config = _read(folder, "tokenizer_config.json")
    try:
        return _settings(folder, config)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} is not as transformers reads it ({error})"
        ) from None


def _settings(folder: Path, config: dict[str, Any]) -> TokenizerSettings:
    name = class_name(folder, config)
    template = _chat_template(folder, config.pop("chat_template", None))
    written = config.pop("added_tokens_decoder", None)
    values = _objects(config)
    if written is not None:
        added = {int(index): _added(token) for index, token in written.items()}
    else:  # before 4.34
        values |= _special_tokens_map(folder, values)
        added = _added_tokens(folder, values) | _own_added(folder)
    by_content = {token.content: token for token in added.values()}
    for key in SPECIAL[:-1]:
        if values.get(key) is not None:
            values[key] = by_content.get(str(values[key]), values[key])
    return TokenizerSettings(name, values, added, template)


def class_name(folder: Path, config: dict[str, Any]) -> str:
    """The class that transformers' AutoTokenizer takes, without 'Fast'.

    Whatever class version 5 names, its `backend` says that tokenizer.json is the whole tokenizer, as it was
    when it was saved: version 4's class of that name would put its own BOS and EOS around a text.
    """
    if config.get("backend") == BACKEND_KIND and (folder / "tokenizer.json").is_file():
        return BACKEND
    model = _read(folder, "config.json")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None:
        name = CLASSES.get(str(model.get("model_type")), "")
    if not isinstance(name, str):
        raise TypeError(f"tokenizer_class is {name!r}")
    return name.removesuffix("Fast")


def _read(folder: Path, name: str) -> dict[str, Any]:
    return records.read_object(folder / name) if records.is_there(folder / name) else {}


def _objects(value: Any) -> Any:
    """The same with tokens as objects: {'__type': 'AddedToken', …}."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return AddedToken(**{key: item for key, item in value.items() if key != "__type"})
    if isinstance(value, dict):
        return {key: _objects(item) for key, item in value.items()}
    return [_objects(item) for item in value] if isinstance(value, list) else value


def _added(token: Any, **fields: Any) -> AddedToken:
    if not isinstance(token, dict):
        raise TypeError(f"{token!r} is no token")
    token = {key: value for key, value in token.items() if key not in ("id", "__type")}
    return AddedToken(**{**token, **fields})


def _special_tokens_map(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, which overrides tokenizer_config.json where that lists no added tokens."""
    changes = dict[str, Any]()
    for key, value in _read(folder, "special_tokens_map.json").items():
        if key == SPECIAL[-1] and isinstance(value, list):
            tokens = list(values.get(key) or [])
            for token in value:
                one = _added(token, special=True) if isinstance(token, dict) else token
                if one not in tokens:
                    tokens.append(one)
            changes[key] = tokens
        else:
            changes[key] = _added(value, special=True) if isinstance(value, dict) else value
    return changes


def _added_tokens(folder: Path, values: dict[str, Any]) -> dict[int, AddedToken]:
    """added_tokens.json: token → id."""
    special = {str(values[key]) for key in SPECIAL[:-1] if values.get(key) is not None}
    special |= {str(token) for token in values.get(SPECIAL[-1]) or []}
    return {
        index: AddedToken(
            text, rstrip=False, lstrip=False, normalized=text not in special, special=text in special
        )
        for text, index in _read(folder, "added_tokens.json").items()
    }


def _own_added(folder: Path) -> dict[int, AddedToken]:
    """The added tokens that tokenizer.json holds itself: their flags are those of the special tokens."""
    tokens = _read(folder, "tokenizer.json").get("added_tokens") or []
    return {token["id"]: _added(token) for token in tokens}


def _listed(values: dict[str, Any]) -> list[Token]:
    """additional_special_tokens, which transformers 5 calls extra_special_tokens."""
    tokens = values.get(SPECIAL[-1])
    extra = values.get("extra_special_tokens")
    tokens = (extra if isinstance(extra, list) else []) if tokens is None else tokens
    if not isinstance(tokens, list):
        raise TypeError(f"{SPECIAL[-1]} is {tokens!r}, which is no list")
    return tokens


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """The model's own names of special tokens: image_token, …"""
    named = dict[str, Any]()
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(values.get(key), dict):
            named |= values[key]
    return named


def _chat_template(folder: Path, own: Any) -> ChatTemplate:
    """The template files before tokenizer_config.json's, as in transformers; a processor's last."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    read = {name: records.read_bytes(file).decode() for name, file in files.items() if records.is_there(file)}
    if read:
        return read["default"] if list(read) == ["default"] else read
    if own is None:
        own = _read(folder, "chat_template.json").get("chat_template")
    if isinstance(own, list):
        own = {entry["name"]: entry["template"] for entry in own}
    texts = [own] if isinstance(own, str) or own is None else list(own.values())
    if not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError("chat_template is no text")
    template: ChatTemplate = own
    return template
