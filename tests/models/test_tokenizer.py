"""What generation needs of a checkpoint: tokenizer, template, ends of a text, context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.models import tokenizer
from pipeline.types import UserError
from tests import tiny


def put(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer; copy"):
        tokenizer.load(tmp_path)
    put(tmp_path, "tokenizer.json", model="broken")
    put(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(UserError, match="holds no tokenizer that transformers can load") as caught:
        tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 99}, 99),
        ({"n_positions": 77}, 77),
        ({"max_position_embeddings": None, "n_ctx": 55}, 55),
        ({}, tokenizer.CONTEXT),
    ],
)
def test_the_context_by_any_of_its_names(config: dict[str, int], expected: int, tmp_path: Path) -> None:
    put(tmp_path, "config.json", **config)
    assert tokenizer.context(tmp_path) == expected


def test_ends_of_a_text_are_generation_configs_before_configs(tmp_path: Path) -> None:
    assert tokenizer.stop_tokens(tmp_path) == frozenset()
    put(tmp_path, "config.json", eos_token_id=2)
    assert tokenizer.stop_tokens(tmp_path) == {2}
    put(tmp_path, "generation_config.json", temperature=1.0)
    assert tokenizer.stop_tokens(tmp_path) == {2}
    put(tmp_path, "generation_config.json", eos_token_id=[3, 5])
    assert tokenizer.stop_tokens(tmp_path) == {3, 5}


def test_prompts_hold_tokenizer_template_and_context(tmp_path: Path) -> None:
    tiny.tokenizer(tiny.checkpoint(tmp_path, vocab_size=tiny.WORDS))
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    prompts = tokenizer.prompts(tmp_path)
    assert prompts.conventions.context == 256 and prompts.conventions.ends == (2,)
    assert "messages" in str(prompts.conventions.chat_template)
    words = tokenizer.load(tmp_path)
    assert prompts.encode("The grass is green.") == words("The grass is green.").input_ids
