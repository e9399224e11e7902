"""A checkpoint's digests, and sources that changed since their graphs were made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import store
from pipeline.models import checkpoint, identity
from pipeline.types import UserError
from tests import tiny


def test_verify_hashes_the_contents(workdir: Path) -> None:
    opened = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny")))
    identity.verify(opened)
    raw = bytearray(opened.files[0].read_bytes())
    raw[-1] ^= 1
    opened.files[0].write_bytes(raw)
    with pytest.raises(UserError, match="is not what was fetched"):
        identity.verify(checkpoint.resolve("tiny"))


def test_a_source_that_became_another_model_is_not_taken_for_the_old_one(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    checkpoint.resolve(str(source))
    os.utime(source / "model.safetensors")  # another date, the same bytes
    checkpoint.resolve(str(source))
    tiny.checkpoint(source, seed=1)  # the same headers, other weights
    with pytest.raises(
        UserError, match=r"models/tiny/model\.safetensors has changed since graphs/tiny was made"
    ):
        checkpoint.resolve(str(source))
    assert checkpoint.resolve("tiny").folder == Path(
        "graphs/tiny"
    )  # what was copied can still be used by its own name


def test_a_gguf_that_became_another_is_not_taken_for_the_old_one(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workdir / "some.gguf"
    file.write_bytes(b"one")
    source = tiny.checkpoint(workdir / "models" / "tiny")
    monkeypatch.setattr(
        "pipeline.models.gguf.convert.convert", lambda _, to: shutil.copytree(source, to, dirs_exist_ok=True)
    )
    checkpoint.resolve(str(file))
    os.utime(file)
    checkpoint.resolve(str(file))
    file.write_bytes(b"two")
    with pytest.raises(UserError, match=r"some\.gguf has changed since graphs/some was made"):
        checkpoint.resolve(str(file))


def _flipped(file: Path) -> None:
    """Changes the last byte and puts the date back, as a disk does that forgets."""
    status, raw = file.stat(), bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _norm_changed(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize(
    ("name", "change"), [("model.safetensors", _flipped), ("config.json", _norm_changed)]
)
def test_a_copy_that_was_altered_is_not_taken_for_its_original(
    kind: str, name: str, change: Callable[[Path], None], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original was named, and a graph of the damaged copy passed its check against that copy."""
    source = original = tiny.checkpoint(workdir / "models" / "tiny")
    if kind == "gguf":
        source = workdir / "tiny.gguf"
        source.write_bytes(b"one")
        monkeypatch.setattr(
            "pipeline.models.gguf.convert.convert",
            lambda _, to: shutil.copytree(original, to, dirs_exist_ok=True),
        )
    checkpoint.resolve(str(source))
    checkpoint.resolve(str(source))
    change(Path("graphs/tiny") / name)
    for _ in range(2):
        with pytest.raises(
            UserError,
            match=rf"^graphs/tiny/{name} is not what .*{source.name}: .*; move graphs/tiny away",
        ):
            checkpoint.resolve(str(source))
    assert checkpoint.resolve("tiny").folder == Path("graphs/tiny")  # by its own name it is a model like any
    shutil.move("graphs/tiny", "graphs/damaged")
    assert checkpoint.resolve(str(source)).source.origin.endswith(source.name)


def test_weights_that_were_put_beside_a_copys_are_not_taken_for_the_original(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny", max_shard_size="100KB")
    checkpoint.resolve(str(source))
    other = tiny.checkpoint(workdir / "other", seed=1)
    shutil.copy(other / "model.safetensors", "graphs/tiny")  # transformers takes it before the shards
    with pytest.raises(UserError, match=r"^graphs/tiny/model\.safetensors is not what was made of"):
        checkpoint.resolve(str(source))


def test_verify_records_the_digests_the_first_time(workdir: Path) -> None:
    opened = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny", max_shard_size="60KB")))
    identity.verify(opened)
    assert checkpoint.resolve("tiny").source == opened.source.replaced(
        sha256={file.name: store.sha256(file) for file in opened.files}
    )


def test_the_hubs_digest_is_compared_and_its_blob_id_is_not(workdir: Path) -> None:
    opened = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny")))
    source = json.loads((opened.folder / store.SOURCE).read_text())
    (opened.folder / store.SOURCE).write_text(
        json.dumps({**source, "etags": {"model.safetensors": "b" * 40}})
    )
    identity.verify(checkpoint.resolve("tiny"))
    (opened.folder / store.SOURCE).write_text(
        json.dumps({**source, "etags": {"model.safetensors": "b" * 64}})
    )
    with pytest.raises(UserError, match="is not what was fetched"):
        identity.verify(checkpoint.resolve("tiny"))


def test_weights_are_known_by_headers_and_sizes(tmp_path: Path) -> None:
    one, other = tiny.checkpoint(tmp_path / "one"), tiny.checkpoint(tmp_path / "other", intermediate_size=80)
    digests = {folder: checkpoint.open_checkpoint(folder).identity for folder in (one, other)}
    assert digests[one] != digests[other]
    shutil.copytree(one, tmp_path / "copy")
    assert checkpoint.open_checkpoint(tmp_path / "copy").identity == digests[one]


def test_the_tokenizers_digest_follows_each_of_its_files(tmp_path: Path) -> None:
    assert identity.tokenizer_digest(tmp_path) is None
    tiny.tokenizer(tmp_path)
    digests = [identity.tokenizer_digest(tmp_path)]
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt"):
        with (tmp_path / name).open("a") as file:
            file.write(" ")
        digests.append(identity.tokenizer_digest(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert len(set(digests)) == 4 and identity.tokenizer_digest(tmp_path) == digests[-1]


def test_tokenizer_and_generation_settings_are_renewed(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = tiny.checkpoint(workdir / "models" / "tiny")
    folder = checkpoint.resolve(str(source)).folder
    assert identity.outdated(checkpoint.open_checkpoint(folder)) == []
    tiny.tokenizer(source)
    (source / "chat_template.jinja").write_text("{{ 1 }}")
    names = {file.name for file in identity.outdated(checkpoint.open_checkpoint(folder))}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    digest = identity.tokenizer_digest(folder)
    opened = checkpoint.resolve(str(source))
    assert identity.outdated(opened) == [] and identity.tokenizer_digest(folder) != digest
    assert identity.tokenizer_digest(folder) == identity.tokenizer_digest(source)
    assert "graphs/tiny: copied anew from its source: tokenizer.json" in caplog.text
    caplog.clear()
    assert checkpoint.resolve(str(source)).source == opened.source and not caplog.text


def test_an_edit_of_the_copy_alone_stays_and_a_removal_does_not(workdir: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny"))
    folder = checkpoint.resolve(str(source)).folder
    (folder / "tokenizer_config.json").write_text('{"mine": 1}')
    (folder / "tokenizer.json").unlink()
    checkpoint.resolve(str(source))
    assert (folder / "tokenizer_config.json").read_text() == '{"mine": 1}'
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    (source / "tokenizer_config.json").write_text('{"theirs": 1}')
    checkpoint.resolve(str(source))
    assert (folder / "tokenizer_config.json").read_text() == '{"theirs": 1}'
    (source / "tokenizer.json").unlink()
    checkpoint.resolve(str(source))
    assert (folder / "tokenizer.json").is_file()  # what was copied stays


def test_the_tokenizer_of_another_model_is_not_renewed(workdir: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny"))
    folder = checkpoint.resolve(str(source)).folder
    before = identity.tokenizer_digest(folder)
    tiny.checkpoint(source, seed=1)
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors has changed since graphs/tiny"):
        checkpoint.resolve(str(source))
    assert checkpoint.resolve("tiny").folder == folder and identity.tokenizer_digest(folder) == before


def test_weights_saved_anew_in_another_form_are_noticed(workdir: Path) -> None:
    """transformers leaves the shards in place and takes the one file, or the other way round."""
    source = tiny.checkpoint(workdir / "models" / "tiny", max_shard_size="60KB")
    checkpoint.resolve(str(source))
    one = tiny.checkpoint(workdir / "one", seed=1)
    shutil.copy(one / "model.safetensors", source)
    with pytest.raises(UserError, match=r"tiny/model\.safetensors has changed since graphs/tiny"):
        checkpoint.resolve(str(source))


def test_the_first_verify_compares_with_what_was_copied(workdir: Path) -> None:
    """It blessed what lay there: a copy that was damaged before it."""
    opened = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny")))
    file = opened.folder / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"model\.safetensors is not what was made of .*models/tiny: it was"):
        identity.verify(checkpoint.resolve("tiny"))
    file.write_bytes(good)
    identity.verify(checkpoint.resolve("tiny"))


def test_a_tokenizers_file_of_gigabytes_is_not_hashed(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(UserError, match=r"tokenizer\.model has 5,000,000,000 bytes"):
        identity.tokenizer_digest(tmp_path)
