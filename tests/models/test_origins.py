"""Whether two origins are one model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.models import checkpoint, origins
from pipeline.store.records import CheckpointSource
from pipeline.types import UserError
from tests import tiny

COMMIT, OTHER = "a" * 40, "b" * 40


def hub(origin: str, revision: str | None = None) -> CheckpointSource:
    """A model from the hub."""
    return CheckpointSource(kind="hub", origin=origin, revision=revision)


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("a.b/c-d_e.f", "a.b/c-d_e.f", None),
        ("org/name@v1/x", "org/name", "v1/x"),
    ],
)
def test_ids_of_the_hub(name: str, repo: str, revision: str | None) -> None:
    match = origins.HUB_ID.fullmatch(name)
    assert match and (match["repo"], match["revision"]) == (repo, revision)
    source = origins.hub_source(name)
    assert source and origins.repository(source) == (repo, "main")


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "a/.b", "org/name@", "org/name@-x", "o r/g", ""])
def test_what_is_no_id(name: str) -> None:
    assert origins.hub_source(name) is None


def test_a_revision_of_the_hub_is_one_model(workdir: Path) -> None:
    folder = Path("graphs/name")
    present = hub(f"org/name@{COMMIT}", COMMIT)
    assert origins.matching(present, present, folder) == present
    assert origins.matching(present, hub("org/name", COMMIT), folder) == present
    assert origins.matching(present, hub("org/name@v1", COMMIT), folder) == present
    for other in (
        hub("org/name", OTHER),
        hub("org/name"),  # whose commit is not known here
        hub("other/name", COMMIT),
        hub(f"org/name@{OTHER}", OTHER),
    ):
        with pytest.raises(UserError, match=f"already holds a model from org/name@{COMMIT}; to have o"):
            origins.matching(present, other, folder)


def test_a_folder_of_the_same_content_is_the_same_model(workdir: Path) -> None:
    """A checkpoint that was moved, or that lies there twice."""
    one = tiny.tokenizer(tiny.checkpoint(workdir / "one" / "tiny"))
    two = Path(shutil.copytree(one, workdir / "two" / "tiny"))
    folder = checkpoint.resolve(str(one)).folder
    assert checkpoint.resolve(str(two)).origin.resolve() == two
    (two / "tokenizer_config.json").write_text("{}")  # it is the origin now: this arrives
    assert checkpoint.resolve(str(two)).folder == folder
    assert (folder / "tokenizer_config.json").read_text() == "{}"
    with pytest.raises(
        UserError, match=r"already holds a model from .*two/tiny; move it away, or rename .*one"
    ):
        checkpoint.resolve(str(one))


@pytest.mark.parametrize("change", [{"seed": 1}, {"rope_theta": 5e5}])
def test_a_folder_of_other_content_is_refused(change: dict[str, float], workdir: Path) -> None:
    checkpoint.resolve(str(tiny.checkpoint(workdir / "one" / "tiny")))
    other = tiny.checkpoint(workdir / "two" / "tiny", **change)
    with pytest.raises(
        UserError, match=r"already holds a model from .*one/tiny; move it away, or rename .*two/tiny"
    ):
        checkpoint.resolve(str(other))


def test_models_of_this_project(workdir: Path) -> None:
    folder = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny"))).folder
    assert origins.model_folder("tiny") == folder and origins.is_a_projects(folder)
    assert origins.model_folder("other") is None and origins.model_folder("../x") is None
    loose = tiny.checkpoint(workdir / "elsewhere" / "graphs" / "loose")
    assert not origins.is_a_projects(loose)
    (loose / store.SOURCE).write_text("{}")
    assert origins.is_a_projects(loose)


def test_the_built_in_models_name(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "demo")
    with pytest.raises(
        UserError, match=r"demo is a built-in model and a folder of yours; .* \(\./demo, graphs"
    ):
        checkpoint.resolve("demo")
    assert checkpoint.resolve("./demo", in_place=True).folder == Path("demo")
    (workdir / "models").mkdir()
    source = source.rename(workdir / "models" / "demo")
    assert checkpoint.resolve("models/demo").folder == Path("graphs/demo")
    with pytest.raises(UserError, match="demo is a built-in model and a folder of yours"):
        checkpoint.resolve("demo")
    assert checkpoint.resolve("graphs/demo").folder == Path("graphs/demo")


def test_a_folder_may_be_called_as_a_gguf(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "x.gguf")
    assert checkpoint.resolve(str(source)).folder == Path("graphs/x.gguf")
    assert origins.folder_name(str(source)) == "x.gguf"
