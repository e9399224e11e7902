"""A config by every name that a model may have, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.models import hub, named_configs
from pipeline.types import SkipSet, UserError
from tests import tiny, tiny_gguf

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "vocab_size": 96,
}  # fmt: skip


def write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(CONFIG | changes))
    return path


def test_a_file_has_its_own_name_or_that_of_its_folder(workdir: Path) -> None:
    named = named_configs.find(str(write(workdir / "shapes" / "llama-x.json")))
    assert (named.name, named.folder, named.dropped) == ("llama-x", None, SkipSet())
    assert named.config["num_key_value_heads"] == 4  # normalised: what the file lacks is filled in
    assert named_configs.find(str(write(workdir / "Some-Model" / "config.json"))).name == "Some-Model"


def test_a_folder_needs_no_weights(workdir: Path) -> None:
    write(workdir / "m" / "config.json", drop_mlp_list=[False, False, True])
    named = named_configs.find("m")
    assert (named.name, named.folder) == ("m", Path("m")) and named.dropped == SkipSet((), (2,))


def test_a_model_of_the_project(workdir: Path) -> None:
    folder = write(workdir / "graphs" / "m" / "config.json").parent
    (folder / "source.json").write_text("{}")
    assert named_configs.find("m").folder == Path("graphs/m")


def test_a_gguf_is_read_and_not_converted(workdir: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(workdir / "source", vocab_size=tiny.WORDS, num_hidden_layers=2))
    file = tiny_gguf.write(source, workdir / "m.gguf")
    named = named_configs.find(str(file))
    assert named.name == "m" and named.config["num_hidden_layers"] == 2 and named.folder is None
    assert not (workdir / "graphs").exists()


def test_an_id_of_the_hub(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(workdir / "cache" / "config.json")
    asked: list[str] = []
    monkeypatch.setattr(hub, "config", lambda name: asked.append(name) or file)
    assert named_configs.find("org/Model-7b@main").name == "Model-7b" and asked == ["org/Model-7b@main"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no model 'nothing': not a folder, not a config.json, no id of the form org/name"),
        ("missing.json", "missing.json does not exist"),
        ("missing.gguf", "missing.gguf does not exist"),
        ("words.txt", "words.txt is no config; name a config.json"),
        ("broken.json", "broken.json is not a valid record"),
        ("odd.json", "num_hidden_layers"),
    ],
)
def test_what_is_no_config(name: str, message: str, workdir: Path) -> None:
    (workdir / "words.txt").write_text("words")
    (workdir / "broken.json").write_text("[")
    write(workdir / "odd.json", num_hidden_layers=-3)
    with pytest.raises(UserError, match=message) as caught:
        named_configs.find(name)
    assert "\n" not in str(caught.value)


def test_an_id_that_cannot_be_fetched_is_told_of_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> Path:
        raise UserError(f"cannot fetch {name!r}")

    monkeypatch.setattr(hub, "config", offline)
    with pytest.raises(UserError, match=r"cannot fetch 'org/model'; a config\.json serves as well"):
        named_configs.find("org/model")
