"""What can be scored by name: one YAML a benchmark in evals/benchmarks/, its prompts and metrics lm-eval's own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import store
from pipeline.types import UserError

PAPER = ("arc", "hellaswag", "truthfulqa", "mmlu")
"""Whose mean is the `average` of Tyukin et al.'s tables."""


class Split(BaseModel):
    """Where the rows of a split lie in a data folder (without the suffix), how many the official set has, and its home."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    file: str
    rows: int
    home: str

    def __init__(self, **data: Any) -> None:
        if "from" in data:
            data["home"] = data.pop("from")
        super().__init__(**data)


class Definition(BaseModel):
    """A task of lm-eval's (its YAML's path under lm_eval/tasks), or a family of them with a `*` in that path."""

    model_config = ConfigDict(extra="forbid")
    harness: str | None
    num_fewshot: int
    metric: str
    columns: list[str]
    data: dict[str, Split]
    form: str | None = None


class Plain(Definition):
    title: str
    source: str


class Several(BaseModel):
    """A benchmark of several tasks, whose value is their mean."""

    model_config = ConfigDict(extra="forbid")
    title: str
    source: str
    metric: str
    parts: dict[str, Definition]


@dataclass(frozen=True, slots=True)
class Part:
    """One task.

    Attributes:
        name: lm-eval's task name, or the benchmark's own.
        harness: the task's YAML inside lm-eval; None for `c4-loss`.
        subject: what `{subject}` in a data file's name stands for.
    """

    name: str
    harness: Path | None
    definition: Definition
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A name that `--tasks` takes.

    Attributes:
        folder: where its YAML lies; data files that begin with ./ lie there too. None for a task of lm-eval's by its own name.
        num_fewshot: examples before each question, where they are not its own number.
        is_family: its parts are one benchmark's subjects, weighted by their size or not as the protocol says.
    """

    name: str
    title: str
    source: str
    metric: str
    parts: tuple[Part, ...]
    folder: Path | None
    is_family: bool = False
    num_fewshot: int | None = None


def folders() -> list[Path]:
    """Where benchmarks are looked for: the project at hand, this checkout, the installed package."""
    package = Path(__file__).parents[2]
    found = [
        Path("evals/benchmarks"),
        package.parent / "evals" / "benchmarks",
        package / "evals" / "benchmarks",
    ]
    return [folder for folder in found if folder.is_dir()]


def known() -> dict[str, Path]:
    """Name → YAML of every benchmark; the project at hand comes first."""
    return {
        file.stem: file
        for folder in reversed(folders())
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")])
    }


def find(name: str, num_fewshot: int | None = None) -> Benchmark:
    """The benchmark of that name: one of ours, a subject of one (`mmlu_anatomy`), or any task of lm-eval's.

    Args:
        num_fewshot: examples before each question, instead of its own number.

    Raises:
        UserError: there is none; the nearest names are offered.
    """
    found = _find(name)
    if num_fewshot is None:
        return found
    if num_fewshot < 0 or found.metric == "loss":
        raise UserError(f"--num-fewshot {num_fewshot} means nothing for {name}")
    parts = [
        replace(p, definition=p.definition.model_copy(update={"num_fewshot": num_fewshot}))
        for p in found.parts
    ]
    return replace(found, parts=tuple(parts), num_fewshot=num_fewshot)


def _find(name: str) -> Benchmark:
    files = known()
    if name in files:
        return _read(name, files[name])
    for family in files:
        whole = _read(family, files[family]) if name.startswith(f"{family}_") else None
        chosen = [part for part in whole.parts if part.name == name] if whole and whole.is_family else []
        if whole and chosen:
            return replace(whole, name=name, title=f"{whole.title}: {chosen[0].subject}", parts=tuple(chosen))
    return _of_harness(name, files)


def _read(name: str, file: Path) -> Benchmark:
    try:
        data = yaml.safe_load(file.read_text())
        read = (Several if isinstance(data, dict) and "parts" in data else Plain).model_validate(data)
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        where = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise UserError(
            f"{file} is no benchmark: {'.'.join(map(str, where['loc']))} {where['msg']}"
        ) from None
    if isinstance(read, Several):
        parts = tuple(Part(task, _harness(d.harness), d) for task, d in read.parts.items())
        return Benchmark(name, read.title, read.source, read.metric, parts, file.parent)
    if read.harness and "*" in read.harness:
        return Benchmark(
            name, read.title, read.source, read.metric, _family(read), file.parent, is_family=True
        )
    harness = _harness(read.harness)
    task = _task_name(harness) if harness else name
    return Benchmark(name, read.title, read.source, read.metric, (Part(task, harness, read),), file.parent)


def _family(read: Plain) -> tuple[Part, ...]:
    parts = []
    pattern = Path(read.harness or "")
    for file in sorted(_harness(str(pattern.parent)).glob(pattern.name)):  # type: ignore[union-attr]
        subject = yaml.load(file.read_text(), Loader=_Lenient)["dataset_name"]
        parts.append(Part(_task_name(file), file, read, subject))
    return tuple(parts)


class _Lenient(yaml.SafeLoader):
    """A safe loader that reads lm-eval's `!function` tags as text; nothing is imported."""


_Lenient.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def _task_name(file: Path) -> str:
    return yaml.load(file.read_text(), Loader=_Lenient)["task"]


def _harness(path: str | None) -> Path | None:
    """A file or folder under lm_eval/tasks; found without scanning the others."""
    if path is None:
        return None
    from lm_eval import tasks

    return Path(tasks.__file__).parent / path


def _of_harness(name: str, files: dict[str, Path]) -> Benchmark:
    """A task or group of lm-eval's own. Its 14,000 files are read for this, and for this only."""
    from lm_eval.tasks import TaskManager

    names = TaskManager().all_tasks
    if name not in names:
        near = difflib.get_close_matches(name, [*files, *names], 5)
        hint = (
            f"did you mean {', '.join(near)}?" if near else f"this project's are {', '.join(sorted(files))}"
        )
        raise UserError(f"no task {name!r}, neither here nor in lm-eval; {hint}")
    return Benchmark(name, name, "lm-eval's own definition", "", (), None)


def check_names(tasks: str) -> list[str]:
    """'arc,mmlu' → ['arc', 'mmlu'], each once.

    Raises:
        UserError: nothing is named.
    """
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UserError(f"--tasks names nothing; this project's are {', '.join(sorted(known()))}")
    for name in names:
        store.plain_name(name)
    return names
