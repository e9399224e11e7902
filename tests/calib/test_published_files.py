"""The files of calib/published: every one that is shipped is right in itself, and wrong ones are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import store
from pipeline.calib import published_files
from pipeline.calib.published_files import PublishedModel, PublishedSet
from pipeline.types import SkipSet, UserError
from tests import published

SHIPPED = sorted((Path(__file__).parents[2] / "calib" / "published").glob("*.toml"))
LAYERS = {
    "meta-llama/Llama-2-7b-hf": 32,
    "meta-llama/Llama-2-13b-hf": 40,
    "meta-llama/Llama-2-70b-hf": 80,
    "meta-llama/Meta-Llama-3-8B": 32,
    "codellama/CodeLlama-34b-hf": 48,
    "google/gemma-2b": 18,
    "google/gemma-7b": 28,
}


def sets_of(model: PublishedModel, source: str) -> dict[str, PublishedSet]:
    return {one.name: one for one in model.sets if one.entry.source == source}


@pytest.fixture(scope="module")
def models() -> dict[str, PublishedModel]:
    return {model.model: model for model in map(published_files.read, SHIPPED)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_right_in_itself(path: Path) -> None:
    model = published_files.read(path)
    assert path.stem == model.model.split("/")[1]
    assert model.layers == LAYERS.get(model.model, model.layers)
    for one in model.sets:
        assert one.name.endswith(f"-{one.kind}{one.count}")
        layers = one.skip.attention + one.skip.mlp
        assert len(layers) == one.sublayers and max(layers) < model.layers
        commit = re.search(r"github\.com/\S+ at [0-9a-f]{40}", one.source.where)
        assert commit or "arXiv" in one.source.work or "huggingface.co" in one.source.where, one.name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_set_is_what_its_source_prints(path: Path) -> None:
    """An order gives its first n; Shortened LLaMA keeps the first four and the last two; mergekit keeps."""
    model = published_files.read(path)
    for one in model.sets:
        if one.entry.printed is None:
            continue
        numbers = [int(number) for number in re.findall(r"\d+", one.entry.printed)]
        if "layer_range" in one.entry.printed:
            first, last = numbers[1], numbers[2]
            assert numbers[0] == 0 and numbers[3] == model.layers
            expected = set(range(first, last))
        elif "--drop_layers" in one.entry.printed:  # NeMo counts from 1
            expected = {number - 1 for number in numbers}
        elif one.name.startswith("shortened-llama"):
            kept = {0, 1, 2, 3, model.layers - 2, model.layers - 1}
            expected = set([number for number in numbers if number not in kept][: one.count])
        else:
            expected = set(numbers[: one.count])
        assert set(one.skip.attention) | set(one.skip.mlp) == expected, one.name


@pytest.mark.parametrize("words", ["\\u001b[2J", "two\\nlines", "\\u009b1A"])
def test_control_characters_are_refused(words: str, workdir: Path) -> None:
    path = published.write(workdir, published.TEXT.replace("thrown dice", words))
    with pytest.raises(UserError, match=r"tiny.toml at 'sources.paper.rule'"):
        published_files.read(path)


def test_no_set_stands_twice_in_a_source(models: dict[str, PublishedModel]) -> None:
    for model in models.values():
        for source in {one.entry.source for one in model.sets}:
            skips = [one.skip for one in sets_of(model, source).values()]
            assert len(set(skips)) == len(skips)


def test_evopress_drops_as_much_attention_as_mlp_at_each_sparsity(models: dict[str, PublishedModel]) -> None:
    """The file at drop_configs/…/0.25 leaves out 8 of 32 of both."""
    for model in models.values():
        for one in sets_of(model, "evopress").values():
            sparsity = float(one.entry.place.split("/")[2])
            assert len(one.skip.attention) == len(one.skip.mlp) == sparsity * model.layers


def test_numbers_that_were_read_by_hand(models: dict[str, PublishedModel]) -> None:
    """Against the sources' own lines, typed anew here."""
    llama = {one.name: one for one in models["meta-llama/Llama-2-7b-hf"].sets}
    assert llama["evopress-any8"].skip == SkipSet((12, 23, 24, 25), (11, 12, 23, 25))
    assert llama["evopress-any8"].entry.measured == (
        "perplexity 6.42 on WikiText-2 (whole model 5.21), 8.60 on C4 (6.93), 7.54 on FineWeb-Edu (6.40)"
    )
    assert llama["shortgpt-block9"].skip == SkipSet.of("block", range(21, 30))
    draft = {one.name: one for one in models["meta-llama/Llama-2-13b-hf"].sets}["draft-verify-any34"]
    assert draft.skip.mlp == (6, 9, 10, 11, 15, 24, 25, 27, 28, 35)
    assert draft.skip.attention == (
        3, 5, 6, 8, 10, 11, 14, 15, 18, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 33, 34, 35, 36, 37,
    )  # fmt: skip
    mistral = {one.name: one for one in models["mistralai/Mistral-7B-v0.1"].sets}
    assert mistral["llm-drop-attn4"].skip == SkipSet(attention=(22, 24, 25, 26))


def test_a_set_says_what_it_is(tmp_path: Path) -> None:
    model = published_files.read(published.write(tmp_path))
    assert (model.model, model.aliases, model.layers) == ("made-up/tiny", ("made-up/small",), 4)
    mlp, any_, dice, _ = model.sets
    assert [(one.kind, one.count, one.sublayers) for one in (mlp, any_, dice)] == [
        ("mlp", 1, 1), ("any", 3, 3), ("block", 2, 4),
    ]  # fmt: skip
    assert (mlp.rule, dice.rule) == ("thrown dice", "loaded dice")
    assert mlp.origin == "A paper (Nobody 2026): Table 1; https://example.org/paper"
    assert mlp.plain() == {
        "name": "dice-mlp1", "kind": "mlp", "count": 1, "sublayers": 1, "skip": "mlp2", "attention": (),
        "mlp": (2,), "rule": "thrown dice", "measured": "perplexity 7", "source": "A paper (Nobody 2026)",
        "place": "Table 1", "where": "https://example.org/paper", "printed": "3", "numbering": "from 1",
        "inferred": "that the model is ours",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("layers = 4", "layers = 4\nauthor = 'me'", "at 'author': Extra inputs are not permitted"),
        ('place = "Table 1"', 'place = "Table 1"\npage = 3', "at 'sets.0.page': Extra"),
        ('rule = "thrown dice"', "", "at 'sources.paper.rule': Field required"),
        ("layers = 4", "layers = true", "at 'layers'"),
        ("layers = 4", "layers = 3", "layer 3 does not exist"),
        ('skip = "mlp2"', 'skip = "mlp2,3"', "cannot read the skip set 'mlp2,3'"),
        ('skip = "block0-1"', 'skip = "block0_1"', "coin-block2: the skip set block0_1 is written block0-1"),
        ('skip = "mlp2"', 'skip = "base"', "dice-mlp1: leaves nothing out"),
        ('source = "paper"\nplace = "Table 1"', 'source = "web"\nplace = "x"', "dice-mlp1: no source 'web'"),
        ('"coin-block2"', '"dice-block2"', "a set dice-block2 stands there twice"),
        ('"dice-mlp1"', '"Dice 1"', "at 'sets.0.name'"),
        ('model = "made-up/tiny"', 'model = "tiny"', "at 'model'"),
        ("[[sets]]", "[sets]", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in published.TEXT
    path = published.write(tmp_path, published.TEXT.replace(before, after, 1))
    with pytest.raises(UserError) as refusal:
        published_files.read(path)
    assert (
        message in str(refusal.value) and str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    )


def test_a_projects_file_comes_before_a_shipped_one_of_its_name(workdir: Path) -> None:
    shipped = {model.model for model in published_files.models()}
    assert "meta-llama/Llama-2-7b-hf" in shipped and "made-up/tiny" not in shipped
    published.write(workdir).rename(workdir / "calib" / "published" / "Llama-2-7b-hf.toml")
    here = {model.model for model in published_files.models(store.Project(workdir))}
    assert here == shipped - {"meta-llama/Llama-2-7b-hf"} | {"made-up/tiny"}


def test_an_installed_package_has_them_inside(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = workdir / "site-packages" / "pipeline"
    (installed / "calib" / "published_sets").mkdir(parents=True)
    monkeypatch.setattr(published_files, "__file__", str(installed / "calib" / "published_files.py"))
    assert published_files.folders() == [installed / "calib" / "published_sets"]
