"""Ids are those of transformers' classes, on odd texts and on any."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline.models import tokenizer
from pipeline.models.tokenizer import CheckpointTokenizer, classes
from pipeline.types import UserError
from tests import tiny, tokenizing
from tests.tokenizing import ODD, token

MARKS = {
    "additional_special_tokens": [
        "<|im_start|>",
        {"__type": "AddedToken", **token("<|im_end|>", lstrip=True)},
    ],
    "eos_token": "<|im_end|>",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bos": {"add_bos_token": True},
    "no-bos": {"add_bos_token": False},
    "eos": {"add_eos_token": True, "legacy": False},
    "tokens": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": None},
    "flags": {"bos_token": {"__type": "AddedToken", **token("<s>", lstrip=True)}, "eos_token": "</s>"},
    "clean-up": {"clean_up_tokenization_spaces": True},
    "splits-special": {"split_special_tokens": True},
    "marks": MARKS,
    "decoder": {
        "added_tokens_decoder": {
            "1": token("<s>", normalized=True, rstrip=True),
            "600": token("<|im_start|>"),
            "601": token("<|im_end|>", special=False, normalized=True, lstrip=True),
        },
        "bos_token": "<s>",
        "eos_token": "<|im_start|>",
    },
    "named": {"extra_special_tokens": {"image_token": "<image>"}, "bos_token": "<s>", "eos_token": "</s>"},
    "window": {"model_max_length": 5, "bos_token": "<|endoftext|>", "pad_token": "<pad>"},
}
of_version_4 = pytest.mark.skipif(
    tiny.TRANSFORMERS > 4,
    reason="the rules of transformers 4's classes, by which files without version 5's `backend` are read",
)
of_version_5 = pytest.mark.skipif(tiny.TRANSFORMERS < 5, reason="needs transformers 5")
FASTS = [f"{name}Fast" for name in classes.CLASSES if name != classes.BACKEND]
OTHER_CLASSES = ["CodeLlamaTokenizer", "T5Tokenizer", "CohereTokenizerFast", "BloomTokenizerFast"]


def agree(ours: CheckpointTokenizer, truth: Any, text: str) -> None:
    for special in (True, False):
        ids = truth.encode(text, add_special_tokens=special)
        assert ours.encode(text, add_special_tokens=special) == ids
        for skips in (True, False):
            assert ours.decode(ids, skip_special_tokens=skips) == truth.decode(ids, skip_special_tokens=skips)


def loaded(folder: Path) -> tuple[CheckpointTokenizer | None, Any]:
    """Ours and transformers'; None where it is refused."""
    try:
        truth = AutoTokenizer.from_pretrained(folder)
    except Exception:  # noqa: BLE001 - of any class
        truth = None
    try:
        return tokenizer.load(folder), truth
    except UserError:
        return None, truth


@of_version_4
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in FASTS
        for kind in tokenizing.KINDS
        if kind in ("bytes", "pieces") or name == "LlamaTokenizerFast"
    ],
)
def test_every_class_under_every_setting_reads_texts_as_transformers_does(
    name: str, kind: str, workdir: Path
) -> None:
    for fields in SETTINGS.values():
        config = {"tokenizer_class": name, **fields}
        folder = tokenizing.put(workdir / "graphs" / "m", kind, tokenizer_config=config)
        ours, truth = loaded(folder)
        assert (ours is None) == (truth is None), config
        if ours is None:
            continue
        assert ours.special == truth.special_tokens_map
        assert (ours.bos_token_id, ours.eos_token_id) == (truth.bos_token_id, truth.eos_token_id)
        for text in ODD:
            agree(ours, truth, text)
        saved = Tokenizer.from_str(ours.backend.to_str())  # what a shipped model reads
        saved.encode_special_tokens = ours.backend.encode_special_tokens
        assert [saved.encode(text).ids for text in ODD] == [ours.encode(text) for text in ODD]


@of_version_4
@pytest.mark.parametrize("name", OTHER_CLASSES)
def test_classes_that_do_more_are_left_to_transformers(name: str, workdir: Path) -> None:
    folder = tokenizing.put(workdir / "graphs" / "m", "pieces", tokenizer_config={"tokenizer_class": name})
    ours, truth = loaded(folder)
    assert ours is not None
    for text in ODD:
        agree(ours, truth, text)


@of_version_4
@pytest.mark.parametrize("kind", tokenizing.KINDS)
def test_any_text_has_transformers_ids(kind: str, tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": "pieces" in kind, **MARKS}
    folder = tokenizing.put(tmp_path, kind, tokenizer_config=config)
    ours, truth = loaded(folder)
    assert ours is not None
    words = st.sampled_from(
        ["<|im_start|>", "<|im_end|>", " ", "  ", "\r\n", "▁", "<s>", "the", "é", "e\u0301"]
    )
    texts = st.lists(st.one_of(words, st.text(max_size=8)), max_size=12).map("".join)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def holds(text: str) -> None:
        agree(ours, truth, text)

    holds()


@of_version_4
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "qwen2"},
        {"model_type": "phi"},
        {"model_type": "gpt_neox"},
        {"tokenizer_class": "GPT2"},
    ],
)
def test_without_a_tokenizer_config_the_models_class_is_taken(
    changes: dict[str, str], tmp_path: Path
) -> None:
    model = {"model_type": "llama", **changes}
    if "tokenizer_class" in model:
        model["tokenizer_class"] = "GPT2Tokenizer"
    ours, truth = loaded(tokenizing.put(tmp_path, "bytes", config=model))
    assert ours is not None and ours.special == truth.special_tokens_map
    for text in ODD:
        agree(ours, truth, text)


@of_version_4
def test_old_files_of_special_and_added_tokens_count(tmp_path: Path) -> None:
    folder = tokenizing.put(
        tmp_path,
        "pieces",
        tokenizer_config={"tokenizer_class": "LlamaTokenizer"},
        special_tokens_map={
            "bos_token": token("</s>", rstrip=True),
            "additional_special_tokens": [token("<|im_end|>", lstrip=True), "<extra>"],
        },
        added_tokens={"<|im_start|>": 700},
    )
    ours, truth = loaded(folder)
    assert ours is not None and ours.special == truth.special_tokens_map
    for text in ODD:
        agree(ours, truth, text)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_llamas_add_prefix_space_is_that_of_its_conversion(
    legacy: bool, prefix: bool, tmp_path: Path
) -> None:
    """transformers converts tokenizer.model anew where it is set; see test_conversion."""
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_prefix_space": prefix}
    words = tokenizer.load(tokenizing.put(tmp_path, "pieces-legacy", tokenizer_config=config))
    plain = tokenizer.load(tokenizing.put(tmp_path, "pieces-legacy" if legacy else "pieces"))
    prefixed, bare = plain.encode("the ship", add_special_tokens=False), words.encode("the ship", False)
    assert (bare == prefixed) == prefix and words.decode(bare) == "the ship"


@of_version_4
def test_defaults_are_those_of_transformers_classes() -> None:
    for name, kind in classes.CLASSES.items():
        if name in (classes.BASE, classes.BACKEND):
            continue
        parameters = inspect.signature(getattr(transformers, f"{name}Fast").__init__).parameters
        names = ("unk_token", "bos_token", "eos_token", "pad_token")
        tokens = {key: parameters[key].default for key in names if key in parameters}
        assert kind.special == {key: value for key, value in tokens.items() if value}
        if kind.begins is not None:
            assert kind.begins == parameters["add_bos_token"].default


@of_version_5
@pytest.mark.slow
@pytest.mark.parametrize("kind", tokenizing.KINDS)
def test_what_transformers_5_saves_is_read_as_it_reads_it(kind: str, tmp_path: Path) -> None:
    """Whatever class and settings it was made of; a class may not fit the file."""
    for name in FASTS:
        for label, fields in SETTINGS.items():
            made = tokenizing.put(
                tmp_path / "made", kind, tokenizer_config={"tokenizer_class": name, **fields}
            )
            saved = tmp_path / name / label
            AutoTokenizer.from_pretrained(made).save_pretrained(saved)
            ours, truth = loaded(saved)
            assert ours is not None
            assert (ours.bos_token_id, ours.eos_token_id) == (truth.bos_token_id, truth.eos_token_id)
            for text in ODD:
                try:
                    truth.encode(text)
                except Exception:  # noqa: BLE001 - the library's: a class that the file does not fit lacks <unk>
                    with pytest.raises(UserError, match="cannot read the text"):
                        ours.encode(text)
                    continue
                agree(ours, truth, text)


V5 = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True}


def test_transformers_5_wrote_it(tmp_path: Path) -> None:
    """Case 08: a class that transformers 4 lacks, a list of extra tokens; and a class of no version."""
    plain = Tokenizer.from_str(tokenizing.file_of("bytes"))
    extra = ["<|im_start|>", token("<|im_end|>")]
    for changes in ({}, {"extra_special_tokens": ["<s>", "</s>"]}, {"tokenizer_class": "OfTomorrow"}):
        words = tokenizer.load(tokenizing.put(tmp_path, "bytes", tokenizer_config={**V5, **changes}))
        assert [words.encode(text) for text in ODD] == [plain.encode(text).ids for text in ODD]
    extra[1] = {"__type": "AddedToken", **token("<|im_end|>")}
    for name in ("TokenizersBackend", "LlamaTokenizer"):
        config = {"tokenizer_class": name, "extra_special_tokens": extra}
        words = tokenizer.load(tokenizing.put(tmp_path, "bytes", tokenizer_config=config))
        assert words.encode("<|im_start|><|im_end|>", add_special_tokens=False) == [340, 341]


def test_transformers_5_begins_a_text_where_the_settings_say_so(tmp_path: Path) -> None:
    config = {**V5, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    words = tokenizer.load(tokenizing.put(tmp_path, "bytes", tokenizer_config=config))
    assert words.encode("a")[0] == 1 and words.encode("a")[-1] == 2 and words.prefix == [1]
    del config["bos_token"]  # passed over there
    words = tokenizer.load(tokenizing.put(tmp_path, "bytes", tokenizer_config=config))
    assert words.prefix == [] and words.encode("a")[-1] == 2


REFUSED = {
    "add_bos_token is true, but there is no bos_token": {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": None,
    },
    "no eos_token": {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": None, "add_eos_token": True},
    "CodeGenTokenizerFast refuses": {"tokenizer_class": "CodeGenTokenizer", "add_bos_token": True},
    "eos_token is 7": {"eos_token": 7},
}


@of_version_4
@pytest.mark.parametrize(("words", "config"), REFUSED.items())
def test_settings_that_transformers_refuses_are_one_line(
    words: str, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tokenizing.put(tmp_path, "bytes", tokenizer_config=config)
    with pytest.raises(UserError, match=words) as caught:
        tokenizer.load(folder)
    assert "\n" not in str(caught.value) and loaded(folder) == (None, None)
