"""The report: what result files say stands in it, beside the papers' numbers and with its source; what they do not say is a gap."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import report, similarity, store
from pipeline.report import charts, collect, curves, exports, papers, recommend, tables, texts
from pipeline.types import UserError
from tests import results, tiny

MODEL = "Llama-2-7b-hf"


def cells(name: str) -> dict[tuple[str, str], tables.Cell]:
    """(row, column) → cell of one of the papers' tables."""
    made = tables.tyukin(collect.collect())
    return {(row, column): cell for table, row, column, cell in tables.numbers(made) if table == name}


def html_of(folder: Path) -> str:
    return (folder / "index.html").read_text()


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
    held = {(r["table"], r["model"], r["kept"]): list(r.values())[5:] for r in (*papers.scores(), *papers.latencies())}
    assert {key: " | ".join(held[key]) for key in PRINTED} == PRINTED
    assert len(papers.scores()) == 6 * 8 and len(papers.latencies()) == 4 * 4
    # The rows agree with themselves, so nothing was mistyped; but for two that do not in the paper either (papers.toml says so).
    odd = []
    for row in papers.scores():
        if abs(sum(float(row[name]) for name in tables.PAPER) / 4 - float(row["average"])) > 0.051:
            odd.append((row["table"], row["model"], row["kept"]))
    for row in papers.latencies():
        base = next(float(r["block_s"]) for r in papers.latencies() if (r["table"], r["kept"]) == (row["table"], "100"))
        for kind in ("block", "attn", "mlp"):
            if row[f"{kind}_s"] and abs(100 * (1 - float(row[f"{kind}_s"]) / base) - float(row[f"{kind}_saved"])) > 0.011:
                odd.append((row["table"], row["kept"], kind))
    assert odd == [("4", "13B", "90"), ("9", "66", "attn")]
    assert papers.transition("Llama-2-70b-hf") == (45, 55) and papers.chance("mmlu") == 25


def test_a_cell_stands_beside_the_papers_own(workdir: Path) -> None:
    results.small_grid(MODEL)
    found = cells("tyukin-02")  # attention, the last ones
    cell = found[f"{MODEL}-75%", "ARC"]
    assert (cell.text(), cell.paper, cell.difference) == ("59.5 ±1.0", 52.5, pytest.approx(7.0))
    assert cell.source and json.loads(Path(cell.source.path).read_text())["pipeline"]["variant"] == "attn24-31"
    assert found[f"{MODEL}-100%", "Average"].text() == "60.0 ±0.5"
    assert found[f"{MODEL}-90%", "ARC"].text() == "not run" and found[f"{MODEL}-90%", "ARC"].paper == 52.8
    assert found["13B-75%", "MMLU"].text() == "not run" and found["13B-75%", "MMLU"].paper == 52.1
    assert not any(row.startswith("7B") for row, _ in found)  # it is ours, under our name
    times = cells("tyukin-09")
    assert times[f"{MODEL}-75%", "Full, %"].text() == "25.00 ±1.00"
    assert times[f"{MODEL}-75%", "Full, s"].value == pytest.approx(2.0 * 100 * 0.75 / 10 * 10)  # of 1000 sequences
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
            {**about, "id": "e", "stage": "score", "frac": 0.33, "variant": "mlp21-31", "task": "mmlu", "state": "waiting"},
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
    engine |= {"variant": "block28-31", "precision": "fp16", "sha256": "0" * 64, "proven": "parsed and built on a CPU; not run"}
    place = Path("engines") / MODEL / "block28-31" / "tensorrt-rtx-sm89-fp16.json"
    results.put(place, engine)
    place.with_suffix(".plan").touch()
    assert cells("tyukin-07")[f"{MODEL}-90%", "Full, s"].text() == "needs a GPU: parsed and built on a CPU; not run"
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
    assert "has nan where a number is due" in html_of(Path("out"))


def test_results_of_another_file_of_that_name_are_not_mixed(workdir: Path) -> None:
    results.small_grid()
    path = results.bench("SmolLM2-135M-Instruct", "attn24-31", 9.0)
    record = json.loads(path.read_text())
    results.put(path, {**record, "sha256": "f" * 64})
    mine = [a for a in collect.collect().artefacts if a.variant == "attn24-31"]
    assert [(bool(a.scores), bool(a.times)) for a in mine] in ([(True, False), (False, True)], [(False, True), (True, False)])


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
    assert any("76% probability" in doubt for doubt in one.doubts) and one.evidence[0][1].path.endswith(".json")
    assert made["at most 2 % loss of average"].choice.artefact.variant == "block24-31"  # type: ignore[union-attr]
    assert made["at least 20 % of the time saved"].choice.artefact.variant == "block24-31"  # type: ignore[union-attr]
    none = made["at least 30 % of the time saved"]
    assert none.choice is None and "none of 3 variants fits; the nearest is block24-31" in none.words


def test_a_time_that_its_interval_leaves_open_is_a_doubt(workdir: Path) -> None:
    results.small_grid()

    def doubts(budget: str) -> str:
        return "; ".join(next(one for one in recommend.recommend(collect.collect()) if one.budget == budget).doubts)

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


# ---- texts ----------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>|$x_1$ & \\input{/etc/passwd} `=cmd`"


def test_a_hostile_name_is_text_everywhere(workdir: Path) -> None:
    folder = Path("evals/results/evil")
    for path in (results.score("evil", "base", "arc", 0.5), results.bench("evil", "base", 0.0), results.check("evil", "base")):
        record = json.loads(path.read_text())
        record |= {"model": HOSTILE} if "model" in record else {}
        if "pipeline" in record:
            record["pipeline"] |= {"title": HOSTILE, "shots": HOSTILE}
        results.put(path, record)
    results.ledger(
        [{"id": "1", "stage": "score", "model": HOSTILE, "state": "failed", "error": "</script><img src=x onerror=alert(1)>"}]
    )
    results.put(folder / "=cmd|' <img src=x>.json", {"what": "else"})
    report.write(Path("out"), collect.collect())
    page = html_of(Path("out"))
    assert "<script>alert" not in page and "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    inert = page.count('<script type="application/json"') + page.count('<script type="text/plain" id="plotly">')
    assert page.count("<script") == page.count("</script>") == inert + 1  # ours
    assert "<script" not in (Path("out") / "report.md").read_text()
    assert "\\input{/etc" not in "".join(p.read_text() for p in Path("out/tables").glob("*.tex"))
    with Path("out/tables/results.csv").open(newline="") as file:
        assert not any(cell[:1] in ("=", "@") for row in csv.reader(file) for cell in row)
    assert all(re.fullmatch(r"[\w.+~@=/-]+", str(p.relative_to("out"))) for p in Path("out").rglob("*"))


def test_escapes() -> None:
    assert texts.tex("a_b & 50 % ±1 \\x ~{}") == r"a\_b \& 50 \% $\pm$1 \textbackslash{}x \textasciitilde{}\{\}"
    assert texts.md("a|b <i> [x](y)\nz") == r"a\|b &lt;i&gt; \[x\](y) z"
    assert texts.csv_text([["=1+1", -1.5, "x"]]) == "'=1+1,-1.5,x\n"
    assert (
        collect.slug("..") != ".."
        and collect.slug("a/b") != collect.slug("a-b")
        and collect.slug("base.fp32.json") == "base.fp32.json"
    )


def test_latex_is_well_formed(workdir: Path) -> None:
    results.small_grid(MODEL)
    results.small_grid("Llama-2-7b-hf")
    report.write(Path("out"), collect.collect())
    made = sorted(Path("out/tables").glob("*.tex"))
    assert len(made) == 10
    for path in made:
        text = path.read_text()
        columns = len(re.search(r"begin\{tabular\}\{l(r+)\}", text)[1]) + 1  # type: ignore[index]
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in rows), path
        bare = re.sub(r"\\[\\{}%&$#_]", "", text)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
        assert text.count("\\toprule") == text.count("\\bottomrule") == 1
    assert "-75\\% & 59.5 $\\pm$1.0 (52.5, $+7.0$) &" in Path("out/tables/tyukin-02.tex").read_text()
    latex = shutil.which("pdflatex")
    if latex:
        inputs = "\n".join(f"\\input{{tables/{path.name}}}\\clearpage" for path in made)
        Path("out/all.tex").write_text(
            f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}{inputs}\\end{{document}}"
        )
        done = subprocess.run(
            [latex, "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
            cwd="out",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]


# ---- files ----------------------------------------------------------------------------------------------------------


def links(page: str) -> set[str]:
    return set(re.findall(r'(?:href|src)="([^"#][^"]*)"', re.sub(r"<script.*?</script>", "", page, flags=re.S)))


def test_every_link_resolves_to_the_bytes_it_came_from(workdir: Path) -> None:
    results.small_grid(MODEL)
    written = report.write(Path("out"), collect.collect())
    assert written[0] == Path("out/index.html") and all(path.is_file() for path in written)
    found = {link for link in links(html_of(Path("out"))) if not link.startswith("data:")}
    found |= set(re.findall(r"\]\(([^)]+)\)", (Path("out") / "report.md").read_text()))
    parts = dict(re.findall(r'<script type="application/json" id="([^"]*)">(.*?)</script>', html_of(Path("out")), re.S))
    files = json.loads(parts["all-files"])
    places = {place for row in json.loads(parts["all-rows"]) for column in row[4:] for _, place, *_ in column}
    assert places - {None} <= set(range(len(files))) and len(places) > 20
    drawn = [json.loads(path.read_text()) for path in Path("out/charts").glob("*.json")]
    found |= set(files) | {link for chart in drawn for trace in chart["data"] for link in trace.get("customdata", []) if link}
    assert found and all((Path("out") / link).is_file() for link in found)
    manifest = json.loads(Path("out/manifest.json").read_text())["files"]
    assert all(store.sha256(Path("out") / name) == digest for name, digest in manifest.items())
    page = html_of(Path("out"))
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "http://" not in outside and "https://" not in outside  # nothing is fetched


def test_the_same_results_give_the_same_report_and_what_is_gone_goes(workdir: Path) -> None:
    results.small_grid(MODEL)
    report.write(Path("out"), collect.collect())
    Path("out/mine.txt").write_text("kept")
    first = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    report.write(Path("out"), collect.collect())
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == first
    gone = Path("evals/results") / MODEL / "attn24-31.fp32.score.arc.json"
    gone.unlink()
    report.write(Path("out"), collect.collect())
    assert not (Path("out/sources") / gone).exists() and Path("out/mine.txt").exists()


def test_only_the_models_named(workdir: Path) -> None:
    results.small_grid(MODEL)
    results.small_grid("other")
    assert collect.collect(["other"]).models() == ["other"]
    with pytest.raises(UserError, match="nothing has been measured of third"):
        collect.collect(["third"])
    Path("file").touch()
    with pytest.raises(UserError, match="is a file"):
        report.write(Path("file"), collect.collect())


def test_nothing_measured_is_said(workdir: Path) -> None:
    with pytest.raises(UserError, match="`pipeline bench`, `pipeline score`"):
        report.write(Path("out"), collect.collect())
    assert not Path("out").exists()


def test_charts_are_figures_that_plotly_takes(workdir: Path) -> None:
    import plotly.graph_objects as go

    results.small_grid(MODEL)
    results.score(MODEL, "base", "c4-loss", 0.3, 0.001)
    results.score(MODEL, "block24-31", "c4-loss", 0.6, 0.001)
    results.score(MODEL, "block24-31~heal", "c4-loss", 0.4, 0.001)
    sums = similarity.Sums()
    generator = np.random.default_rng(0)
    for _ in range(3):
        sums.add(similarity.measure(generator.normal(size=(6, 8, 16)), generator.normal(size=(5, 8, 16)), 2))
    similarity.write(MODEL, {"weights": "abc", "model": MODEL, "buckets": 2, "length": 8}, sums)
    found = collect.collect()
    drawn = [*charts.charts(found), *curves.charts(found)]
    assert all(c.gap is None for c in drawn), [(c.name, c.gap) for c in drawn if c.gap]
    for chart in drawn:
        go.Figure(chart.figure)  # refuses what is no attribute of plotly.js
    names = {c.name for c in drawn}
    assert {
        "pareto-saved",
        "pareto-cache",
        "pareto-weights",
        "ceiling",
        "latency-spread",
        "mmlu",
        "c4-loss",
        "rules-mmlu",
        "heatmap-0",
        "angular-0",
    } <= names
    heat = next(c for c in drawn if c.name == "heatmap-0").figure["data"][0]["z"]
    d = similarity.read(MODEL, "abc").distances()
    ends = [d[i, i + 2] for i in range(4)]
    assert heat[1][:4] == pytest.approx([(v - min(ends)) / (max(ends) - min(ends)) for v in ends], abs=1e-4)
    loss = next(c for c in drawn if c.name == "c4-loss").figure
    healed = next(t for t in loss["data"] if "healed" in t["name"])
    assert (healed["x"], healed["y"]) == ([25.0], [0.4]) and len(loss["layout"]["shapes"]) == 1
    told = curves.figures(drawn)
    assert any(f.startswith("Gromov et al., Figure 4") and name == "heatmap-0" for f, _, name in told)
    assert any("Figure 6, gsm8k" in f and words == "not run: `pipeline score … --tasks gsm8k`" for f, words, _ in told)


def test_ten_thousand_results(workdir: Path) -> None:
    model = "SmolLM2-135M-Instruct"
    results.config(model, 64)
    for n in range(3333):
        first, last = n % 60, n // 60
        variant = f"attn{first}+mlp{last}" if n else "base"
        results.check(model, variant)
        results.bench(model, variant, 1.0 + first / 10, lengths=(50,))
        results.score(model, variant, "arc", 0.3 + last / 200)
    started = time.monotonic()
    report.write(Path("out"), collect.collect())
    print(f"written in {time.monotonic() - started:.1f} s")
    assert len(json.loads(Path("out/manifest.json").read_text())["files"]) > 9999
    assert Path("out/index.html").stat().st_size < 12e6


# ---- other tools ----------------------------------------------------------------------------------------------------


def test_lm_evals_own_tools_read_the_scores(workdir: Path) -> None:
    from lm_eval.utils import get_latest_filename, get_results_filenames, handle_non_serializable, make_table

    results.small_grid(MODEL)
    written = exports.lm_eval(Path("lm"), collect.collect())
    assert len(written) == 16 and len({path.parent for path in written}) == 16
    one = next(path for path in written if path.parent.name == f"{MODEL}__attn24-31.fp32__arc")
    assert get_results_filenames([str(p) for p in one.parent.iterdir()]) == [str(one)]
    assert get_latest_filename([str(one)]) == str(one)
    record = json.loads(one.read_text())
    assert "|acc_norm|↑  |0.595|±  |  0.01|" in make_table(record)
    assert handle_non_serializable(record)


def test_mlflow_holds_parameters_metrics_and_files(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    results.small_grid(MODEL)
    uri = (workdir / "runs").as_uri()
    assert len(exports.mlflow(uri, collect.collect())) == 4
    assert exports.mlflow(uri, collect.collect()) == []  # it is there
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"pipeline/{MODEL}")
    run = next(r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "attn24-31.fp32")
    assert run.info.status == "FINISHED"
    assert {k: run.data.params[k] for k in ("model", "variant", "precision")} == {
        "model": MODEL,
        "variant": "attn24-31",
        "precision": "fp32",
    }
    assert run.data.params["device"] == f"{results.DEVICE}; {results.DEVICE}, 2 threads"
    assert run.data.metrics["arc.lm-eval/acc_norm"] == 0.595 and run.data.metrics["prefill100/saved_percent"] == 8.0
    assert "attn24-31.fp32.bench.json" in {f.path for f in client.list_artifacts(run.info.run_id)}


def test_the_command(workdir: Path) -> None:
    results.small_grid(MODEL)
    command = [sys.executable, "-m", "pipeline.cli", "report"]
    done = subprocess.run(
        [*command, "--lm-eval", "lm", "--json"], capture_output=True, text=True, env=tiny.environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made[0] == "evals/report/index.html" and all(Path(path).is_file() for path in made)
    done = subprocess.run([*command, "--model", "none"], capture_output=True, text=True, env=tiny.environment(), check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_what_the_stages_write_is_what_the_report_reads(workdir: Path) -> None:
    """check, score and bench of a real (tiny) model, unedited."""
    from pipeline import bench, checkpoint, compare, export, score, skip
    from pipeline.types import SkipSet

    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=4))
    base = export.export_base(checkpoint.resolve("models/tiny"))
    graphs = [base, skip.cut(base, SkipSet.parse("block3"))]
    for graph in graphs:
        assert compare.check(graph).passed
    scores = score.score(graphs, ["smoke-loss"], limit=4)
    timed = bench.bench(graphs, sequences=3, lengths=(8,), threads=1)
    found = collect.collect()
    assert found.problems == [] and [a.variant for a in found.artefacts] == ["base", "block3"]
    mine = found.artefacts[1]
    assert mine.check == "passed" and mine.fraction == 0.25
    assert mine.scores[0].value == scores[1].value and mine.scores[0].device != "not told"
    row = next(row for row in timed.rows if row.name.startswith("block3"))
    assert (mine.times[0].p50, mine.times[0].saved) == (row.p50, row.improvement)
    report.write(Path("out"), collect.collect())
