"""What `pipeline report` writes: Markdown, LaTeX, CSV, the page's links and figures, and the forms that other tools read."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.calib import similarity
from pipeline.report import charts, collect, curves, exports, report, texts
from pipeline.types import UserError
from tests import results, tiny

MODEL = "Llama-2-7b-hf"


# ---- texts ----------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>|$x_1$ & \\input{/etc/passwd} `=cmd`"


def test_a_hostile_name_is_text_everywhere(workdir: Path) -> None:
    folder = Path("evals/results/evil")
    for path in (
        results.score("evil", "base", "arc", 0.5),
        results.bench("evil", "base", 0.0),
        results.check("evil", "base"),
    ):
        record = json.loads(path.read_text())
        record |= {"model": HOSTILE} if "model" in record else {}
        if "pipeline" in record:
            record["pipeline"] |= {"title": HOSTILE, "shots": HOSTILE}
        results.put(path, record)
    results.ledger(
        [
            {
                "id": "1",
                "stage": "score",
                "model": HOSTILE,
                "state": "failed",
                "error": "</script><img src=x onerror=alert(1)>",
            }
        ]
    )
    results.put(folder / "=cmd|' <img src=x>.json", {"what": "else"})
    report.write(Path("out"), collect.collect())
    page = Path("out/index.html").read_text()
    assert "<script>alert" not in page and "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    inert = page.count('<script type="application/json"') + page.count(
        '<script type="text/plain" id="plotly">'
    )
    assert page.count("<script") == page.count("</script>") == inert + 1  # ours
    assert "<script" not in (Path("out") / "report.md").read_text()
    assert "\\input{/etc" not in "".join(p.read_text() for p in Path("out/tables").glob("*.tex"))
    with Path("out/tables/results.csv").open(newline="") as file:
        assert not any(cell[:1] in ("=", "@") for row in csv.reader(file) for cell in row)
    assert all(re.fullmatch(r"[\w.+~@=/-]+", str(p.relative_to("out"))) for p in Path("out").rglob("*"))


def test_escapes() -> None:
    assert (
        texts.tex("a_b & 50 % ±1 \\x ~{}") == r"a\_b \& 50 \% $\pm$1 \textbackslash{}x \textasciitilde{}\{\}"
    )
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
    return set(
        re.findall(r'(?:href|src)="([^"#][^"]*)"', re.sub(r"<script.*?</script>", "", page, flags=re.S))
    )


def test_every_link_resolves_to_the_bytes_it_came_from(workdir: Path) -> None:
    results.small_grid(MODEL)
    written = report.write(Path("out"), collect.collect())
    assert written[0] == Path("out/index.html") and all(path.is_file() for path in written)
    found = {link for link in links(Path("out/index.html").read_text()) if not link.startswith("data:")}
    found |= set(re.findall(r"\]\(([^)]+)\)", (Path("out") / "report.md").read_text()))
    parts = dict(
        re.findall(
            r'<script type="application/json" id="([^"]*)">(.*?)</script>',
            Path("out/index.html").read_text(),
            re.S,
        )
    )
    files = json.loads(parts["all-files"])
    places = {place for row in json.loads(parts["all-rows"]) for column in row[4:] for _, place, *_ in column}
    assert places - {None} <= set(range(len(files))) and len(places) > 20
    drawn = [json.loads(path.read_text()) for path in Path("out/charts").glob("*.json")]
    found |= set(files) | {
        link for chart in drawn for trace in chart["data"] for link in trace.get("customdata", []) if link
    }
    assert found and all((Path("out") / link).is_file() for link in found)
    manifest = json.loads(Path("out/manifest.json").read_text())["files"]
    assert all(store.sha256(Path("out") / name) == digest for name, digest in manifest.items())
    page = Path("out/index.html").read_text()
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

    results.healed_grid(MODEL)
    results.statistics(MODEL, 5)
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
    d = similarity.read(Path("calib") / MODEL, "abc").distances()
    ends = [d[i, i + 2] for i in range(4)]
    assert heat[1][:4] == pytest.approx([(v - min(ends)) / (max(ends) - min(ends)) for v in ends], abs=1e-4)
    loss = next(c for c in drawn if c.name == "c4-loss").figure
    healed = next(t for t in loss["data"] if "healed" in t["name"])
    assert (healed["x"], healed["y"]) == ([25.0], [0.4]) and len(loss["layout"]["shapes"]) == 1
    told = curves.figures(drawn)
    assert any(f.startswith("Gromov et al., Figure 4") and name == "heatmap-0" for f, _, name in told)
    assert any(
        "Figure 6, gsm8k" in f and words == "not run: `pipeline score … --tasks gsm8k`"
        for f, words, _ in told
    )


def test_ten_thousand_results(workdir: Path) -> None:
    results.many("SmolLM2-135M-Instruct", 3333)
    report.write(Path("out"), collect.collect())
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
    run = next(
        r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "attn24-31.fp32"
    )
    assert run.info.status == "FINISHED"
    assert {k: run.data.params[k] for k in ("model", "variant", "precision")} == {
        "model": MODEL,
        "variant": "attn24-31",
        "precision": "fp32",
    }
    assert run.data.params["device"] == f"{results.DEVICE}; {results.DEVICE}, 2 threads"
    assert (
        run.data.metrics["arc.lm-eval/acc_norm"] == 0.595
        and run.data.metrics["prefill100/saved_percent"] == 8.0
    )
    assert "attn24-31.fp32.bench.json" in {f.path for f in client.list_artifacts(run.info.run_id)}


def test_the_command(workdir: Path) -> None:
    results.small_grid(MODEL)
    command = [sys.executable, "-m", "pipeline.cli", "report"]
    done = subprocess.run(
        [*command, "--lm-eval", "lm", "--json"],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made[0] == "evals/report/index.html" and all(Path(path).is_file() for path in made)
    done = subprocess.run(
        [*command, "--model", "none"], capture_output=True, text=True, env=tiny.environment(), check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_what_the_stages_write_is_what_the_report_reads(workdir: Path) -> None:
    """check, score and bench of a real (tiny) model, unedited."""
    from pipeline.evals.bench import bench
    from pipeline.evals.check import check
    from pipeline.evals.score import score
    from pipeline.graphs import export, variants
    from pipeline.models import checkpoint
    from pipeline.types import SkipSet

    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=4))
    base = export.export_base(checkpoint.resolve("models/tiny"))
    graphs = [base, variants.cut(base, SkipSet.parse("block3"))]
    for graph in graphs:
        assert check.check(graph).passed
    scores = score.score(graphs, ["smoke-loss"], score.ScoreSettings(limit=4))
    timed = bench.bench(graphs, sequences=3, lengths=(8,), threads=1)
    found = collect.collect()
    assert found.problems == [] and [a.variant for a in found.artefacts] == ["base", "block3"]
    mine = found.artefacts[1]
    assert mine.check == "passed" and mine.fraction == 0.25
    assert mine.scores[0].value == scores[1].value and mine.scores[0].device != "not told"
    row = next(row for row in timed.rows if row.name.startswith("block3"))
    assert (mine.times[0].p50, mine.times[0].saved) == (row.p50, row.improvement)
    report.write(Path("out"), collect.collect())
