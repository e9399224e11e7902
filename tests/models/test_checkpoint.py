"""Models by every name, and the project that a checkpoint belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.graphs import export
from pipeline.models import checkpoint, demo, identity, origins
from pipeline.types import UserError
from tests import tiny


def test_folder_is_copied_and_in_place_is_not(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny", max_shard_size="60KB")
    opened = checkpoint.resolve(str(source))
    assert opened.folder == Path("graphs/tiny") and len(opened.files) > 1
    assert {f.name: f.read_bytes() for f in opened.files} == {
        f.name: (source / f.name).read_bytes() for f in opened.files
    }
    assert (
        checkpoint.resolve("tiny").identity
        == opened.identity
        == checkpoint.resolve(str(source), in_place=True).identity
    )
    path = export.export_base(checkpoint.resolve(str(source), in_place=True))
    assert path.parent.resolve() == source.resolve() and store.graph_sidecar(path).weights == opened.identity
    other = tiny.checkpoint(workdir / "elsewhere" / "tiny", seed=1)
    with pytest.raises(UserError, match=r"already holds a model from .*models/tiny"):
        checkpoint.resolve(str(other))


@pytest.mark.parametrize("name", ["nosuch", "../x", "a b", "", "org/name/too", "missing.gguf"])
def test_unknown_model(name: str, workdir: Path) -> None:
    with pytest.raises(UserError):
        checkpoint.resolve(name)
    assert not list(workdir.iterdir())


def test_config_that_disagrees_with_the_weights(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    config = json.loads((source / "config.json").read_text())
    for change, message in [
        ({"intermediate_size": 80}, r"mlp.*is \[96, 64\], but config.json implies \[80, 64\]"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers 3, but the checkpoint lacks 1 of them \(layer 2\)"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"hidden_size": "x"}, "hidden_size is 'x'"),
    ]:
        (source / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            export.export_base(checkpoint.open_checkpoint(source))
        assert not list(source.glob("*.onnx"))


def test_what_the_caller_refuses_is_not_copied(workdir: Path) -> None:
    """It is asked before a copy, of the user's own folder; not again of what lies there already."""
    source = tiny.checkpoint(workdir / "models" / "tiny")
    asked: list[Path] = []

    def refuse(candidate: checkpoint.Checkpoint) -> None:
        asked.append(candidate.folder)
        raise UserError(f"{candidate.folder} and {candidate.model} will not do")

    with pytest.raises(UserError, match=r"^models/tiny and tiny will not do$"):
        checkpoint.resolve("models/tiny", proof=refuse)
    assert asked == [Path("models/tiny")] and [file.name for file in workdir.iterdir()] == ["models"]
    folder = checkpoint.resolve("models/tiny", proof=asked.append).folder
    assert len(asked) == 2 and checkpoint.resolve("models/tiny", proof=refuse).folder == folder
    assert checkpoint.resolve("tiny", proof=refuse).files and (source / "model.safetensors").is_file()


def test_what_the_caller_refuses_of_a_gguf_names_the_gguf(workdir: Path) -> None:
    shutil.copy(demo.gguf(), workdir / "mine.gguf")

    def refuse(candidate: checkpoint.Checkpoint) -> None:
        raise UserError(f"{candidate.folder / 'config.json'}: hidden_act; {candidate.folder} will not do")

    with pytest.raises(UserError, match=r"^mine\.gguf: config\.json: hidden_act; mine\.gguf will not do$"):
        checkpoint.resolve("mine.gguf", proof=refuse)
    assert [file.name for file in workdir.iterdir()] == ["mine.gguf"]


def test_a_tokenizer_arrives_whatever_the_model_is_called_by(workdir: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny"))
    folder = checkpoint.resolve("models/tiny").folder
    for number, name in enumerate(
        ["graphs/tiny", "tiny", "models/tiny", str(folder.resolve()), "./graphs/tiny/"]
    ):
        (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": number}))
        checkpoint.resolve(name)
        copy = json.loads((folder / "tokenizer_config.json").read_text())
        assert copy == {"model_max_length": number}, name


@pytest.mark.parametrize("name", ["my model é", "模型 (2)", "it's"])
def test_folder_names_may_have_any_letters(name: str, workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / name)
    assert checkpoint.resolve(str(source)).folder == Path("graphs") / name
    again = checkpoint.resolve(name)
    assert again.model == name and again.calib == Path("calib") / name
    assert checkpoint.resolve(f"graphs/{name}").folder == Path("graphs") / name


def test_a_model_of_another_project_is_opened_where_it_is(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.checkpoint(workdir / "models" / "tiny")
    (workdir / "one").mkdir()
    (workdir / "two").mkdir()
    monkeypatch.chdir(workdir / "one")
    checkpoint.resolve("../models/tiny")
    monkeypatch.chdir(workdir / "two")
    opened = checkpoint.resolve("../one/graphs/tiny")
    assert opened.folder.resolve() == workdir / "one" / "graphs" / "tiny"
    assert opened.calib == workdir / "one" / "calib" / "tiny" and not list((workdir / "two").iterdir())
    loose = tiny.checkpoint(workdir / "graphs" / "loose")  # a user's folder that only has the name of ours
    assert checkpoint.resolve(str(loose)).folder == Path("graphs/loose")


def test_the_source_is_a_record_and_its_path_follows_the_project(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.checkpoint(workdir / "project" / "models" / "tiny")
    monkeypatch.chdir(workdir / "project")
    assert checkpoint.resolve("models/tiny").source.origin == "../../models/tiny"
    monkeypatch.chdir(workdir)
    (workdir / "project").rename(workdir / "moved")
    assert checkpoint.open_checkpoint(Path("moved/graphs/tiny")).origin == Path("moved/models/tiny")
    assert not source.exists()
    monkeypatch.chdir(workdir / "moved")
    assert checkpoint.resolve("models/tiny").folder == Path("graphs/tiny")


def test_a_source_of_version_0_1_is_read(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    folder = checkpoint.resolve(str(source)).folder
    (folder / store.SOURCE).write_text(json.dumps({"kind": "folder", "from": str(source)}))
    opened = checkpoint.resolve(str(source))
    assert (opened.source.kind, opened.source.origin) == ("folder", str(source))
    assert opened.source.files == identity.states(source)  # compared byte by byte once, and known from now on
    (folder / store.SOURCE).write_text(json.dumps({"kind": "folder"}))
    with pytest.raises(UserError, match=r"source\.json is not a valid record at 'from': missing"):
        checkpoint.resolve("tiny")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("demo", demo.MODEL), ("org/name", "name"), ("a/b.gguf", "b"), ("a/my model", "my model")],
)
def test_the_folder_of_a_name(name: str, folder: str) -> None:
    assert origins.folder_name(name) == folder


def test_a_name_that_is_also_a_folder(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "tiny")
    folder = checkpoint.resolve("tiny").folder
    assert folder == Path("graphs/tiny") and checkpoint.resolve("tiny").folder == folder
    tiny.tokenizer(source)
    checkpoint.resolve("tiny")
    assert (folder / "tokenizer.json").is_file()
    tiny.checkpoint(source, seed=1)
    with pytest.raises(UserError, match="has changed since graphs/tiny was made"):
        checkpoint.resolve("tiny")
    source.rename(workdir / "moved")
    tiny.checkpoint(source, seed=2)
    with pytest.raises(UserError, match="has changed"):  # another model in its place
        checkpoint.resolve("tiny")
    shutil.rmtree("graphs")
    checkpoint.resolve("moved").folder.rename("graphs/tiny")
    with pytest.raises(
        UserError, match=r"tiny is both graphs/tiny and a folder here; name it graphs/tiny or \./t"
    ):
        checkpoint.resolve("tiny")
    assert checkpoint.resolve("graphs/tiny").folder == folder
    shutil.rmtree(source)
    source.mkdir()  # a folder of something else
    assert checkpoint.resolve("tiny").folder == folder


def test_paths_as_they_are_typed(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    (workdir / "link").symlink_to(source)
    for name in (
        "models/tiny",
        "models/tiny/",
        "./models/tiny",
        "models/../models/tiny",
        "link",
        f"{source}",
    ):
        assert checkpoint.resolve(name).folder == Path("graphs/tiny")
        assert origins.folder_name(name) == "tiny"
    monkeypatch.chdir(workdir / "models")
    assert checkpoint.resolve("../models/tiny").folder == Path("graphs/tiny")
    monkeypatch.chdir(source)
    assert checkpoint.resolve(".").folder == Path("graphs/tiny") and origins.folder_name(".") == "tiny"
    assert checkpoint.resolve("../tiny").folder == Path("graphs/tiny")
    assert checkpoint.resolve(".", in_place=True).folder == Path()
    with pytest.raises(UserError, match="is a file; name the folder that holds it"):
        checkpoint.resolve("model.safetensors")


def test_links_are_copied_and_not_written_beside(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    file = (source / "model.safetensors").rename(workdir / "blob")
    file.chmod(0o444)
    (source / "model.safetensors").symlink_to(file)
    with pytest.raises(UserError, match=r"model\.safetensors is a link, .*; leave --in-place out"):
        checkpoint.resolve(str(source), in_place=True)
    (copy,) = checkpoint.resolve(str(source)).files
    assert not copy.is_symlink() and copy.stat().st_mode & 0o200 and copy.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", [".hidden", "a\nb", "x" * 250, " x", "x "])
def test_folders_that_give_no_name(name: str, workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / name)
    for in_place in (False, True):
        with pytest.raises(UserError, match=r"(cannot be|too long for) a file name.*; rename the folder"):
            checkpoint.resolve(str(source), in_place)
    assert not Path("graphs").exists()


@pytest.mark.parametrize("in_place", [False, True])
def test_what_no_graph_can_be_made_of_is_not_copied(in_place: bool, workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    whole = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    packed = {**whole, f"{name}.qweight": whole.pop(f"{name}.weight").to(torch.int32)}
    save_file(packed, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"models/tiny: the weights are quantised \(GPTQ or AWQ"):
        checkpoint.resolve(str(source), in_place)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "model_type": "bert", "architectures": ["BertModel"]})
    )
    with pytest.raises(UserError, match="models/tiny is no causal language model but BertModel"):
        checkpoint.resolve(str(source), in_place)
    assert not Path("graphs/tiny").exists() and not list(source.glob("*.onnx"))
