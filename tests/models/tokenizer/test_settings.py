"""What a checkpoint says about its tokenizer beside tokenizer.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.models import tokenizer
from pipeline.models.tokenizer.settings import read_settings
from pipeline.types import UserError
from tests import tokenizing
from tests.tokenizing import token

ONE, TWO = "{{ 1 }}", "{{ 2 }}"
TEMPLATES: dict[str, tuple[Any, dict[str, str]]] = {
    "none": (None, {}),
    "text": (ONE, {}),
    "list": ([{"name": "default", "template": ONE}, {"name": "rag", "template": TWO}], {}),
    "file": (ONE, {"chat_template.jinja": TWO}),
    "named files": (None, {"chat_template.jinja": ONE, "additional_chat_templates/rag.jinja": TWO}),
    "named default": (None, {"chat_template.jinja": ONE, "additional_chat_templates/default.jinja": TWO}),
    "named alone": (ONE, {"additional_chat_templates/rag.jinja": TWO}),
    "processor beside a tokenizer's": (ONE, {"chat_template.json": json.dumps({"chat_template": TWO})}),
}


@pytest.mark.parametrize(("own", "files"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_chat_template_is_the_one_that_transformers_takes(
    own: Any, files: dict[str, str], tmp_path: Path
) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": own}
    folder = tokenizing.put(tmp_path / "m", "bytes", tokenizer_config=config)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert read_settings(folder).chat_template == AutoTokenizer.from_pretrained(folder).chat_template


def test_a_processors_template_serves_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    """As AutoProcessor takes it."""
    folder = tokenizing.put(tmp_path, "bytes", chat_template={"chat_template": ONE})
    assert read_settings(folder).chat_template == ONE


def test_added_tokens_are_objects_with_their_flags(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {"7": token("<a>", lstrip=True)}, "eos_token": "<a>", "mine": [1, None]}
    read = read_settings(tokenizing.put(tmp_path, "bytes", tokenizer_config=config))
    assert read.name == "LlamaTokenizer" and read.values["mine"] == [1, None]
    assert (read.added[7].content, read.added[7].lstrip) == ("<a>", True)
    assert read.values["eos_token"] is read.added[7]


MALFORMED: dict[str, dict[str, Any]] = {
    "a class": {"tokenizer_class": 3},
    "tokens": {"added_tokens_decoder": {"7": "<a>"}},
    "an id": {"added_tokens_decoder": {"x": token("<a>")}},
    "a flag": {"added_tokens_decoder": {"7": token("<a>", lstrip="x")}},
    "templates": {"chat_template": [{"template": ONE}]},
    "a template": {"chat_template": 5},
    "a list": {"additional_special_tokens": "<a>"},
}


@pytest.mark.parametrize("config", MALFORMED.values(), ids=MALFORMED)
def test_malformed_settings_are_one_line(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tokenizing.put(tmp_path, "bytes", tokenizer_config=config)
    with pytest.raises((UserError, TypeError)) as caught:
        read_settings(folder).special({})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "NaN"])
def test_a_file_that_is_no_object_is_named(text: str, tmp_path: Path) -> None:
    folder = tokenizing.put(tmp_path, "bytes")
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        read_settings(folder)


@pytest.mark.parametrize(
    "name",
    ["tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json",
     "tokenizer.json"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "link to nowhere", "device"])
def test_what_is_no_file_is_not_taken_for_missing(name: str, kind: str, tmp_path: Path) -> None:
    """The text would be another one, and nothing would say so."""
    folder = tokenizing.put(tmp_path / "m", "bytes")
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": name, "device": "/dev/zero"}.get(kind, "nowhere"))
    with pytest.raises(UserError, match=f"{name} is no regular file; remove it"):
        tokenizer.load(folder), tokenizer.stop_tokens(folder)
