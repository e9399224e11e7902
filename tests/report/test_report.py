"""The report's numbers: beside the papers' own, with their marks; what no file says is a gap; and what follows from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.report import charts, collect, papers, recommend, report, tables
from tests import results

MODEL = "Llama-2-7b-hf"


def cells(name: str) -> dict[tuple[str, str], tables.Cell]:
    """(row, column) → cell of one of the papers' tables."""
    made = tables.tyukin(collect.collect())
    return {(row, column): cell for table, row, column, cell in tables.numbers(made) if table == name}


# ---- the papers' numbers --------------------------------------------------------------------------------------------

# Lines of the paper's text (arXiv 2407.15516), as they are printed there: the first and the last table, and rows between.
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


def test_the_papers_numbers_are_those_printed() -> None:
    held = {
        (r["table"], r["model"], r["kept"]): list(r.values())[5:]
        for r in (*papers.scores(), *papers.latencies())
    }
    assert {key: " | ".join(held[key]) for key in PRINTED} == PRINTED
    assert len(papers.scores()) == 6 * 8 and len(papers.latencies()) == 4 * 4
    # The rows agree with themselves, so nothing was mistyped; but for two that do not in the paper either (papers.toml says so).
    odd = []
    for row in papers.scores():
        if abs(sum(float(row[name]) for name in tables.PAPER) / 4 - float(row["average"])) > 0.051:
            odd.append((row["table"], row["model"], row["kept"]))
    for row in papers.latencies():
        base = next(
            float(r["block_s"])
            for r in papers.latencies()
            if (r["table"], r["kept"]) == (row["table"], "100")
        )
        for kind in ("block", "attn", "mlp"):
            if (
                row[f"{kind}_s"]
                and abs(100 * (1 - float(row[f"{kind}_s"]) / base) - float(row[f"{kind}_saved"])) > 0.011
            ):
                odd.append((row["table"], row["kept"], kind))
    assert odd == [("4", "13B", "90"), ("9", "66", "attn")]
    assert papers.transition("Llama-2-70b-hf") == (45, 55) and papers.chance("mmlu") == 25


def test_a_cell_stands_beside_the_papers_own(workdir: Path) -> None:
    results.small_grid(MODEL)
    found = cells("tyukin-02")  # attention, the last ones
    cell = found[f"{MODEL}-75%", "ARC"]
    assert (cell.text(), cell.paper, cell.difference) == ("59.5 ±1.0", 52.5, pytest.approx(7.0))
    assert (
        cell.source and json.loads(Path(cell.source.path).read_text())["pipeline"]["variant"] == "attn24-31"
    )
    assert found[f"{MODEL}-100%", "Average"].text() == "60.0 ±0.5"
    assert found[f"{MODEL}-90%", "ARC"].text() == "not run" and found[f"{MODEL}-90%", "ARC"].paper == 52.8
    assert found["13B-75%", "MMLU"].text() == "not run" and found["13B-75%", "MMLU"].paper == 52.1
    assert not any(row.startswith("7B") for row, _ in found)  # it is ours, under our name
    times = cells("tyukin-09")
    assert times[f"{MODEL}-75%", "Full, %"].text() == "25.00 ±1.00"
    assert times[f"{MODEL}-75%", "Full, s"].value == pytest.approx(
        2.0 * 100 * 0.75 / 10 * 10
    )  # of 1000 sequences
    assert any("scaled to 1000 from 100" in note for note in times[f"{MODEL}-75%", "Full, s"].notes)
    assert times[f"{MODEL}-100%", "Full, s"].paper == 48.0


def test_what_did_not_run_is_a_gap_with_its_reason(workdir: Path) -> None:
    results.small_grid(MODEL)
    about = {"model": MODEL, "kind": "mlp", "frac": 0.10, "select": "last"}
    results.ledger(
        [
            {**about, "id": "a", "stage": "export", "state": "done"},
            {**about, "id": "b", "stage": "check", "state": "failed", "error": "max_rel 0.4"},
            {**about, "id": "c", "stage": "score", "task": "arc", "state": "waiting"},
            {
                **about,
                "id": "d",
                "stage": "score",
                "frac": 0.33,
                "variant": "mlp21-31",
                "task": "arc",
                "state": "failed",
                "error": "out of memory",
            },
            {
                **about,
                "id": "e",
                "stage": "score",
                "frac": 0.33,
                "variant": "mlp21-31",
                "task": "mmlu",
                "state": "waiting",
            },
            {**about, "id": "f", "stage": "bench", "frac": 0.33, "variant": "mlp21-31", "state": "running"},
        ]
    )
    found = cells("tyukin-03")
    assert found[f"{MODEL}-90%", "ARC"].text() == "not run: its check failed: max_rel 0.4"
    assert found[f"{MODEL}-66%", "ARC"].text() == "failed: out of memory"
    assert found[f"{MODEL}-66%", "MMLU"].text() == "not run yet"
    assert cells("tyukin-07")[f"{MODEL}-66%", "ffwd, s"].text() == "running"
    engine = {
        "artefact": "engine",
        "model": MODEL,
        "variant": "block29-31",
        "skip": {"attention": [29, 30, 31, 28], "mlp": [29, 30, 31, 28]},
    }
    engine |= {
        "variant": "block28-31",
        "precision": "fp16",
        "sha256": "0" * 64,
        "proven": "parsed and built on a CPU; not run",
    }
    place = Path("engines") / MODEL / "block28-31" / "tensorrt-rtx-sm89-fp16.json"
    results.put(place, engine)
    place.with_suffix(".plan").touch()
    assert (
        cells("tyukin-07")[f"{MODEL}-90%", "Full, s"].text()
        == "needs a GPU: parsed and built on a CPU; not run"
    )
    every = tables.numbers(tables.tyukin(collect.collect()))
    assert all(cell.text() not in ("", "0.0") for *_, cell in every if cell.value is None)


def test_marks_say_what_a_number_rests_on(workdir: Path) -> None:
    results.config(MODEL)
    results.score(MODEL, "base", "arc", 0.5, limit=20, n=20)
    results.score(MODEL, "attn24-31", "arc", 0.4, checked=False)
    found = cells("tyukin-02")
    assert found[f"{MODEL}-100%", "ARC"].text() == "50.0 ±1.0 *"
    assert found[f"{MODEL}-100%", "ARC"].notes == ("20 documents, not the whole published set",)
    assert "unchecked" in found[f"{MODEL}-75%", "ARC"].notes[0]
    results.score(MODEL, "base", "arc", 0.52)  # the whole set, once it is there, takes the place
    assert cells("tyukin-02")[f"{MODEL}-100%", "ARC"].text() == "52.0 ±1.0"
    assert cells("tyukin-02")[f"{MODEL}-100%", "Average"].text() == "needs HellaSwag, TruthfulQA, MMLU"


def test_broken_files_are_named_and_the_rest_is_drawn(workdir: Path) -> None:
    results.small_grid()
    folder = Path("evals/results/SmolLM2-135M-Instruct")
    (folder / "cut.json").write_text('{"what": "bench"')
    results.put(folder / "other.json", {"what": "else"})
    results.put(folder / "list.json", [1])
    record = json.loads((folder / "base.fp32.score.arc.json").read_text())
    record["pipeline"]["value"] = float("nan")
    results.put(folder / "nan.json", record)
    results.put(folder / "lacking.json", {"what": "check", "model": "x"})
    found = collect.collect()
    told = {Path(path).name: why for path, why in found.problems}
    assert set(told) == {"cut.json", "other.json", "list.json", "nan.json", "lacking.json"}
    assert told["nan.json"] == "has nan where a number is due" and told["lacking.json"] == "lacks 'variant'"
    report.write(Path("out"), collect.collect())
    assert "has nan where a number is due" in Path("out/index.html").read_text()


def test_results_of_another_file_of_that_name_are_not_mixed(workdir: Path) -> None:
    results.small_grid()
    path = results.bench("SmolLM2-135M-Instruct", "attn24-31", 9.0)
    record = json.loads(path.read_text())
    results.put(path, {**record, "sha256": "f" * 64})
    mine = [a for a in collect.collect().artefacts if a.variant == "attn24-31"]
    assert [(bool(a.scores), bool(a.times)) for a in mine] in (
        [(True, False), (False, True)],
        [(False, True), (True, False)],
    )


# ---- recommendations ------------------------------------------------------------------------------------------------


def test_recommendation_within_each_budget(workdir: Path) -> None:
    results.small_grid()
    made = {one.budget: one for one in recommend.recommend(collect.collect())}
    one = made["at most 1 % loss of average"]
    assert one.choice and one.choice.artefact.variant == "attn24-31"
    assert (
        "1.09× faster (8.0 % [7.0, 9.0] of the time saved at 100 tokens; ceiling 8.5 %), loses 0.5 ±0.7 points of the average"
        in one.words
    )
    # loss 0.5 with error √2 · 0.5: Φ((1 − 0.5) / 0.707) = Φ(0.707) = 0.760
    assert any("76% probability" in doubt for doubt in one.doubts) and one.evidence[0][1].path.endswith(
        ".json"
    )
    assert made["at most 2 % loss of average"].choice.artefact.variant == "block24-31"  # type: ignore[union-attr]
    assert made["at least 20 % of the time saved"].choice.artefact.variant == "block24-31"  # type: ignore[union-attr]
    none = made["at least 30 % of the time saved"]
    assert none.choice is None and "none of 3 variants fits; the nearest is block24-31" in none.words


def test_a_time_that_its_interval_leaves_open_is_a_doubt(workdir: Path) -> None:
    results.small_grid()

    def doubts(budget: str) -> str:
        return "; ".join(
            next(one for one in recommend.recommend(collect.collect()) if one.budget == budget).doubts
        )

    assert "does not exclude" not in doubts("at least 20 % of the time saved")
    results.bench("SmolLM2-135M-Instruct", "block24-31", 25.0, interval=(-8.0, 47.0))
    assert "that less than 20 % of the time is saved: its 95 % interval begins at -8.0 %" in doubts(
        "at least 20 % of the time saved"
    )
    assert "that it is no faster than the base" in doubts("at most 2 % loss of average")


def test_no_recommendation_of_what_is_unchecked_disturbed_or_without_base(workdir: Path) -> None:
    results.small_grid()
    model = "SmolLM2-135M-Instruct"
    results.check(model, "attn24-31", passed=False)
    results.bench(model, "block24-31", 25.0, enough_clean=False)
    made = {one.budget: one for one in recommend.recommend(collect.collect())}
    assert made["at most 5 % loss of average"].choice is None
    assert (
        "none of 2 variants fits, 1 of them not counted: too few undisturbed samples"
        in made["at most 5 % loss of average"].words
    )
    shutil.rmtree("evals/results")
    results.whole(model, "attn24-31", 8.0, 0.6)
    assert recommend.recommend(collect.collect()) == []


def test_without_the_four_the_benchmark_that_most_have_is_the_yardstick(workdir: Path) -> None:
    model = "SmolLM2-135M-Instruct"
    for variant, saved, value in (("base", 0.0, 0.78), ("attn24-31", 8.0, 0.775)):
        results.bench(model, variant, saved)
        results.score(model, variant, "smoke", value)
        results.score(model, variant, "smoke-loss", 0.28 + saved / 100)
    made = recommend.recommend(collect.collect())
    assert made[0].budget == "at most 1 % loss of smoke" and made[0].choice
    chart = charts.charts(collect.collect())[0].figure
    assert not any("Tyukin" in trace["name"] for trace in chart["data"])  # their average is no smoke
