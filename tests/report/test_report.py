"""The files that `pipeline report` writes: their links, their names, and that nothing in them is run."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.report import collect, report
from pipeline.types import UserError
from tests import results, tiny

MODEL = "Llama-2-7b-hf"
HOSTILE = "<script>alert(1)</script>|$x_1$ & \\input{/etc/passwd} `=cmd`"


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_a_hostile_name_is_text_everywhere(workdir: Path) -> None:
    score = results.score("evil", "base", "arc", 0.5)
    for path in (score, results.bench("evil", "base", 0.0), results.check("evil", "base")):
        record = json.loads(path.read_text())
        record |= {"model": HOSTILE} if "model" in record else {}
        if "pipeline" in record:
            record["pipeline"] |= {"title": HOSTILE, "shots": HOSTILE}
        results.put(path, record)
    error = "</script><img src=x onerror=alert(1)>"
    results.ledger([results.job("score", HOSTILE, "failed", error=error)])
    results.put(Path("evals/results/evil/=cmd|' <img src=x>.json"), {"what": "else"})
    report.write(Path("out"), collect.collect())
    page = Path("out/index.html").read_text()
    assert "<script>alert" not in page and "<img" not in without_scripts(page)
    inert = page.count('<script type="application/json"')
    inert += page.count('<script type="text/plain" id="plotly">')
    assert page.count("<script") == page.count("</script>") == inert + 1  # ours
    assert "<script" not in Path("out/report.md").read_text()
    assert "\\input{/etc" not in "".join(p.read_text() for p in Path("out/tables").glob("*.tex"))
    with Path("out/tables/results.csv").open(newline="") as file:
        assert not any(cell[:1] in ("=", "@") for row in csv.reader(file) for cell in row)
    assert all(re.fullmatch(r"[\w.+~@=/-]+", str(p.relative_to("out"))) for p in Path("out").rglob("*"))


def test_every_link_resolves_to_the_bytes_it_came_from(workdir: Path) -> None:
    results.small_grid(MODEL)
    written = report.write(Path("out"), collect.collect())
    assert written[0] == Path("out/index.html") and all(path.is_file() for path in written)
    page = Path("out/index.html").read_text()
    outside = without_scripts(page)
    assert "http://" not in outside and "https://" not in outside  # nothing is fetched
    links = {link for link in re.findall(r'(?:href|src)="([^"#][^"]*)"', outside) if link[:5] != "data:"}
    links |= set(re.findall(r"\]\(([^)]+)\)", Path("out/report.md").read_text()))
    data = re.findall(r'<script type="application/json" id="([^"]*)">(.*?)</script>', page, re.DOTALL)
    parts = {name: json.loads(part) for name, part in data}
    files = parts["all-files"]
    places = {place for row in parts["all-rows"] for column in row[4:] for _, place, *_ in column}
    assert places - {None} <= set(range(len(files))) and len(places) > 20
    links |= set(files)
    for path in Path("out/charts").glob("*.json"):
        traces = json.loads(path.read_text())["data"]
        links |= {link for trace in traces for link in trace.get("customdata", []) if link}
    assert links and all((Path("out") / link).is_file() for link in links)
    manifest = json.loads(Path("out/manifest.json").read_text())["files"]
    assert all(store.sha256(Path("out") / name) == digest for name, digest in manifest.items())


def test_the_same_results_give_the_same_report_and_what_is_gone_goes(workdir: Path) -> None:
    results.small_grid(MODEL)
    report.write(Path("out"), collect.collect())
    Path("out/notes.txt").write_text("kept")
    first = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    report.write(Path("out"), collect.collect())
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == first
    gone = Path("evals/results") / MODEL / "attn24-31.fp32.score.arc.json"
    gone.unlink()
    report.write(Path("out"), collect.collect())
    assert not (Path("out/sources") / gone).exists() and Path("out/notes.txt").exists()


def test_a_foreign_manifest_removes_nothing(workdir: Path) -> None:
    results.small_grid(MODEL)
    outside = workdir / "precious.txt"
    outside.write_text("kept")
    Path("out").mkdir()
    Path("out/inside.txt").write_text("kept")
    for files in ({"../precious.txt": "0" * 64, str(outside): "0" * 64}, ["inside.txt"], {"inside.txt": 1}):
        results.put(Path("out/manifest.json"), {"what": "report", "files": files})
        report.write(Path("out"), collect.collect())
        assert outside.exists() and Path("out/inside.txt").exists()


def test_wrong_targets_are_refused(workdir: Path) -> None:
    results.small_grid(MODEL)
    Path("file").touch()
    with pytest.raises(UserError, match="is a file"):
        report.write(Path("file"), collect.collect())
    collection = collect.collect()
    results.check(MODEL, "base", passed=False)
    with pytest.raises(UserError, match=r"base\.fp32\.check\.json changed while it was read"):
        report.write(Path("out"), collection)


def test_the_command(workdir: Path) -> None:
    results.small_grid(MODEL)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", "report", *options]
        return subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), check=False)

    done = run("--lm-eval", "lm", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)
    assert files[0] == "evals/report/index.html" and all(Path(path).is_file() for path in files)
    refused = run("--model", "none")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_ten_thousand_results(workdir: Path) -> None:
    results.many("SmolLM2-135M-Instruct", 3333)
    report.write(Path("out"), collect.collect())
    assert len(json.loads(Path("out/manifest.json").read_text())["files"]) > 9999
    assert Path("out/index.html").stat().st_size < 12e6
