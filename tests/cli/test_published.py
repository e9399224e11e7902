"""`select --select published` without a checkpoint, and `export` of a set that is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.models import checkpoint
from pipeline.types import SkipSet, UserError
from tests import published, tiny
from tests.commands import run

SELECT = ("select", "--model", "made-up/tiny", "--select", "published")


def test_the_sets_of_a_model_are_listed_without_it(workdir: Path, capsys) -> None:
    published.write(workdir)
    assert run(capsys, *SELECT).splitlines() == [
        "made-up/tiny, 4 layers: 4 published sets",
        "dice-mlp1  mlp, 1 sublayers  mlp2",
        "  thrown dice",
        "  perplexity 7",
        "  A paper (Nobody 2026): Table 1; https://example.org/paper",
        "dice-any3  any, 3 sublayers  attn1_3+mlp2",
        "  thrown dice",
        "  A paper (Nobody 2026): Table 2; https://example.org/paper",
        "dice-block2  block, 4 sublayers  block1_3",
        "  loaded dice",
        "  A paper (Nobody 2026): Table 3; https://example.org/paper",
        "coin-block2  block, 4 sublayers  block0-1",
        "  thrown dice",
        "  A paper (Nobody 2026): Table 4; https://example.org/paper",
    ]
    document = json.loads(run(capsys, *SELECT, "--kind", "block", "--json"))
    assert (document["model"], document["layers"]) == ("made-up/tiny", 4)
    assert [one["skip"] for one in document["sets"]] == ["block1_3", "block0-1"]
    assert list(workdir.iterdir()) == [workdir / "calib"]


def test_one_set_that_matches_is_the_choice(workdir: Path, capsys) -> None:
    published.write(workdir)
    words = run(capsys, *SELECT, "--kind", "mlp", "--count", "1").splitlines()
    assert words == [
        "mlp2",
        "  dice-mlp1: mlp, 1 sublayers",
        "  thrown dice",
        "  perplexity 7",
        "  A paper (Nobody 2026): Table 1; https://example.org/paper",
        "  layers are counted from 1",
        "  printed: 3",
        "  inferred: that the model is ours",
    ]
    named = json.loads(run(capsys, *SELECT, "--set", "coin-block2", "--json"))
    assert (named["skip"], named["attention"], named["source"]) == (
        "block0-1", [0, 1], "A paper (Nobody 2026)",
    )  # fmt: skip


def test_several_that_match_are_listed_and_a_name_is_asked_for(workdir: Path, capsys) -> None:
    published.write(workdir)
    with pytest.raises(UserError, match="name one with --set: dice-block2, coin-block2"):
        run(capsys, *SELECT, "--count", "2")
    assert capsys.readouterr().out.startswith("made-up/tiny, 4 layers: 2 published sets\ndice-block2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", "2", "--frac", "0.5"), "takes --count or --frac, not both"),
        (("--speedup", "1.2"), "not by a time"),
        (("--latency-ms", "50"), "not by a time"),
        (("--set", "none"), "no set 'none'"),
        (("--select", "last", "--set", "dice-mlp1"), "--set dice-mlp1 names a published set"),
        (("made-up/other",), "MODEL 'made-up/other' and --model 'made-up/tiny' are two models"),
    ],
)
def test_what_does_not_go_together_is_refused(workdir: Path, capsys, arguments, message: str) -> None:
    published.write(workdir)
    with pytest.raises(UserError, match=message):
        run(capsys, *SELECT, *arguments)


def test_another_model_is_refused_with_those_that_there_are(workdir: Path, capsys) -> None:
    with pytest.raises(UserError, match=r"'who/ever' is known; there are some of .*Llama-2-13b-hf"):
        run(capsys, "select", "who/ever", "--select", "published")


def test_a_local_model_of_other_layers_is_refused(workdir: Path, capsys) -> None:
    published.write(workdir)
    named(tiny.checkpoint(workdir / "models" / "m", num_hidden_layers=3))
    with pytest.raises(UserError, match="of 4 layers, and this model has 3"):
        run(capsys, "select", "models/m", "--select", "published")


def test_the_list_needs_neither_torch_nor_the_network(workdir: Path) -> None:
    script = (
        "import sys, socket\n"
        "def refused(*a, **k): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refused\n"
        "from pipeline.cli.commands import app\n"
        "command = ['select', '--model', 'meta-llama/Llama-2-7b-hf', '--select', 'published']\n"
        "app(command, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=workdir, capture_output=True, text=True, env=tiny.environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("meta-llama/Llama-2-7b-hf, 32 layers: ")
    assert "shortgpt-block9  block, 18 sublayers  block21-29" in done.stdout


def named(folder: Path, name: str = "made-up/tiny") -> Path:
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", f'{{"_name_or_path": "{name}",', 1))
    return folder


@pytest.mark.parametrize(
    ("options", "skip"),
    [
        (("--skip", "mlp", "--count", "1"), "mlp2"),
        (("--skip", "mlp", "--frac", "0.25"), "mlp2"),
        (("--skip", "block", "--count", "2", "--set", "dice-block2"), "block1_3"),
        (("--set", "dice-any3"), "attn1_3+mlp2"),
    ],
)
def test_a_set_is_cut(workdir: Path, capsys, options: tuple[str, ...], skip: str) -> None:
    published.write(workdir)
    named(tiny.checkpoint(workdir / "models" / "m", num_hidden_layers=4))
    path = Path(run(capsys, "export", "models/m", "--select", "published", *options).splitlines()[-1])
    assert path == Path(f"graphs/m/{skip}.fp32.onnx")
    assert store.graph_sidecar(path).skip_set == SkipSet.parse(skip)
    again = Path(run(capsys, "export", "m", "--select", "published", *options).splitlines()[-1])
    assert again == path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--skip", "block", "--count", "2"), "name one with --set: dice-block2, coin-block2"),
        (("--skip", "attn", "--count", "2"), "no set attn 2"),
        (("--skip", "mlp", "--count", "1", "--set", "dice-any3"), "no set dice-any3 mlp 1"),
        (("--set", "dice-any3", "--layers", "1"), "leave --layers out"),
        (("--set", "dice-any3", "--skip", "mlp2"), "leave --skip mlp2 out"),
    ],
)
def test_a_set_that_is_not_meant_is_not_cut(workdir: Path, capsys, options, message: str) -> None:
    published.write(workdir)
    named(tiny.checkpoint(workdir / "models" / "m", num_hidden_layers=4))
    with pytest.raises(UserError, match=message):
        run(capsys, "export", "models/m", "--select", "published", *options)
    assert not (workdir / "graphs").exists()


def test_a_model_of_no_published_sets_is_not_copied(workdir: Path, capsys) -> None:
    tiny.checkpoint(workdir / "models" / "m", num_hidden_layers=4)
    with pytest.raises(UserError, match="no published skip set of 'models/m' is known"):
        run(capsys, "export", "models/m", "--select", "published", "--skip", "mlp", "--count", "1")
    with pytest.raises(UserError, match="add --select published"):
        run(capsys, "export", "models/m", "--set", "dice-any3")
    assert not (workdir / "graphs").exists()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("who/ever", ("--skip", "mlp", "--count", "1"), "no published skip set of 'who/ever' is known"),
        (
            "made-up/tiny",
            ("--skip", "block", "--count", "2"),
            "name one with --set: dice-block2, coin-block2",
        ),
        ("made-up/tiny@main", ("--set", "dice"), "no set 'dice' of made-up/tiny"),
    ],
)
def test_a_set_that_is_not_known_is_refused_before_a_download(
    workdir: Path, capsys, monkeypatch, model: str, options: tuple[str, ...], message: str
) -> None:
    published.write(workdir)
    monkeypatch.setattr(checkpoint, "resolve", lambda *_: pytest.fail("the model was looked for"))
    with pytest.raises(UserError, match=message):
        run(capsys, "export", model, "--select", "published", *options)
