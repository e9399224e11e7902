"""Which files hold a checkpoint's weights: the right value is what transformers itself resolves."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.modeling_utils import _get_resolved_checkpoint_files

from pipeline.models import weight_files
from pipeline.types import UserError
from tests import tiny


def resolved(folder: Path) -> list[str]:
    """The names of the files that transformers would load."""
    config = json.loads((folder / "config.json").read_text())
    nothing = ("proxies", "token", "cache_dir", "variant", "gguf_file", "commit_hash", "download_kwargs")
    given: dict[str, Any] = {
        **dict.fromkeys(nothing),
        "pretrained_model_name_or_path": str(folder),
        "subfolder": "",
        "from_tf": False,
        "from_flax": False,
        "use_safetensors": True,
        "force_download": False,
        "local_files_only": True,
        "user_agent": {},
        "revision": "main",
        "is_remote_code": False,
        "transformers_explicit_filename": config.get("transformers_weights"),
    }
    taken = inspect.signature(_get_resolved_checkpoint_files).parameters  # other ones in each version
    files, _ = _get_resolved_checkpoint_files(**{key: given[key] for key in given if key in taken})
    return [Path(file).name for file in files or []]


def one_file(folder: Path) -> None:
    """Puts one file of other weights beside what is there."""
    other = tiny.checkpoint(folder.parent / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder)


def explicit(name: str) -> Any:
    """Names a file in config.json."""

    def write(folder: Path) -> None:
        one_file(folder)
        (folder / "model.safetensors").rename(folder / "mine.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))

    return write


def others(folder: Path) -> None:
    """Puts weights of other forms beside the shards."""
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda _: None, None),
        (one_file, "taking model.safetensors, as transformers does; not taken: model-00001-of-"),
        (explicit("mine.safetensors"), "taking mine.safetensors, as transformers does"),
        (explicit("model.safetensors.index.json"), None),
        (others, r"taking the shards of model.safetensors.index.json, .*not taken: consolidated"),
    ],
)
def test_the_files_are_those_that_transformers_resolves(
    change: Any, word: str | None, tmp_path: Path
) -> None:
    folder = tiny.checkpoint(tmp_path / "m", max_shard_size="60KB")
    change(folder)
    weights = weight_files.find(folder)
    assert [file.name for file in weights.files] == resolved(folder)
    assert (weights.index is None) == (weights.named is None) == (len(weights.files) == 1)
    if word is None:
        assert weights.word() is None
    else:
        assert (text := weights.word()) and re.search(word, text)


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path)
    assert weight_files.weight_files(folder) == [folder / "model.safetensors"]
    assert [folder / name for name in resolved(folder)] == weight_files.weight_files(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "not a valid record"),
        ({"weight_map": {"a": 1}, "metadata": {}}, "weight_map"),
        ({"weight_map": {"a": "gone.safetensors"}}, r"names gone\.safetensors, which is missing"),
        ({"weight_map": {"a": "../../etc/passwd"}}, "outside its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside its folder"),
        ({"weight_map": {}}, "names no tensor"),
        (
            {"weight_map": {f"{k}": f"{k}.safetensors" for k in range(50_001)}},
            "names 50001 tensors; 50000 is the",
        ),
    ],
)
def test_an_index_that_is_none(index: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    text = index if isinstance(index, str) else json.dumps(index)
    (tmp_path / weight_files.INDEX).write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        weight_files.find(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["../x.safetensors", "model.bin", 3, "gone.safetensors", ["a"]])
def test_weights_that_config_json_names_amiss(name: Any, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(UserError, match="transformers_weights"):
        weight_files.find(folder)


def test_metadata_is_needed_by_transformers_alone(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, max_shard_size="60KB")
    index = folder / weight_files.INDEX
    weight_files.refuse_without_metadata(index)
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": names}))
    assert len(weight_files.weight_files(folder)) > 1
    with pytest.raises(KeyError, match="metadata"):
        resolved(folder)
    with pytest.raises(UserError, match=r'has no "metadata", without which transformers loads nothing; add'):
        weight_files.refuse_without_metadata(index)
