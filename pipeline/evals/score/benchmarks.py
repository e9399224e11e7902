"""What can be scored by name: a YAML in evals/benchmarks/; lm-eval gives prompts and metrics."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pipeline import store
from pipeline.evals.score import definitions
from pipeline.evals.score import known as known_names
from pipeline.evals.score.definitions import (
    CompositeDefinition,
    MeanDefinition,
    SingleDefinition,
    TaskDefinition,
)
from pipeline.types import UserError

PAPER = ("arc", "hellaswag", "truthfulqa", "mmlu")
"""The benchmarks whose mean is the `average` of the tables of Tyukin et al."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task.

    Attributes:
        name: lm-eval's task name, or the benchmark's own.
        harness: the task's YAML inside lm-eval; None for a token loss.
        definition: as the benchmark's YAML gives it.
        subject: what `{subject}` in a data file's name stands for.
    """

    name: str
    harness: Path | None
    definition: TaskDefinition
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A name that `--tasks` takes.

    Attributes:
        name, title, source: what the report prints.
        metric: lm-eval's name of it, with its filter behind a comma; '' for a task of lm-eval's own.
        parts: its tasks; none for a task of lm-eval's own.
        folder: of its YAML; data files that begin with ./ are there too. None for a task of lm-eval's.
        is_family: its parts are the subjects of one benchmark; the protocol says whether size weights them.
        num_fewshot: examples before each question, where they are not its own number.
        members: the benchmarks whose mean it is; each of its parts is named as one of them.
    """

    name: str
    title: str
    source: str
    metric: str
    parts: tuple[Part, ...]
    folder: Path | None
    is_family: bool = False
    num_fewshot: int | None = None
    members: tuple[str, ...] = ()

    @property
    def chance(self) -> float | None:
        """The fraction that guessing gets right, the mean over its parts; None where one's is not known."""
        known_ones = [chance for part in self.parts if (chance := part.definition.chance) is not None]
        return (
            sum(known_ones) / len(known_ones) if known_ones and len(known_ones) == len(self.parts) else None
        )


def folders(project: store.Project | None = None) -> list[Path]:
    """Where benchmarks are looked for, in this order: the project, this checkout, the installed package.

    Args:
        project: that of the artefact which is scored; by default the current directory.
    """
    package = Path(__file__).parents[2]
    candidates = [(project or store.Project()).benchmarks(), package / "evals" / "benchmarks"]
    if (package.parent / "pyproject.toml").is_file():  # a checkout, not site-packages
        candidates.insert(1, store.Project(package.parent).benchmarks())
    return [folder for folder in candidates if folder.is_dir()]


def known(project: store.Project | None = None) -> dict[str, Path]:
    """Name → YAML of every benchmark; the project's own come first."""
    return {
        file.stem: file
        for folder in reversed(folders(project))
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")])
    }


def find(name: str, num_fewshot: int | None = None, project: store.Project | None = None) -> Benchmark:
    """The benchmark of that name: a known one, a subject of one (`mmlu_anatomy`), or any task of lm-eval's.

    Args:
        name: as `--tasks` takes it.
        num_fewshot: examples before each question, instead of its own number.
        project: whose evals/benchmarks comes first; by default that of the current directory.

    Raises:
        UserError: there is none; the nearest names are offered.
    """
    benchmark = _find(name, known(project))
    if num_fewshot is None:
        return benchmark
    if num_fewshot < 0 or benchmark.metric == "loss":
        raise UserError(f"--num-fewshot {num_fewshot} means nothing for {name}")
    parts = [
        replace(part, definition=part.definition.model_copy(update={"num_fewshot": num_fewshot}))
        for part in benchmark.parts
    ]
    return replace(benchmark, parts=tuple(parts), num_fewshot=num_fewshot)


def with_members(names: Sequence[str], project: store.Project | None = None) -> list[str]:
    """The names, each once; before a mean those of the benchmarks that it is made of."""
    files = known(project)
    every = list[str]()
    for name in names:
        read = definitions.read(files[name]) if name in files else None
        every += [*(read.mean_of if isinstance(read, MeanDefinition) else ()), name]
    return list(dict.fromkeys(every))


def _find(name: str, files: dict[str, Path]) -> Benchmark:
    if name in files:
        return _read(name, files[name])
    for family, file in files.items():
        if not name.startswith(f"{family}_"):
            continue
        whole = _read(family, file)
        parts = tuple(part for part in whole.parts if part.name == name)
        if whole.is_family and parts:
            return replace(whole, name=name, title=f"{whole.title}: {parts[0].subject}", parts=parts)
    return _of_harness(name, files)


def _read(name: str, file: Path) -> Benchmark:
    read, is_family, members = definitions.read(file), False, tuple[str, ...]()
    if isinstance(read, CompositeDefinition):
        parts = tuple(_part(task, part) for task, part in read.parts.items())
    elif isinstance(read, MeanDefinition):
        members = tuple(read.mean_of)
        parts = tuple(_part(m, definitions.read_single(file.with_name(f"{m}.yaml"))) for m in members)
    elif read.harness and "*" in read.harness:
        parts, is_family = _family(read, read.harness), True
    elif read.harness:
        harness = _harness_path(read.harness)
        parts = (Part(_task_name(harness), harness, read),)
    else:
        parts = (Part(name, None, read),)
    return Benchmark(name, read.title, read.source, read.metric, parts, file.parent, is_family, None, members)


def _part(name: str, definition: TaskDefinition) -> Part:
    return Part(name, _harness_path(definition.harness) if definition.harness else None, definition)


def _family(read: SingleDefinition, pattern: str) -> tuple[Part, ...]:
    folder = _harness_path(str(Path(pattern).parent))
    return tuple(
        Part(_task_name(file), file, read, _field(file, "dataset_name"))
        for file in sorted(folder.glob(Path(pattern).name))
    )


class _TagsAsText(yaml.SafeLoader):
    """A safe loader that reads lm-eval's `!function` tags as text; nothing is imported."""


_TagsAsText.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def _field(file: Path, key: str) -> str:
    """A field of one of lm-eval's own YAMLs.

    Raises:
        UserError: it is none.
    """
    try:
        data = yaml.load(store.records.read_bytes(file).decode(), Loader=_TagsAsText)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is no task of lm-eval's: {' '.join(str(error).split()):.300}") from None
    if not isinstance(data, dict) or key not in data:
        raise UserError(f"{file} is no task of lm-eval's: it lacks {key!r}")
    return str(data[key])


def _task_name(file: Path) -> str:
    return _field(file, "task")


def _harness_path(path: str) -> Path:
    """A file or folder under lm_eval/tasks; the other tasks are not scanned.

    Raises:
        UserError: the installed lm-eval has none.
    """
    from lm_eval import tasks

    place = Path(tasks.__file__).parent / path
    if not place.exists():
        raise UserError(f"the installed lm-eval has no {path} under {Path(tasks.__file__).parent}")
    return place


def _of_harness(name: str, files: dict[str, Path]) -> Benchmark:
    """A task or group of lm-eval's own."""
    names = known_names.of_harness()
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
        UserError: nothing is named, or a name could not be a file's.
    """
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UserError(f"--tasks names nothing; this project's are {', '.join(sorted(known()))}")
    for name in names:
        store.plain_name(name)
    return names
