"""Which published set is meant: by a model's ids or where its folder is from, by kind, count and name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.calib import published
from pipeline.calib.published import Wanted
from pipeline.calib.published_files import PublishedModel, read
from pipeline.types import UserError
from tests import published as made_up


@pytest.fixture
def tiny(workdir: Path) -> PublishedModel:
    return read(made_up.write(workdir))


@pytest.mark.parametrize(
    "name", ["made-up/tiny", "made-up/small", "Made-Up/Tiny", "made-up/tiny@0123abc", "made-up/small@main"]
)
def test_a_model_is_found_by_its_ids(name: str, tiny: PublishedModel) -> None:
    assert published.find(published.ids_of(name), 4) == tiny


@pytest.mark.parametrize("name", ["tiny", "made-up", "made-up/tiny2", "./made-up/tiny", ""])
def test_another_name_is_refused_with_those_that_there_are(name: str, tiny: PublishedModel) -> None:
    with pytest.raises(UserError, match=r"no published skip set of '.*' is known; .*made-up/tiny"):
        published.find(published.ids_of(name))


def test_another_number_of_layers_is_refused(tiny: PublishedModel) -> None:
    with pytest.raises(UserError, match="of 4 layers, and this model has 6"):
        published.find(["made-up/tiny"], 6)


def test_sets_of_one_model_in_several_files_stand_together(workdir: Path, tiny: PublishedModel) -> None:
    """Whatever a project's own file is called: its sets come first, and hide others of their names."""
    own = made_up.TEXT.replace("made-up/tiny", "meta-llama/Llama-2-7b-hf").replace("= 4", "= 32")
    own = own.replace('"coin-block2"', '"shortgpt-block9"')
    shipped = published.find(["meta-llama/Llama-2-7b-hf"])
    (workdir / "calib" / "published" / "zz.toml").write_text(own)
    both = published.find(["meta-llama/Llama-2-7b-hf"], 32)
    names = [one.name for one in both.sets]
    assert names[:4] == ["dice-mlp1", "dice-any3", "dice-block2", "shortgpt-block9"]
    assert len(names) == len(set(names)) == len(shipped.sets) + 3
    assert Wanted(name="shortgpt-block9").one(both).skip.name == "block0-1"
    assert "made-up/small" in both.aliases and both.model not in both.aliases
    assert published.find(["made-up/tiny"]).sets == tiny.sets
    (workdir / "calib" / "published" / "zz.toml").write_text(own.replace("= 32", "= 31"))
    with pytest.raises(UserError, match=r"two files of calib/published differ: .* has 31 layers, .* 32"):
        published.find(["meta-llama/Llama-2-7b-hf"])


def test_a_folder_says_where_it_is_from(workdir: Path) -> None:
    folder = workdir / "somewhere" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "made-up/tiny", "num_hidden_layers": 4}))
    assert published.ids_of("somewhere/mine") == ["somewhere/mine", "made-up/tiny"]
    assert published.ids_of(None, folder) == ["made-up/tiny"]
    assert published.layers_of("somewhere/mine") == 4
    assert published.layers_of("made-up/tiny") is None


def test_a_model_under_graphs_says_where_it_is_from(workdir: Path) -> None:
    folder = workdir / "graphs" / "mine"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text(json.dumps({"kind": "hub", "from": "made-up/tiny@main"}))
    (folder / "config.json").write_text(json.dumps({"_name_or_path": 3, "num_hidden_layers": 5}))
    assert published.ids_of("mine") == ["mine", "made-up/tiny"]
    assert published.layers_of("mine") == 5


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Wanted(), ["dice-mlp1", "dice-any3", "dice-block2", "coin-block2"]),
        (Wanted("block"), ["dice-block2", "coin-block2"]),
        (Wanted("mlp", 1), ["dice-mlp1"]),
        (Wanted("mlp", frac=0.25), ["dice-mlp1"]),
        (Wanted(count=3), ["dice-any3"]),
        (Wanted(count=2), ["dice-block2", "coin-block2"]),
        (Wanted(name="coin-block2"), ["coin-block2"]),
        (Wanted("block", 2, name="coin-block2"), ["coin-block2"]),
    ],
)
def test_kind_count_and_name_narrow_the_list(tiny: PublishedModel, wanted: Wanted, names: list[str]) -> None:
    assert [one.name for one in wanted.matching(tiny)] == names
    if len(names) == 1:
        assert wanted.is_one and wanted.one(tiny).name == names[0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted("norm"), "'norm' is not a kind of set; choose from attn, mlp, block, any"),
        (Wanted(name="dice"), "no set 'dice' of made-up/tiny is known; there are dice-mlp1, dice-any3"),
        (Wanted("attn", 1), "no set attn 1 of .* is known; there are mlp 1, any 3, block 2"),
        (Wanted("mlp", 2, name="dice-mlp1"), "no set dice-mlp1 mlp 2 of"),
        (Wanted(frac=1.5), "not between 0 and 1"),
        (Wanted("block", 2), "2 sets of made-up/tiny match; name one with --set: dice-block2, coin-block2"),
    ],
)
def test_none_or_several_are_refused(tiny: PublishedModel, wanted: Wanted, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wanted.one(tiny)
