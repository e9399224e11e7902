"""The commands from text to a healed graph, as a user runs them, and what they say of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import commands, tiny

LAYERS = 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learn")
    tiny.tokenizer(tiny.checkpoint(root / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=LAYERS))
    return root


def run(project: Path, *arguments: str, code: int = 0) -> str:
    """The command's last lines: stdout where it succeeds, else its one line of error."""
    done = commands.ended(project, *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_from_text_to_a_healed_graph(project: Path) -> None:
    run(project, "export", "models/tiny")
    run(project, "select", "tiny", "--kind", "attn", "--count", "1", "--select", "cosine")
    measured = json.loads((project / "calib" / "tiny" / "similarity.json").read_text())
    assert (measured["samples"], measured["length"]) == (64, 256)  # where there were none
    statistics = json.loads(
        run(project, "calibrate", "tiny", "--samples", "4", "--length", "24", "--buckets", "2", "--json")
    )
    assert (
        statistics["samples"] == 4 and statistics["tokens"] == 96 and len(statistics["cosine_attn"]) == LAYERS
    )
    table = run(project, "calibrate", "tiny", "--samples", "4", "--length", "24", "--buckets", "2")
    assert "attention," in table and "tokens 12-23" in table and max(map(len, table.splitlines())) <= 100
    angular = json.loads(run(project, "select", "tiny", "--count", "2", "--select", "angular", "--json"))
    assert (
        len(angular["attention"]) == 2
        and angular["chosen"][0][0] == angular["skip"]
        and len(angular["stays"]) == LAYERS - 2
    )
    greedy = json.loads(
        run(
            project,
            "select",
            "tiny",
            "--kind",
            "mlp",
            "--count",
            "2",
            "--select",
            "greedy",
            "--samples",
            "4",
            "--length",
            "16",
            "--json",
        )
    )
    assert len(greedy["mlp"]) == 2 and "less than a whole pass" in greedy["note"]
    words = run(project, "select", "tiny", "--kind", "attn", "--frac", "0.5", "--select", "cosine")
    assert (
        words.count("goes") == 3 and words.count("stays") == LAYERS - 2
    )  # the statistic's own line says `goes` too
    graph = run(project, "export", "tiny", "--skip", "block", "--count", "2", "--select", "angular").strip()
    assert graph == f"graphs/tiny/{angular['skip']}.fp32.onnx"
    small = ("--steps", "2", "--batch", "2", "--length", "24", "--rank", "4")
    assert "held-out loss" in run(project, "heal", graph, *small)
    twin = run(
        project,
        "export",
        "tiny",
        "--skip",
        "block",
        "--count",
        "2",
        "--select",
        "angular",
        "--adapter",
        "heal",
    ).strip()
    assert twin == graph.replace(".fp32", "~heal.fp32")
    assert run(project, "check", twin).startswith("passed")
    assert "has an adapter already" in run(project, "heal", twin, *small, code=2)
    assert json.loads(run(project, "heal", graph, twin, *small, "--json"))[0]["variant"] == angular["skip"]
    written = run(project, "figures", "tiny").splitlines()
    assert len(written) == 9 and all((project / line).is_file() for line in written)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("select", "models/tiny", "--count", "1", "--frac", "0.5"),
            "takes exactly one of --count, --frac, --speedup and --latency-ms",
        ),
        (("select", "models/tiny", "--count", "9", "--select", "random"), "--count 9 does not fit"),
        (
            ("select", "models/tiny", "--speedup", "1.1", "--select", "greedy"),
            "--select greedy takes a --count; for a time choose cosine or evo",
        ),
        (("select", "models/tiny", "--latency-ms", "0"), "--latency-ms 0 is not a number above 0"),
        (
            ("select", "models/tiny", "--count", "1", "--select", "best"),
            "choose from angular, cosine, evo, greedy",
        ),
        (("calibrate", "models/tiny", "--texts", "none.txt"), "none.txt does not exist"),
        (("calibrate", "models/tiny", "--length", "100000"), "not 256; give more --texts"),
        (("export", "models/tiny", "--skip", "mlp1", "--adapter", "none"), "mlp1 has no adapter 'none'"),
        (("figures", "models/tiny", "--only", "pie"), "no figure 'pie'"),
    ],
)
def test_bad_input_is_one_line(project: Path, arguments: tuple[str, ...], message: str) -> None:
    error = run(project, *arguments, code=2).strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]
