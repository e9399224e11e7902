"""What generation needs of a checkpoint: tokenizer, template, ends of a text, context."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models import tokenizer
from pipeline.types import UserError
from tests import tiny, tokenizing
from tests.tokenizing import token


def put(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer; copy"):
        tokenizer.load(tmp_path)
    put(tmp_path, "tokenizer.json", model="broken")
    put(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer that can be read") as caught:
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
    assert prompts.encode("The grass is green.") == words.encode("The grass is green.")


ENDS = {
    "chatml": ("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", {"<|im_end|>"}),
    "llama 3": ("<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot_id|>", {"<|eot_id|>"}),
    "gemma": ("<start>{{ m.role }}\n{{ m.content }} <end_of_turn>\n", {"<end_of_turn>"}),
    "plain words": ("{{ m.role }}: {{ m.content }}\n\n", set()),
    "eos": ("{{ m.content }}{{ eos_token }}", set()),
    "refuses": ("{{ raise_exception('no') }}", set()),
}


@pytest.mark.parametrize(("turn", "expected"), ENDS.values(), ids=ENDS)
def test_the_chat_templates_end_of_a_turn_ends_a_text(turn: str, expected: set[str], tmp_path: Path) -> None:
    """Beside those of generation_config.json and the tokenizer's own; scores have what lm-eval's `hf` has."""
    extra = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start|>", "<|end|>", "<start>", "<end_of_turn>"]
    folder = tokenizing.put(
        tmp_path,
        "bytes",
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "additional_special_tokens": extra,
            "chat_template": f"{{% for m in messages %}}{turn}{{% endfor %}}",
        },
        generation_config={"eos_token_id": [7, 9]},
    )
    prompts = tokenizer.prompts(folder)
    named = {prompts.tokenizer.id_to_token(end) for end in prompts.ends - {7, 9}}
    assert prompts.ends >= {7, 9} and named == expected | {"</s>"}
    assert tokenizer.stop_tokens(folder) == {7, 9}


@pytest.mark.parametrize("end", ["2", True, [2, None], 2.5, {}])
def test_an_end_that_is_no_id_is_named(end: object, tmp_path: Path) -> None:
    put(tmp_path, "generation_config.json", eos_token_id=end)
    with pytest.raises(UserError, match="eos_token_id"):
        tokenizer.stop_tokens(tmp_path)


def test_the_prefix_of_texts_is_the_bos_and_never_the_eos(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True}
    words = tokenizer.load(tokenizing.put(tmp_path, "pieces", tokenizer_config=config))
    assert words.prefix == [1] and words.encode("") == [1, 2]
    config["add_bos_token"] = False
    assert tokenizer.load(tokenizing.put(tmp_path, "pieces", tokenizer_config=config)).prefix == []


def test_a_program_of_the_checkpoints_own_is_not_run_and_not_passed_over(tmp_path: Path) -> None:
    code = {"AutoTokenizer": ["mine.Mine", None]}
    config = {"tokenizer_class": "MineTokenizer", "auto_map": code}
    with pytest.raises(UserError, match=r"MineTokenizer.*remove auto_map"):
        tokenizer.load(tokenizing.put(tmp_path, "bytes", tokenizer_config=config))
    config["tokenizer_class"] = "LlamaTokenizer"  # transformers, too, takes its own class
    assert tokenizer.load(tokenizing.put(tmp_path, "bytes", tokenizer_config=config)).prefix == [1]


def test_what_is_wrong_with_a_tokenizer_is_said(tmp_path: Path) -> None:
    """Case 19, and each other reason that `export` warns of."""
    config = {"model_type": "qwen2", "vocab_size": 340}
    put_with = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    folder = tokenizing.put(tmp_path / "m", "bytes", config=config, tokenizer_config=put_with)
    assert tokenizer.concern(folder) is None
    extra = [f"<|{name}|>" for name in "abcdef"]
    put(folder, "tokenizer_config.json", **put_with, additional_special_tokens=extra)
    concern = str(tokenizer.concern(folder))
    assert (
        "has 6 tokens beyond the 340 rows" in concern and "'<|a|>' (340)" in concern and "2 more" in concern
    )
    put(folder, "tokenizer_config.json", **put_with, bos_token=["x"])
    assert "bos_token" in str(tokenizer.concern(folder))
    (folder / "tokenizer.json").write_text("{}")
    assert "no tokenizer that can be read" in str(tokenizer.concern(folder))
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer" in str(tokenizer.concern(folder))


def test_a_tokenizer_is_loaded_without_torch_and_transformers(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": {"__type": "AddedToken", **token("<s>")}}
    folder = tokenizing.put(tmp_path, "pieces", tokenizer_config=config)
    script = (
        "import sys; from pathlib import Path; from pipeline.models import tokenizer; "
        f"tokenizer.prompts(Path({str(folder)!r})).encode('a'); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=tiny.environment()
    )
    assert done.stdout.strip() == "[]"
