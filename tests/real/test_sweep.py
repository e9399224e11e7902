"""Whole sweeps of a tiny model, by the command: killed and resumed; on a Ray cluster that loses a node."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.sweep.jobs import GridCell, Job
from pipeline.sweep.local import Outcome
from tests import needs, tiny

pytestmark = pytest.mark.slow
RECIPE = """
models = ["models/tiny"]
kinds = ["attn"]
fractions = [0.3]
selectors = ["last"]
stages = ["export", "check", "score"]
tasks = ["smoke"]
[score]
limit = 2
"""
HEALING = """
models = ["models/tiny"]
kinds = ["attn"]
fractions = [0.3]
selectors = ["last"]
precisions = ["fp16"]
stages = ["export", "check", "build", "heal"]
[heal]
steps = 2
batch = 2
length = 32
rank = 4
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    return tiny.tokenizer(folder)


def project(root: Path, source: Path) -> Path:
    """A project with the recipe, and the model under the path that its sidecars name."""
    root.mkdir(exist_ok=True)
    (root / "grid.toml").write_text(RECIPE)
    (root / "models").mkdir()
    (root / "models" / "tiny").symlink_to(source)
    return root


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _no_sweep_keeps_running(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that fails leaves no sweep behind."""
    monkeypatch.setenv(
        "RAY_worker_niceness", "0"
    )  # nice, as Ray makes them, its jobs starve beside other tests
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
    STARTED.clear()


def start(root: Path, *more: str) -> subprocess.Popen[bytes]:
    with (root / "sweep.log").open("ab") as log:
        line = [sys.executable, "-m", "pipeline.cli", "sweep", "grid.toml", *more]
        STARTED.append(subprocess.Popen(line, cwd=root, env=tiny.environment(), stdout=log, stderr=log))
    return STARTED[-1]


def whole(root: Path, *more: str) -> None:
    """Runs a sweep to its end."""
    assert start(root, *more).wait(500) == 0, (root / "sweep.log").read_text()


def dry_run(root: Path) -> str:
    line = [sys.executable, "-m", "pipeline.cli", "sweep", "grid.toml", "--dry-run"]
    return subprocess.run(
        line, cwd=root, env=tiny.environment(), capture_output=True, text=True, check=True
    ).stdout


def ledger(root: Path) -> dict[str, dict[str, Any]]:
    path = root / store.Project().sweep("grid") / "ledger.json"
    return {job["id"]: job for job in store.read_json(path)["jobs"]} if path.is_file() else {}


def results(root: Path) -> dict[str, Any]:
    """What every result says, without times."""
    scores = sorted((root / "evals" / "results" / "tiny").glob("*.score.*.json"))
    checks = sorted((root / "evals" / "results" / "tiny").glob("*.check.json"))
    records = {path.name: store.read_json(path) for path in (*scores, *checks)}
    values: dict[str, Any] = {
        path.name: [records[path.name]["pipeline"][k] for k in ("sha256", "value", "stderr", "n")]
        for path in scores
    }
    return values | {path.name: [records[path.name][k] for k in ("sha256", "passed")] for path in checks}


def until(true: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None and time.monotonic() < end, "it ended, or took too long"
        time.sleep(0.1)


def working_in(root: Path) -> list[int]:
    """Processes whose current folder is the project."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() == root and (entry / "cmdline").read_bytes():
                processes.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return processes


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a sweep that nothing disturbs."""
    root = project(tmp_path_factory.mktemp("calm"), source)
    whole(root, "--jobs", "2")
    values = results(root)
    assert len(values) == 4 and all(value[1] for name, value in values.items() if "check" in name)
    return values


def test_a_sweep_that_is_killed_resumes_where_it_was(
    source: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    root = project(tmp_path / "killed", source)
    process = start(root, "--jobs", "2")
    until(
        lambda: (
            sum(
                job["stage"] in ("check", "score") and job["state"] == "done" for job in ledger(root).values()
            )
            >= 2
        ),
        process,
    )
    assert working_in(root)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {
        id: job for id, job in ledger(root).items() if job["state"] == "done" and job["stage"] != "select"
    }
    end = time.monotonic() + 10
    while working_in(root) and time.monotonic() < end:
        time.sleep(0.1)
    assert not working_in(root), "a job outlived its sweep"
    assert any(job["state"] == "running" for job in ledger(root).values()) and len(before) < 6
    whole(root, "--jobs", "2")
    after = ledger(root)
    assert {job["state"] for job in after.values()} == {"done"} and len(after) == 7
    assert all(after[id]["seconds"] == job["seconds"] for id, job in before.items()), (
        "what was done ran again"
    )
    assert results(root) == reference
    assert "jobs: 6, done 6" in dry_run(root)


@needs.rtx
def test_engines_and_healing_in_a_sweep(source: Path, tmp_path: Path) -> None:
    """Every job runs once; other settings of healing repeat it and the jobs that need it, and no others."""
    root = project(tmp_path / "healed", source)
    recipe = root / "grid.toml"
    recipe.write_text(HEALING)
    whole(root, "--jobs", "2")
    first = ledger(root)
    assert {job["state"] for job in first.values()} == {"done"} and len(
        first
    ) == 11  # the choice is one of them
    plans = root / "engines" / "tiny"
    assert {path.name for path in plans.glob("*/*.plan")} == {"tensorrt-rtx-sm80-fp16.plan"}
    assert {path.parent.name for path in plans.glob("*/*.plan")} == {"base", "attn2", "attn2~heal"}
    recipe.write_text(HEALING.replace("steps = 2", "steps = 3"))
    healed = "graphs/tiny/attn2~heal.fp16.onnx"
    assert not_done(root) == [
        "heal graphs/tiny/attn2.fp16.onnx",
        "export tiny",
        f"check {healed}",
        f"build-engine {healed}",
    ]
    whole(root, "--jobs", "2")
    again = ledger(root)
    changed = {id for id in first if again[id]["seconds"] != first[id]["seconds"]}
    assert changed == {
        f"tiny.attn2{end}"
        for end in (".fp16.heal", "~heal.fp16.export", "~heal.fp16.check", "~heal.fp16.build")
    }
    assert not_done(root) == []


def not_done(root: Path) -> list[str]:
    """What `--dry-run` would do, without options."""
    jobs = [shlex.split(line) for line in dry_run(root).split("\n\n")[0].splitlines()]
    return [f"{words[1]} {words[2]}" for words in jobs if words[0] == "pipeline"]


# ---- Ray ----------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and a worker node on this machine, each with one `pipeline_device`."""
    from ray.cluster_utils import Cluster

    for name, value in tiny.environment().items():  # the nodes' workers import this checkout
        monkeypatch.setenv(name, value)
    node = {"num_cpus": 2, "resources": {"pipeline_device": 1}, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        yield nodes
    finally:
        nodes.shutdown()


@needs.ray
def test_a_cluster_that_loses_a_node_gives_the_same_results(
    cluster: Any, source: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    root = project(tmp_path / "ray", source)
    process = start(root, "--ray", cluster.address, "--jobs", "1")
    logs = root / store.Project().sweep("grid") / "logs"

    def both_work() -> bool:
        jobs = ledger(root)
        done = sum(job["state"] == "done" and job["stage"] == "check" for job in jobs.values())
        return (
            done >= 1
            and sum(jobs[log.stem]["state"] != "done" for log in logs.glob("*.log") if log.stem in jobs) >= 2
        )

    until(both_work, process)
    (worker,) = cluster.worker_nodes
    worker.kill_raylet()
    assert process.wait(500) == 0, (root / "sweep.log").read_text()
    jobs = ledger(root)
    assert {job["state"] for job in jobs.values()} == {"done"} and len(jobs) == 7
    assert results(root) == reference
    assert not working_in(root)


def through(pool: Any, jobs: list[Job]) -> dict[str, Outcome]:
    """Runs jobs on a pool of Ray → how each ended."""
    outcomes = {}
    try:
        for job in jobs:
            pool.start(job)
        while pool.running or pool.refused:
            outcomes |= {one.id: one for one in pool.ended(5)}
    finally:
        pool.close()
    return outcomes


@needs.ray
def test_under_ray_a_measurement_of_time_runs_alone_on_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.sweep.ray_pool import RayPool

    monkeypatch.chdir(tmp_path)
    jobs = [
        Job(f"j{k}", "check", "m", GridCell(), ("pipeline", "list"), exclusive=k % 3 == 2) for k in range(8)
    ]
    outcomes = through(RayPool("local", 2, Path("logs")), jobs)
    assert len(outcomes) == 8 and all(one.error is None for one in outcomes.values())
    spans = {id: (one.began, one.began + one.seconds) for id, one in outcomes.items()}

    def beside(id: str) -> list[str]:
        return [
            other for other, (a, b) in spans.items() if other != id and a < spans[id][1] and spans[id][0] < b
        ]

    assert not beside("j2") and not beside("j5"), spans
    assert any(beside(id) for id in spans), "two slots, and no two jobs ever ran side by side"


@needs.ray
def test_what_no_node_of_a_cluster_can_run_is_reported(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.sweep.ray_pool import RayPool

    monkeypatch.chdir(tmp_path)
    jobs = [Job("gpu", "build", "m", GridCell(), ("pipeline", "list"), gpu=True)]
    jobs += [Job("huge", "check", "m", GridCell(), ("pipeline", "list"), memory=10**15)]
    jobs += [Job("bad", "show", "m", GridCell(), ("pipeline", "show", "nothing.onnx"))]
    outcomes = through(RayPool(cluster.address, 2, Path("logs")), jobs)
    assert (
        "no node of the cluster has one" in outcomes["gpu"].error and "largest node" in outcomes["huge"].error
    )
    assert outcomes["bad"].error.startswith("nothing.onnx does not exist")


@needs.ray
def test_ray_local_runs_a_few_jobs_and_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    root = project(tmp_path / "local", source)
    process = start(root, "--ray", "local", "--limit", "2")
    assert process.wait(240) == 0, (root / "sweep.log").read_text()
    jobs = ledger(root).values()
    assert sum(job["state"] == "done" and job["stage"] != "select" for job in jobs) == 2
    assert not working_in(root)
    nowhere = start(root, "--ray", "127.0.0.1:1", "--limit", "1")
    assert nowhere.wait(240) == 2 and "no Ray cluster at 127.0.0.1:1" in (root / "sweep.log").read_text()
