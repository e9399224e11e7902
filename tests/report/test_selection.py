from __future__ import annotations

from pathlib import Path

from pipeline.report import collect, selection
from tests import results


def test_the_variants_of_the_two_rules_that_need_only_a_count() -> None:
    assert selection.variant_for("attn", 0.25, 32, "last") == "attn24-31"
    assert selection.variant_for("block", 0.33, 32, "last-but-final") == "block20-30"
    assert selection.chosen_by("mlp", 5, 5, "last") == "mlp0-4"
    assert selection.chosen_by("mlp", 5, 5, "last-but-final") is None


def test_selectors_come_from_ledgers_and_from_the_count(workdir: Path) -> None:
    results.config("m", 32)
    for variant in ("base", "attn24-31", "block23-30", "mlp3_9"):
        results.check("m", variant)
    results.ledger([results.job("check", "m", "done", variant="mlp3_9", select="cosine")])
    selectors = {a.variant: a.selectors for a in collect.collect().artefacts}
    assert selectors == {
        "base": set(),
        "attn24-31": {"last"},
        "block23-30": {"last-but-final"},
        "mlp3_9": {"cosine"},
    }
