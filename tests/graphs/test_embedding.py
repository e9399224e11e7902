"""Rows of the embedding: of graphs authored here, at both precisions, and of graphs from elsewhere."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from pipeline.engines import opening
from pipeline.graphs import embedding, export, graphfile
from pipeline.models import checkpoint
from tests import tiny


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_rows_are_those_of_the_checkpoint(precision: str, is_tied: bool, workdir: Path) -> None:
    folder = tiny.checkpoint(workdir / "tiny", vocab_size=71, tie_word_embeddings=is_tied)
    graph = export.export_base(checkpoint.resolve(str(folder)), precision=precision)
    assert embedding.rows(graphfile.load(graph)) == 71
    with opening.open_runner(graph) as runner:
        assert runner.vocabulary == runner.width == 71
        assert (runner.unknown([0, 70]), runner.unknown([5, 71, 72]), runner.unknown([-1])) == (None, 71, -1)


TABLES = {
    "a weight": ("y = Gather(table, input_ids)", 9),
    "cast ids and table": ("t = Cast<to=1>(table) ids = Cast<to=7>(input_ids) y = Gather(t, ids)", 9),
    "another axis": ("y = Gather<axis=1>(table, input_ids)", None),
    "a table that is turned": ("t = Transpose(table) y = Gather(t, input_ids)", None),
    "no table": ("y = Cast<to=1>(input_ids)", None),
}


@pytest.mark.parametrize("form", TABLES)
def test_rows_of_graphs_from_elsewhere(form: str) -> None:
    expression, expected = TABLES[form]
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>\n'
        "g (int64[B, S] input_ids) => (float y) <float[9, 2] table = {"
        + ",".join(["1"] * 18)
        + "}> {\n"
        + expression
        + "\n}"
    )
    assert embedding.rows(model) == expected


def test_an_embedding_of_other_rows_than_the_logits_decides(workdir: Path) -> None:
    """Ids between the two are inputs where the embedding has more rows, and none where it has less."""
    graph = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    with opening.open_runner(graph) as runner:
        for rows, refused in ((96 + 8, None), (90, 95), (None, None)):
            runner.embedding_rows = rows
            assert runner.unknown([95]) == refused
        assert runner.unknown([96]) == 96
