from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline.evals.score.benchmarks import PAPER
from pipeline.evals.score.tables import table
from tests.evals.score.test_results import FOUR, score

ENGINE = "engines/m/attn2/tensorrt-sm80-fp16.plan"


def shown(rows: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(rows)
    return capture.get()


def test_a_row_a_variant_with_the_average_and_further_columns() -> None:
    scores = [score(name, value) for name, value in FOUR.items()] + [score("arc", 0.1, artefact=ENGINE)]
    rows = table(
        scores, {"graphs/tiny/base.fp32.onnx": {"ms at 50": "1.0"}, "graphs/tiny/mlp1.fp32.onnx": {}}
    )
    assert [column.header for column in rows.columns] == ["variant", *PAPER, "average", "ms at 50"]
    cells = list(zip(*(column.cells for column in rows.columns), strict=True))
    assert cells[0] == (
        "base.fp32", "20.00 ±2.00", "40.00 ±2.00", "60.00 ±2.00", "80.00 ±2.00", "50.00 ±1.00", "1.0"
    )  # fmt: skip
    assert cells[1] == ("attn2/tensorrt-sm80-fp16.plan", "10.00 ±2.00", "", "", "", "", "")
    assert cells[2] == ("mlp1.fp32", "", "", "", "", "", "")
    assert not rows.caption


def test_the_caption_says_what_must_be_known() -> None:
    partial = score("boolq", limit=3, n=3)
    loss = score("c4-loss", 0.5, metric="loss", checked=False)
    other = score("arc", num_fewshot=2, shots="test rows of the benchmark itself")
    rows = table([partial, loss, other, other])
    text = shown(rows)
    assert "25.00 ±2.00*" in text and "0.5000 ±0.0200 ?" in text and "average" not in text
    assert str(rows.caption).splitlines() == [
        "* not the whole published set (documents: boolq 3): not a number to publish",
        "arc: 2-shot",
        "arc: few-shot examples from test rows of the benchmark itself",
        "a loss is the token loss over log V: lower is better",
        "? unchecked: nothing says that this artefact computes the right thing",
    ]


def test_chance_stands_under_the_name() -> None:
    rows = table([score("probes", 0.5, chance=0.25), score("smoke", 0.5, chance=1 / 3), score("arc", 0.5)])
    assert [str(column.header) for column in rows.columns] == [
        "variant", "probes\nchance 25", "smoke\nchance 33.3", "arc"
    ]  # fmt: skip


def test_no_scores() -> None:
    assert table([]).title == "no scores yet"
    assert "protocol lm-eval, v1" in str(table([score(), score("boolq", protocol="v1")]).title)
