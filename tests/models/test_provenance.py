"""What a file for another engine depends on."""

from __future__ import annotations

from pathlib import Path

from pipeline.graphs import export, variants
from pipeline.models import checkpoint, provenance
from pipeline.types import SkipSet
from tests import tiny


def test_a_digest_speaks_for_graph_weights_and_form(workdir: Path) -> None:
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "m", vocab_size=tiny.WORDS))
    base = export.export_base(checkpoint.resolve("models/m"))
    graphs = [base, variants.cut(base, SkipSet.parse("mlp1"))]
    digests = [provenance.digest(graph, form) for graph in graphs for form in ("f16", "hf")]
    assert len(set(digests)) == 4
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "n", vocab_size=tiny.WORDS, seed=7))
    other = export.export_base(checkpoint.resolve("models/n"))
    assert provenance.digest(other, "hf") not in digests
