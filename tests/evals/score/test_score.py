"""The stage: benchmarks over artefacts, results, resumption, and what the command says where it cannot."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.evals.score import benchmarks, harness, results
from pipeline.evals.score.evaluation import Evaluation
from pipeline.evals.score.journal import Journal
from pipeline.evals.score.score import ScoringError, score
from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet, UserError
from tests import tiny

NOUNS = "time people way water day year work place world life hand part child eye woman man week case point number"
WORDS = NOUNS.split()


@pytest.fixture
def project(workdir: Path) -> Path:
    """A tiny model and its data folder: ARC, BoolQ, MMLU of two subjects, GSM8K, C4."""
    folder = workdir / "models" / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    tiny.tokenizer(folder)
    base = export.export_base(checkpoint.resolve(str(folder)))
    for name in ("attn2", "block1-2"):
        variants.cut(base, SkipSet.parse(name))
    for path in graphs():
        store.write_json(
            store.result_path("tiny", path, "check"), {"passed": True, "sha256": store.sha256(path)}
        )
    data = workdir / "data"

    def put(name: str, rows: list[dict[str, Any]]) -> None:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def question(k: int) -> dict[str, Any]:
        words = [WORDS[(k + step) % len(WORDS)] for step in (1, 3, 7, 11)]
        choices = {"text": words, "label": list("ABCD")}
        return {
            "id": f"q{k}",
            "question": f"Which {WORDS[k % 20]} comes after {k}?",
            "choices": choices,
            "answerKey": "ABCD"[k % 4],
        }

    put("arc_challenge/test.jsonl", [question(k) for k in range(12)])
    put("arc_challenge/train.jsonl", [question(k) for k in range(50, 90)])
    passages = [
        {"question": f"is {w} good", "passage": f"{w} -- A {w} is good.", "label": k % 2}
        for k, w in enumerate(WORDS)
    ]
    put("boolq/validation.jsonl", passages)
    put(
        "gsm8k/train.jsonl",
        [{"question": f"{k} and 1?", "answer": f"{k + 1}\n#### {k + 1}"} for k in range(16)],
    )
    put(
        "gsm8k/test.jsonl",
        [{"question": f"{k} and 2?", "answer": f"{k + 2}\n#### {k + 2}"} for k in range(3)],
    )
    put("c4/validation.jsonl", [{"text": " ".join(WORDS[k:] + WORDS[:k])} for k in range(6)])
    for subject in ("anatomy", "virology"):
        rows = [
            {"question": f"{subject} {w}?", "choices": WORDS[k : k + 4], "answer": k % 4}
            for k, w in enumerate(WORDS[:12])
        ]
        put(f"mmlu/{subject}/dev.jsonl", rows[:5])
        put(f"mmlu/{subject}/test.jsonl", rows[5:])
    return data


def graphs() -> list[Path]:
    return store.graphs_of("tiny")


def result(path: Path, name: str) -> dict[str, Any]:
    return store.read_json(store.result_path("tiny", path, f"score.{name}"))


def run(project: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, env=tiny.environment(), cwd=project.parent, check=False, **more
    )


def test_scores_stand_in_lm_evals_form(project: Path) -> None:
    found = score(
        graphs()[:1],
        ["arc", "boolq", "mmlu_anatomy", "gsm8k", "c4-loss"],
        data=project,
        limit=7,
        log_samples=True,
    )
    values = {one.benchmark: one for one in found}
    assert values["arc"].n == 7 and values["c4-loss"].n == 6 and values["gsm8k"].n == 3
    for name, task, metric in (("arc", "arc_challenge", "acc_norm"), ("boolq", "boolq", "acc")):
        held = result(graphs()[0], f"{name}.limit7")
        assert held["results"][task][f"{metric},none"] == values[name].value == held["pipeline"]["value"]
        assert held["pipeline"]["sha256"] == store.sha256(graphs()[0]) and held["pipeline"]["stderr"] >= 0
        assert (
            held["versions"][task] and held["lm_eval_version"] and held["n-samples"][task]["effective"] == 7
        )
        assert held["config"]["protocol"] == "lm-eval" and held["config"]["tokenizer"]
    assert (
        held["data"]["boolq"]["validation"]["rows"] == 20
        and held["data"]["boolq"]["validation"]["official_rows"] == 3270
    )
    log = store.result_path("tiny", graphs()[0], "score.arc.limit7").with_suffix(".samples.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{k}" for k in range(7)]
    assert all(
        len(row["loglikelihoods"]) == 4 and row["loglikelihoods"][row["pick"]] == max(row["loglikelihoods"])
        for row in rows
    )
    right = sum("ABCD"[row["pick_norm"]] == row["doc"]["answerKey"] for row in rows)
    assert values["arc"].value == pytest.approx(right / 7)


def test_the_loss_is_per_token_over_log_v(project: Path) -> None:
    import math

    one = score(graphs()[:1], ["c4-loss"], data=project)[0]
    lm = harness.PipelineLM(graphs()[0], journal=False)
    texts = [json.loads(line)["text"] for line in (project / "c4/validation.jsonl").read_text().splitlines()]
    pairs = [
        lm.rolling([harness.Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))])[0]
        for text in texts
    ]
    expected = -sum(value for value, _ in pairs) / sum(count for _, count in pairs) / math.log(tiny.WORDS)
    assert one.value == pytest.approx(expected, rel=1e-5) and one.metric == "loss" and 0.9 < one.value < 2.5


def test_together_gives_the_results_of_separate_runs(project: Path) -> None:
    names = ["arc", "boolq", "mmlu_anatomy", "gsm8k", "c4-loss"]
    apart = score(graphs(), names, data=project, limit=5)
    merged = score(graphs(), names, data=project, limit=5, merged=merge.merge(graphs()), fresh=True)
    assert [(s.artefact, s.benchmark) for s in apart] == [(s.artefact, s.benchmark) for s in merged] and len(
        apart
    ) == 15
    for one, other in zip(apart, merged, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-4) and other.stderr == pytest.approx(
            one.stderr, rel=1e-3
        )
        assert other.work["passes"] == 0 or other.benchmark == "gsm8k"


DATA = Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data")).resolve()
TASKS = ["arc", "hellaswag", "truthfulqa", "mmlu_anatomy", "mmlu_virology", "boolq", "c4-loss", "smoke"]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark rows at {DATA}; set PIPELINE_TEST_DATA")
@pytest.mark.parametrize("task", TASKS)
def test_reuse_changes_nothing(task: str, project: Path) -> None:
    """On real questions of every task: with and without the cached prefixes the same log-likelihoods."""
    kinds = Evaluation(benchmarks.find(task), DATA, "lm-eval", 3).instances()
    for kind, questions in kinds.items():
        models = [
            harness.PipelineLM(graphs()[1], journal=False, reuse=reuse, memory_mb=8)
            for reuse in (True, False)
        ]
        answers = [
            [a[0] if isinstance(a, tuple) else a for a in getattr(model, kind)(questions)] for model in models
        ]
        assert answers[0] == pytest.approx(answers[1], rel=1e-4)
        if task != "c4-loss":
            assert models[0].work.tokens < models[1].work.tokens == models[1].work.asked


def test_generation_needs_a_cache(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.Runner, "has_cache", property(lambda _: False))
    with pytest.raises(UserError, match=r"base\.fp32\.onnx has no cache to generate with"):
        score(graphs()[:1], ["gsm8k"], data=project)
    one = score(graphs()[:1], ["arc"], data=project, limit=2)[0]  # and what needs none is scored whole
    assert one.work["tokens"] == one.work["asked"]


def test_finished_answers_are_not_asked_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score(graphs()[:1], ["arc"], data=project, limit=4)[0]
    more = score(graphs()[:1], ["arc"], data=project)[0]
    assert first.work["passes"] and more.work["passes"] and more.n == 12
    monkeypatch.setattr(harness.opening, "open_runner", lambda *_, **__: pytest.fail("opened again"))
    again = score(graphs()[:1], ["arc"], data=project)[0]
    assert (again.value, again.stderr) == (more.value, more.stderr) and not again.work["passes"]
    with pytest.raises(pytest.fail.Exception, match="opened again"):
        score(graphs()[:1], ["arc"], data=project, fresh=True)


def test_a_torn_line_is_asked_again_and_two_writers_do_not_mix(workdir: Path) -> None:
    path = workdir / "answers.jsonl"
    with Journal(path) as one, Journal(path) as other:
        for k in range(50):
            one.add({f"a{k}": [float(k), True]})
            other.add({f"b{k}": [float(k), False]})
    with path.open("ab") as file:
        file.write(b'["c", [1.0, tr')
    with Journal(path) as again:
        assert len(again.answers) == 100 and again.answers["a7"] == [7.0, True]
        again.add({"d": [2.0, True]})
    with Journal(path) as last:
        assert len(last.answers) == 101 and last.answers["d"] == [2.0, True]
    assert not Journal(path, fresh=True).answers


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(how: signal.Signals, project: Path) -> None:
    """Killed, or Ctrl-C (exit 130): what is finished stays, nothing is left running, and the result is the same."""
    slow = "import time\nfrom pipeline.runtime.runner import Runner\nstep = Runner.step\n"
    slow += "def late(self, *rest):\n    time.sleep(0.15)\n    return step(self, *rest)\nRunner.step = late\n"
    slow += "from pipeline.cli import main\nif __name__ == '__main__':\n    main()\n"
    (project.parent / "slowly.py").write_text(slow)
    line = [
        sys.executable,
        "slowly.py",
        "score",
        str(graphs()[0]),
        "--tasks",
        "arc",
        "--data",
        str(project),
        "--batch-tokens",
        "600",
    ]
    # `make test &` starts everything with SIGINT ignored.
    hears = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        line,
        env=tiny.environment(),
        cwd=project.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=hears,
    ) as running:
        deadline = time.monotonic() + 120
        while (
            not (found := list(Path("evals/results/tiny").glob("*.answers-*.jsonl")))
            or found[0].read_bytes().count(b"\n") < 8
        ):
            assert running.poll() is None and time.monotonic() < deadline, (
                running.stderr.read() if running.stderr else ""
            )
            time.sleep(0.05)
        running.send_signal(how)
        code = running.wait(30)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    kept = [json.loads(text) for text in found[0].read_text().splitlines()]
    assert 8 <= len(kept) < 48
    resumed = score(graphs()[:1], ["arc"], data=project)[0]
    asked = resumed.work["asked"]
    fresh = score(graphs()[:1], ["arc"], data=project, fresh=True)[0]
    assert resumed.value == fresh.value and asked < fresh.work["asked"]


def test_one_benchmark_that_fails_does_not_stop_the_others(project: Path) -> None:
    rows = (project / "arc_challenge/test.jsonl").read_text().splitlines()
    long = json.loads(rows[3])
    long["choices"]["text"][1] = "word " * 5000
    (project / "arc_challenge/test.jsonl").write_text("\n".join([*rows[:3], json.dumps(long), *rows[4:]]))
    with pytest.raises(
        ScoringError, match=r"arc: 1 documents could not be scored: arc_challenge 3: .*window holds 4096"
    ):
        score(graphs()[:1], ["arc", "boolq"], data=project)
    assert result(graphs()[0], "boolq") and not store.result_path("tiny", graphs()[0], "score.arc").exists()


def test_other_shots_are_another_score(project: Path) -> None:
    one = score(graphs()[:1], ["arc", "boolq"], data=project, num_fewshot=2, limit=3)
    held = [result(graphs()[0], f"{name}.2shot.limit3") for name in ("arc", "boolq")]
    assert [h["n-shot"][task] for h, task in zip(held, ("arc_challenge", "boolq"), strict=True)] == [2, 2]
    assert [s.num_fewshot for s in one] == [2, 2] and one[
        1
    ].shots == "validation rows of the benchmark itself"
    assert not results.scores_of(
        graphs()[0]
    )  # what stands beside a latency is the benchmark as it is defined
    with pytest.raises(UserError, match="means nothing for c4-loss"):
        score(graphs()[:1], ["c4-loss"], data=project, num_fewshot=2)


def test_a_bad_row_is_said_before_anything_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (project / "arc_challenge/test.jsonl").read_text().splitlines()
    (project / "arc_challenge/test.jsonl").write_text(
        "\n".join([*rows[:5], rows[5].replace('"answerKey": "B"', '"answerKey": "Z"')])
    )
    monkeypatch.setattr(harness.opening, "open_runner", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match="row 6 of arc_challenge makes no prompt"):
        score(graphs()[:1], ["boolq", "arc"], data=project)


def test_v1_is_said_only_where_it_is_true(project: Path) -> None:
    one = score(graphs()[:1], ["arc"], data=project, protocol="v1")[0]
    assert one.protocol == "v1-like" and "40 rows, the official train split has 1119" in (one.shots or "")
    held = result(graphs()[0], "arc.v1")
    assert "no BOS" in held["config"]["protocol_note"]


def test_the_fullest_score_is_shown_and_only_of_this_very_artefact(project: Path) -> None:
    path = graphs()[1]
    score([path], ["arc", "boolq"], data=project, limit=3)
    score([path], ["arc"], data=project)
    assert {one.benchmark: one.n for one in results.scores_of(path)} == {"arc": 12, "boolq": 3}
    table = results.table(results.scores_of(path), {str(path): {"ms at 50": "1.0"}})
    assert [column.header for column in table.columns] == ["variant", "arc", "boolq", "ms at 50"]
    assert "not a number to publish" in str(table.caption)
    record = store.read_json(store.sidecar_path(path))
    path.write_bytes(path.read_bytes() + b"\0")
    store.write_sidecar(path, record)
    assert not results.scores_of(path)


def test_the_average_is_tyukins(project: Path) -> None:
    one = score(graphs()[:1], ["arc"], data=project)[0]
    from dataclasses import replace

    four = [
        replace(one, benchmark=name, value=value, stderr=0.02)
        for name, value in zip(results.PAPER, (0.2, 0.4, 0.6, 0.8), strict=True)
    ]
    assert results.average(four) == (pytest.approx(0.5), pytest.approx(0.01))
    assert results.average(four[:3]) is None


def test_bad_input_is_one_line_and_nothing_runs(project: Path) -> None:
    with pytest.raises(UserError, match="limit 0"):
        score(graphs(), ["arc"], data=project, limit=0)
    with pytest.raises(UserError, match="is no folder"):
        score(graphs(), ["arc"], data=project / "nowhere")
    unchecked = variants.cut(graphs()[0], SkipSet.parse("mlp1"))
    done = run(project, "score", str(unchecked), "--tasks", "arc", "--data", str(project))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pipeline check" in done.stderr
    done = run(
        project,
        "score",
        str(graphs()[0]),
        str(unchecked),
        "--together",
        "--tasks",
        "arc",
        "--data",
        str(project),
    )
    assert done.returncode == 2 and "pipeline check" in done.stderr
    done = run(project, "score", str(graphs()[0]), "--tasks", "hellaswag", "--data", str(project))
    assert done.returncode == 2 and "hellaswag/validation.jsonl" in done.stderr
    assert not list(Path("evals/results/tiny").glob("*.score.*"))


def test_the_command_prints_a_table_and_json(project: Path) -> None:
    done = run(
        project, "score", "--tasks", "arc,c4-loss", "--data", str(project), "--limit", "3", "--together"
    )
    assert done.returncode == 0, done.stderr
    assert "attn2.fp32" in done.stdout and "c4-loss" in done.stdout and "±" in done.stdout
    done = run(
        project, "score", str(graphs()[0]), "--tasks", "arc", "--limit", "3", "--json", "--data", str(project)
    )
    assert [one["benchmark"] for one in json.loads(done.stdout)] == ["arc"]


def test_bench_shows_scores_beside_its_latencies(project: Path) -> None:
    """One table a variant; `--tasks` runs the scorers in the same go, and bench alone shows the scores that exist."""
    few = ("bench", str(graphs()[1]), "--sequences", "2", "--lengths", "12")
    done = run(project, *few, "--tasks", "arc", "--limit", "4", "--data", str(project))
    assert done.returncode == 0, done.stderr
    assert "arc" in done.stdout and "ms at 12" in done.stdout and "saved % (ceiling) at 12" in done.stdout
    held = json.loads(run(project, *few, "--json").stdout)
    assert {(Path(one["artefact"]).stem, one["benchmark"]) for one in held["scores"]} == {
        ("base.fp32", "arc"),
        ("attn2.fp32", "arc"),
    }
    assert run(project, *few, "--tasks", "../x").returncode == 2  # before any timing


def test_our_own_benchmarks_scan_none_of_lm_evals_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks.TaskManager, "__init__", lambda *_, **__: pytest.fail("scanned"))
    assert len(score(graphs()[:1], ["arc", "mmlu_anatomy"], data=project, limit=1)) == 2


def test_lm_evals_own_command_takes_the_model(project: Path) -> None:
    """On a task of the user's own, in a file: nothing of lm-eval's is looked up outside."""
    yaml = (
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: data/boolq/validation.jsonl}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{passage}} {{question}}?'\n"
        "doc_to_target: label\ndoc_to_choice: ['no', 'yes']\nmetric_list: [{metric: acc}]\n"
    )
    (project.parent / "mine.yaml").write_text(yaml)
    arguments = (
        "--model",
        "pipeline",
        "--model_args",
        f"artefact={graphs()[1]}",
        "--tasks",
        "mine.yaml",
        "--output_path",
        "out",
    )
    done = run(project, "lm-eval", *arguments, "--limit", "8")
    assert done.returncode == 0, done.stderr[-2000:]
    held = json.loads(next(Path("out").rglob("results_*.json")).read_text())
    assert held["n-samples"]["mine"]["effective"] == 8 and held["config"]["sha256"] == {
        "": store.sha256(graphs()[1])
    }
    assert "mine" in done.stdout
    assert run(project, "lm-eval", "--help").stdout.count("lm-eval") > 2


def test_nothing_is_left_running(project: Path) -> None:
    """Enough text for the tokenizer's process beside; it ends with the command."""
    rows = [
        {"question": "is it good", "passage": f"{k} -- " + " ".join(WORDS) * 12, "label": 1}
        for k in range(160)
    ]
    (project / "boolq/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(project, "score", str(graphs()[0]), "--tasks", "boolq", "--data", str(project))
    assert done.returncode == 0, done.stderr
    assert "boolq" in done.stdout and len(list(Path("evals/cache/tiny").glob("*.npz"))) >= 1
    left = [process for process in Path("/proc").glob("[0-9]*") if works_in(process, project.parent)]
    assert len(left) == 1  # this one


def works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:  # it has ended, or is another user's
        return False
