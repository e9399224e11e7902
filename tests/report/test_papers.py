from __future__ import annotations

from pipeline.evals.score.benchmarks import PAPER
from pipeline.report import papers

# Lines of the paper's text (arXiv 2407.15516) as printed there: of the first and the last table, and between.
PRINTED = {
    ("1", "7B", "66"): "35.2 | 46.8 | 46.2 | 40.3 | 42.1",
    ("1", "13B", "90"): "51.3 | 71.3 | 37.1 | 54.8 | 53.6",
    ("2", "7B", "66"): "51.2 | 77.0 | 42.2 | 39.4 | 52.5",
    ("2", "13B", "66"): "55.6 | 80.1 | 40.1 | 51.3 | 56.8",
    ("3", "13B", "75"): "47.3 | 65.2 | 40.0 | 53.2 | 51.4",
    ("4", "13B", "66"): "35.1 | 50.0 | 46.9 | 19.1 | 37.8",
    ("5", "7B", "75"): "51.8 | 78.3 | 41.1 | 44.1 | 53.8",
    ("6", "13B", "75"): "38.7 | 56.6 | 43.7 | 33.6 | 43.2",
    ("7", "7B", "66"): "31.35 | 32.96 | 36.72 | 21.47 | 43.51 | 6.95",
    ("8", "7B", "90"): "40.92 | 12.49 | 42.43 | 9.26 | 43.51 | 6.95",
    ("9", "7B", "75"): "36.58 | 23.79 | 41.27 | 14.02 | 44.13 | 8.06",
    ("10", "7B", "66"): "32.05 | 33.23 | 38.52 | 19.75 | 42.66 | 11.13",
}


def test_the_numbers_are_those_printed() -> None:
    rows = {
        (r["table"], r["model"], r["kept"]): list(r.values())[5:]
        for r in (*papers.scores(), *papers.latencies())
    }
    assert {key: " | ".join(rows[key]) for key in PRINTED} == PRINTED
    assert len(papers.scores()) == 6 * 8 and len(papers.latencies()) == 4 * 4


def test_the_rows_agree_with_themselves() -> None:
    """So nothing was mistyped; but for two that do not agree in the paper either, as papers.toml says."""
    odd: list[tuple[str, ...]] = [
        (row["table"], row["model"], row["kept"])
        for row in papers.scores()
        if abs(sum(float(row[name]) for name in PAPER) / 4 - float(row["average"])) > 0.051
    ]
    base = {row["table"]: float(row["block_s"]) for row in papers.latencies() if row["kept"] == "100"}
    for row in papers.latencies():
        for kind in ("block", "attn", "mlp"):
            if seconds := row[f"{kind}_s"]:
                saved = 100 * (1 - float(seconds) / base[row["table"]])
                if abs(saved - float(row[f"{kind}_saved"])) > 0.011:
                    odd.append((row["table"], row["kept"], kind))
    assert odd == [("4", "13B", "90"), ("9", "66", "attn")]


def test_models_by_their_names() -> None:
    assert papers.name_of("Llama-2-7b-hf") == "7B" and papers.name_of("SmolLM2") is None
    assert papers.layers("Llama-2-13b-hf") == papers.layers("13B") == 40 and papers.layers("x") is None
    assert papers.transition("Llama-2-70b-hf") == (45, 55) and papers.transition("x") is None
    assert papers.citation("tyukin", "table 3").endswith("arXiv:2407.15516, table 3")
