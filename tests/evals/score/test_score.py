"""The stage: benchmarks over artefacts, results, resumption, and the command's messages."""

from __future__ import annotations

import functools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.evals.score import harness, results
from pipeline.evals.score.score import ScoreSettings, ScoringError, score
from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.models.quantisation.names import Quantisation
from pipeline.store.records import Score
from pipeline.types import SkipSet, UserError
from tests import commands, scoring, tiny
from tests.scoring import WORDS, put

SLOWLY = """
import time
from pipeline.runtime.runner import Runner
step = Runner.step
def late(self, *rest):
    time.sleep(0.15)
    return step(self, *rest)
Runner.step = late
from pipeline.cli.commands import main
if __name__ == '__main__':
    main()
"""
OWN_TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: data/boolq/validation.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: '{{passage}} {{question}}?'
doc_to_target: label
doc_to_choice: ['no', 'yes']
metric_list: [{metric: acc}]
"""


def result(artefact: Path, name: str) -> dict[str, Any]:
    return store.read_json(store.result_of(artefact, f"score.{name}"))


def one(artefact: Path, benchmark: str, data: Path, **settings: Any) -> Score:
    """The score of one benchmark."""
    (value,) = score([artefact], [benchmark], ScoreSettings(data=data, **settings))
    return value


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, env=tiny.environment(), cwd=project.parent, check=False
    )


def test_results_are_in_lm_evals_form(project: Path, graphs: list[Path]) -> None:
    names = ["arc", "boolq", "mmlu_anatomy", "gsm8k", "c4-loss"]
    scores = score(graphs[:1], names, ScoreSettings(data=project, limit=7, log_samples=True))
    values = {value.benchmark: value for value in scores}
    assert values["arc"].n == 7 and values["c4-loss"].n == 6 and values["gsm8k"].n == 3
    for name, task, metric in (("arc", "arc_challenge", "acc_norm"), ("boolq", "boolq", "acc")):
        written = result(graphs[0], f"{name}.limit7")
        assert (
            written["results"][task][f"{metric},none"] == values[name].value == written["pipeline"]["value"]
        )
        assert written["pipeline"]["sha256"] == store.sha256(graphs[0]) and written["pipeline"]["stderr"] >= 0
        assert written["versions"][task] and written["lm_eval_version"]
        assert written["n-samples"][task]["effective"] == 7
        assert written["config"]["protocol"] == "lm-eval" and written["config"]["tokenizer"]
    rows = written["data"]["boolq"]["validation"]
    assert rows["rows"] == 20 and rows["official_rows"] == 3270
    log = store.result_of(graphs[0], "score.arc.limit7").with_name(values["arc"].samples or "")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    assert [sample["id"] for sample in samples] == [f"q{k}" for k in range(7)]
    for sample in samples:
        nats = sample["loglikelihoods"]
        assert len(nats) == 4 and nats[sample["pick"]] == max(nats)
    right = sum("ABCD"[sample["pick_norm"]] == sample["doc"]["answerKey"] for sample in samples)
    assert values["arc"].value == pytest.approx(right / 7)
    assert results.read(log.with_name("base.fp32.score.arc.limit7.json")) == values["arc"]


def test_probes_are_scored_one_by_one_and_together(project: Path, graphs: list[Path]) -> None:
    """Value, standard error and chance, by hand from the answers."""
    limit = 3
    *members, probes = score([graphs[0]], ["probes"], ScoreSettings(limit=limit, log_samples=True))
    assert [one.benchmark for one in members] == [
        "probe-arithmetic", "probe-brackets", "probe-copy", "probe-facts"
    ]  # fmt: skip
    for member in members:
        file = store.result_of(graphs[0], f"score.{member.key}").with_suffix(".samples.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        right = [sample["pick"] == "ABCD".index(sample["doc"]["answerKey"]) for sample in samples]
        mean = sum(right) / limit
        deviation = math.sqrt(sum((one - mean) ** 2 for one in right) / (limit - 1))
        assert member.value == pytest.approx(mean) and member.chance == 0.25 and member.n == limit
        assert member.stderr == pytest.approx(deviation / math.sqrt(limit))
    assert probes.value == pytest.approx(sum(member.value for member in members) / 4)
    errors = [member.stderr or 0.0 for member in members]
    assert probes.stderr == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 4)
    assert (probes.chance, probes.n) == (0.25, 4 * limit)
    assert sum(probes.work.values()) > 0 and result(graphs[0], probes.key)["pipeline"]["chance"] == 0.25


def test_quantised_weights_have_answers_of_their_own(project: Path, graphs: list[Path]) -> None:
    """Nothing is taken from the journal of the checkpoint's own weights, nor of another precision."""
    whole = one(graphs[0], "arc", project, limit=2)
    source = checkpoint.open_checkpoint(graphs[0].parent)
    forms = (Quantisation(4, 32), Quantisation(8, 32))
    paths = [export.export(source, "fp32", SkipSet(), form) for form in forms]
    for path in paths:
        tiny.passed(path)
    scores = [one(path, "arc", project, limit=2) for path in paths]
    assert all(score.work["passes"] == whole.work["passes"] > 0 for score in scores)
    assert len({whole.contents, *(score.contents for score in scores)}) == 3
    assert len(list(store.result_of(paths[0], "score").parent.glob("*.answers-*.jsonl"))) == 3


@pytest.mark.slow
def test_together_gives_the_results_of_separate_runs(project: Path, graphs: list[Path]) -> None:
    names = ["arc", "boolq", "mmlu_anatomy", "gsm8k", "c4-loss"]
    settings = ScoreSettings(data=project, limit=5)
    apart = score(graphs, names, settings)
    fresh = ScoreSettings(data=project, limit=5, fresh=True)
    together = score(graphs, names, fresh, merged=merge.merge(graphs))
    assert [(s.artefact, s.benchmark) for s in apart] == [(s.artefact, s.benchmark) for s in together]
    assert len(apart) == 15
    for own, other in zip(apart, together, strict=True):
        assert other.value == pytest.approx(own.value, rel=1e-4)
        assert other.stderr == pytest.approx(own.stderr, rel=1e-3)
        assert 0 < other.work["tokens"] < own.work["tokens"] or other.benchmark == "gsm8k"


def test_generation_needs_a_cache(project: Path, graphs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.Runner, "has_cache", property(lambda _: False))
    with pytest.raises(UserError, match=r"base\.fp32\.onnx has no cache to generate with"):
        one(graphs[0], "gsm8k", project)
    whole = one(graphs[0], "arc", project, limit=2)  # what needs none is scored whole
    assert whole.work["tokens"] == whole.work["asked"]


@pytest.mark.slow
def test_finished_answers_are_not_asked_again(
    project: Path, graphs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = one(graphs[0], "arc", project, limit=4)
    more = one(graphs[0], "arc", project)
    assert first.work["passes"] and more.work["passes"] and more.n == 12
    monkeypatch.setattr(harness.opening, "open_runner", lambda *_, **__: pytest.fail("opened again"))
    again = one(graphs[0], "arc", project)
    assert (again.value, again.stderr) == (more.value, more.stderr) and again.work == more.work
    assert more.work["asked"] > first.work["asked"] > 0  # the work of the first four is part of the whole's
    with pytest.raises(pytest.fail.Exception, match="opened again"):
        one(graphs[0], "arc", project, fresh=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_where_it_was(how: signal.Signals, project: Path, graphs: list[Path]) -> None:
    """Killed, or Ctrl-C (exit 130): what is finished stays, and the result is the same."""
    (project.parent / "slowly.py").write_text(SLOWLY)
    options = ["--tasks", "arc", "--data", str(project), "--batch-tokens", "600"]
    line = [sys.executable, "slowly.py", "score", str(graphs[0]), *options]
    # `make test &` starts everything with SIGINT ignored.
    takes_interrupts = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        line,
        env=tiny.environment(),
        cwd=project.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=takes_interrupts,
    ) as process:
        deadline = time.monotonic() + 120
        while not (journals := list(Path("evals/results/tiny").glob("*.answers-*.jsonl"))) or (
            journals[0].read_bytes().count(b"\n") < 8
        ):
            message = process.stderr.read() if process.poll() is not None and process.stderr else ""
            assert process.poll() is None and time.monotonic() < deadline, message
            time.sleep(0.05)
        process.send_signal(how)
        code = process.wait(30)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    kept = [json.loads(text) for text in journals[0].read_text().splitlines()]
    assert 8 <= len(kept) < 48
    resumed = one(graphs[0], "arc", project)
    fresh = one(graphs[0], "arc", project, fresh=True)
    assert resumed.value == fresh.value and resumed.work["asked"] == fresh.work["asked"]
    assert resumed.work["tokens"] >= fresh.work["tokens"] > 0  # a prefix that both runs needed counts twice
    assert resumed.work["seconds"] >= 1


@pytest.mark.slow
def test_a_graph_that_overflows_has_no_score(workdir: Path) -> None:
    """Fine in fp32, NaN in fp16: gsm8k was 0.00 ± 0.00. One line names documents and cause; no result."""
    folder = workdir / "models" / "big"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    tiny.tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 3e5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    base = export.export_base(checkpoint.resolve(str(folder)))
    half = export.export_base(checkpoint.open_checkpoint(base.parent), "fp16")
    data = scoring.write_rows(workdir / "data")
    names = ["gsm8k", "arc", "c4-loss"]
    settings = ScoreSettings(data=data, limit=2, unchecked=True)
    with pytest.raises(ScoringError) as caught:
        score([half], names, settings)
    message = str(caught.value)
    assert "\n" not in message and message.count("are not finite (NaN or infinity)") == 3
    for name in ("gsm8k: 2 documents", "arc: 2 documents", "c4-loss: 2 documents", "float16", "fp32 graph"):
        assert name in message
    assert not list(store.result_of(half, "score.x").parent.glob("*.score.*"))
    assert [one.benchmark for one in score([base], names, settings)] == names


@pytest.mark.slow
def test_one_benchmark_that_fails_does_not_stop_the_others(project: Path, graphs: list[Path]) -> None:
    rows = (project / "arc_challenge/test.jsonl").read_text().splitlines()
    long = json.loads(rows[3])
    long["choices"]["text"][1] = "word " * 5000
    (project / "arc_challenge/test.jsonl").write_text("\n".join([*rows[:3], json.dumps(long), *rows[4:]]))
    message = r"arc: 1 documents could not be scored: arc_challenge 3: .*window holds 4096"
    with pytest.raises(ScoringError, match=message):
        score(graphs[:1], ["arc", "boolq"], ScoreSettings(data=project))
    assert result(graphs[0], "boolq") and not store.result_of(graphs[0], "score.arc").exists()


def test_other_shots_are_another_score(project: Path, graphs: list[Path]) -> None:
    scores = score(graphs[:1], ["arc", "boolq"], ScoreSettings(data=project, num_fewshot=2, limit=3))
    written = [result(graphs[0], f"{name}.2shot.limit3") for name in ("arc", "boolq")]
    assert [w["n-shot"][task] for w, task in zip(written, ("arc_challenge", "boolq"), strict=True)] == [2, 2]
    assert [value.num_fewshot for value in scores] == [2, 2]
    assert scores[1].shots == "validation rows of the benchmark itself"
    assert not results.scores_of(graphs[0])  # beside a latency is the benchmark as it is defined
    with pytest.raises(UserError, match="means nothing for c4-loss"):
        one(graphs[0], "c4-loss", project, num_fewshot=2)


def test_a_bad_row_is_reported_before_anything_runs(
    project: Path, graphs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (project / "arc_challenge/test.jsonl").read_text().splitlines()
    rows[5] = rows[5].replace('"answerKey": "B"', '"answerKey": "Z"')
    (project / "arc_challenge/test.jsonl").write_text("\n".join(rows[:6]))
    monkeypatch.setattr(harness.opening, "open_runner", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match=r"test\.jsonl, line 6: 'answerKey' is 'Z'"):
        score(graphs[:1], ["boolq", "arc"], ScoreSettings(data=project))


@pytest.mark.slow
def test_v1_is_claimed_only_where_it_is_true(project: Path, graphs: list[Path]) -> None:
    value = one(graphs[0], "arc", project, protocol="v1")
    assert value.protocol == "v1-like" and "40 rows, the official train split has 1119" in (value.shots or "")
    assert "no BOS" in result(graphs[0], "arc.v1")["config"]["protocol_note"]


def test_a_merged_graph_has_no_score_of_its_own(project: Path, graphs: list[Path]) -> None:
    with pytest.raises(UserError, match="holds several variants"):
        one(merge.merge(graphs), "arc", project)


def test_everything_is_in_the_artefacts_project(
    project: Path, graphs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another directory, with a benchmark of that project, in a folder with any letters."""
    root = project.parent.rename(project.parent.with_name("mon projet é"))
    put(root / "evals" / "benchmarks" / "rows.jsonl", *({"text": word * 9} for word in WORDS[:3]))
    (root / "evals" / "benchmarks" / "own-loss.yaml").write_text(
        "title: own\nsource: here\nharness: null\nnum_fewshot: 0\nmetric: loss\ncolumns: [text]\n"
        "data: {validation: {file: ./rows, rows: 3, from: here}}\n"
    )
    monkeypatch.chdir("/usr")
    graph = root / graphs[1]
    (value,) = score([graph], ["own-loss"])
    assert value.artefact == str(graph) and value.complete and value.n == 3
    assert results.scores_of(graph) == [value]
    written = json.loads((root / "evals/results/tiny/attn2.fp32.score.own-loss.json").read_text())
    assert written["pipeline"]["artefact"] == "../../../graphs/tiny/attn2.fp32.onnx"
    assert written["data"]["own-loss"]["validation"]["file"] == "../../benchmarks/rows.jsonl"


@pytest.mark.slow
def test_bad_input_is_one_line_and_nothing_runs(project: Path, graphs: list[Path]) -> None:
    with pytest.raises(UserError, match="limit 0"):
        score(graphs, ["arc"], ScoreSettings(data=project, limit=0))
    unchecked = variants.cut(graphs[0], SkipSet.parse("mlp1"))
    rest = ("--tasks", "arc", "--data", str(project))
    done = commands.ended(project.parent, "score", str(unchecked), *rest)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pipeline check" in done.stderr
    done = commands.ended(project.parent, "score", str(graphs[0]), str(unchecked), "--together", *rest)
    assert done.returncode == 2 and "pipeline check" in done.stderr
    done = commands.ended(
        project.parent, "score", str(graphs[0]), "--tasks", "hellaswag", "--data", str(project)
    )
    assert done.returncode == 2 and "hellaswag/validation.jsonl" in done.stderr
    assert not list(Path("evals/results/tiny").glob("*.score.*"))


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(project: Path, graphs: list[Path]) -> None:
    data = ("--data", str(project), "--limit", "3")
    done = commands.ended(project.parent, "score", "--tasks", "arc,c4-loss", "--together", *data)
    assert done.returncode == 0, done.stderr
    assert "attn2.fp32" in done.stdout and "c4-loss" in done.stdout and "±" in done.stdout
    done = commands.ended(project.parent, "score", str(graphs[0]), "--tasks", "arc", "--json", *data)
    (value,) = json.loads(done.stdout)
    assert (value["benchmark"], value["artefact"]) == ("arc", str(graphs[0]))


@pytest.mark.slow
def test_bench_shows_scores_beside_its_latencies(project: Path, graphs: list[Path]) -> None:
    """`--tasks` runs the benchmarks in the same go; bench alone shows the scores that exist."""
    few = ("bench", str(graphs[1]), "--sequences", "2", "--lengths", "12")
    done = commands.ended(project.parent, *few, "--tasks", "arc", "--limit", "4", "--data", str(project))
    assert done.returncode == 0, done.stderr
    latencies, scores = done.stdout.split("scores in %")
    assert "attn2.fp32" in latencies and "arc" not in latencies
    assert all(word in scores for word in ("attn2.fp32", "arc", "±", "saved %", "(ceiling)", "at 12"))
    scores = json.loads(commands.ended(project.parent, *few, "--json").stdout)["scores"]
    assert {(Path(value["artefact"]).stem, value["benchmark"]) for value in scores} == {
        ("base.fp32", "arc"),
        ("attn2.fp32", "arc"),
    }
    assert commands.ended(project.parent, *few, "--tasks", "../x").returncode == 2  # before any timing


def test_known_benchmarks_scan_none_of_lm_evals_files(
    project: Path, graphs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks.TaskManager, "__init__", lambda *_, **__: pytest.fail("scanned"))
    settings = ScoreSettings(data=project, limit=1)
    assert len(score(graphs[:1], ["arc", "mmlu_anatomy"], settings)) == 2


@pytest.mark.slow
def test_lm_evals_own_command_takes_the_model(project: Path, graphs: list[Path]) -> None:
    """On a task of the user's own, in a file."""
    (project.parent / "own.yaml").write_text(OWN_TASK)
    model = ("--model", "pipeline", "--model_args", f"artefact={graphs[1]}")
    done = run(project, "lm-eval", *model, "--tasks", "own.yaml", "--output_path", "out", "--limit", "8")
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(next(Path("out").rglob("results_*.json")).read_text())
    assert written["n-samples"]["own"]["effective"] == 8 and "own" in done.stdout
    assert written["config"]["sha256"] == {"": store.sha256(graphs[1])}
    assert run(project, "lm-eval", "--help").stdout.count("lm-eval") > 2


@pytest.mark.slow
def test_nothing_keeps_running(project: Path, graphs: list[Path]) -> None:
    """Enough text for the tokenizer's process beside; it ends with the command."""
    row = {"question": "is it good", "label": 1}
    passages = [f"{k} -- " + " ".join(WORDS) * 12 for k in range(160)]
    put(project / "boolq" / "validation.jsonl", *({**row, "passage": passage} for passage in passages))
    done = run(project, "score", str(graphs[0]), "--tasks", "boolq", "--data", str(project))
    assert done.returncode == 0, done.stderr
    assert "boolq" in done.stdout and len(list(Path("evals/cache/tiny").glob("*.npz"))) >= 1
    processes = [process for process in Path("/proc").glob("[0-9]*") if works_in(process, project.parent)]
    assert len(processes) == 1  # this one


def works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:  # it has ended, or is another user's
        return False
