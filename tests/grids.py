"""For the tests of `pipeline sweep`: a small grid, its plan, and a pool that runs nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import store
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.store import records
from pipeline.store.records import LedgerEntry, LedgerRecord
from pipeline.sweep import plan, recipe, sweep
from pipeline.sweep.jobs import Job, SweepPlan
from pipeline.sweep.ledger import Ledger
from pipeline.sweep.local import JobPool, Outcome
from pipeline.sweep.progress import ProgressView
from pipeline.types import UserError
from tests import tiny

GRID = """
models = ["{model}"]
kinds = ["attn", "mlp"]
fractions = [0.3, 0.6]
selectors = ["last", "last-but-final"]
stages = ["export", "check", "score", "bench"]
tasks = ["smoke"]
[score]
limit = 5
[bench]
sequences = 2
lengths = [8]
"""


def put(text: str, name: str = "grid") -> Path:
    """Writes a recipe."""
    path = Path(f"{name}.toml")
    path.write_text(text)
    return path


def refused(change: str, words: str) -> None:
    """A recipe that names no more than it must, but for a change, is refused in one line with these words."""
    defaults = {"kinds": '["attn"]', "fractions": "[0.1]", "selectors": '["last"]', "stages": '["export"]'}
    top = change.split("\n[")[0]
    tables = change[len(top) :]
    lines = [f"{key} = {value}" for key, value in defaults.items() if f"\n{key}" not in f"\n{top}"]
    path = put("\n".join([top, *lines]) + tables)
    with pytest.raises(UserError) as error:
        recipe.read(path)
    assert words in str(error.value) and "\n" not in str(error.value).strip()


def known(text: str = GRID, layers: int = 3, name: str = "grid", model: str = "org/tiny") -> Path:
    """The recipe with a model of so many layers that is not there yet."""
    table = f'\n[[models]]\nname = "{model}"\nlayers = {layers}\n'
    return put(text.replace('models = ["{model}"]', "") + table, name)


def planned(path: Path) -> tuple[recipe.Recipe, SweepPlan]:
    """The recipe in a file, and its plan."""
    settings = recipe.read(path)
    return settings, plan.make(settings, store.Project().sweep(path.stem))


def job_of(path: Path, stage: str, variant: str = "attn2") -> tuple[Job, recipe.Recipe]:
    """The job of a stage on a variant, and the recipe."""
    settings, sweep_plan = planned(path)
    return next(job for job in sweep_plan.jobs if job.stage == stage and job.variant == variant), settings


@pytest.fixture
def project(workdir: Path) -> Path:
    """A tiny model under models/ and its base graph."""
    folder = workdir / "models" / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    tiny.tokenizer(folder)
    export.export_base(checkpoint.resolve("models/tiny"))
    return folder


class FakePool:
    """Each job is done at once, unless `fails` or `lies` names it; remembers what ran."""

    def __init__(self, fails: tuple[str, ...] = (), lies: tuple[str, ...] = (), dies: str = "") -> None:
        self.fails, self.lies, self.dies = fails, lies, dies
        self.ran: list[str] = []
        self.finished: set[str] = set()
        self.now: list[str] = []

    def takes(self, job: Job) -> bool:
        return not self.now

    def start(self, job: Job) -> None:
        if job.id == self.dies:
            raise KeyboardInterrupt
        self.ran.append(job.id)
        self.now.append(job.id)

    def ended(self, wait: float) -> list[Outcome]:
        (id,), self.now = self.now, []
        if id in self.fails:
            return [Outcome(id, "the disk is full", 1.5)]
        if id not in self.lies:
            self.finished.add(id)
        return [Outcome(id, None, 2.5)]

    def close(self) -> None: ...

    def is_done(self, job: Job, _: recipe.Recipe) -> bool:
        return job.inline or job.id in self.finished


def run(
    path: Path, pool: FakePool, limit: int | None = None, console: Console | None = None
) -> dict[str, LedgerEntry]:
    """Runs the sweep on a pool of one's own → the ledger's entries by id."""
    ledger = Ledger.open(path)
    workers: JobPool = pool
    with ProgressView(path.stem, ledger, console or Console(file=io.StringIO())) as view:
        sweep.Sweep(recipe.read(path), ledger, workers, view, limit, pool.is_done).run()
    return entries(path)


def entries(path: Path) -> dict[str, LedgerEntry]:
    """The entries of the recipe's ledger file by id."""
    file = store.Project().sweep(path.stem) / "ledger.json"
    return {entry.id: entry for entry in records.read(LedgerRecord, file).jobs}
