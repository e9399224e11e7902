"""Where every file lies: the top level is the data flow, calib → graphs → engines → evals.

A project is a folder that holds these four. An artefact's own path says which project it is of, whatever the
current directory; the current directory only decides where a new project begins.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.types import Provider, UserError, Variant, file_name, variant_file

DEMO = "demo"
SOURCE = "source.json"
"""Written last into a model's folder: the checkpoint there is complete, and this is where it came from."""
QUANTISED = "quantised."
"""How the files of quantised weights begin, which lie beside the checkpoint's own."""
PLACES = re.compile(
    r"(?P<root>.*)/(?:graphs/[^/]+/(?:optimum/)?"
    r"|engines/[^/]+/[^/]+/"
    r"|calib/[^/]+/(?:[^/]+/adapters/[^/]+/|moments/|hessians/|compensation/)?"
    r"|evals/(?:results|figures|report|benchmarks|sweeps|cache)/(?:[^/]+/)*)[^/]+",
    re.DOTALL,
)
"""Where a project's files lie. A folder that is merely called evals/, further up, begins no project."""
MAX_NAME = 200
"""Bytes of a file's name that are left for a model or a variant."""
MAX_STEM = 150
"""Bytes of an artefact's name that stand whole in the names of its results."""
MAX_RESULT = 239
"""Bytes of a result's name; the longest ending, .samples.jsonl, and a dot bring it to 254."""


@dataclass(frozen=True, slots=True)
class Project:
    """The folder that holds calib/, graphs/, engines/ and evals/; by default the current directory."""

    root: Path = Path()

    @classmethod
    def of(cls, path: Path) -> Project:
        """The project of a file: the parent of the graphs/, engines/, calib/ or evals/ that holds it.

        The path is taken as it is written, and only then with its links followed: graphs/ may be a link to a
        larger disk. A checkpoint with graphs written in place lies in none of the four; its project is the
        current directory.
        """
        here = Path.cwd()
        for absolute in (_as_written(path), path.resolve()):
            if match := PLACES.fullmatch(str(absolute)):
                root = Path(match["root"] or "/")
                return cls(Path() if root.resolve() == here else root)
        return cls()

    # ---- folders ----

    def graphs(self, model: str) -> Path:
        """graphs/<model>"""
        return self.root / "graphs" / plain_name(model)

    def engines(self, model: str, variant: str) -> Path:
        """engines/<model>/<variant>"""
        return self.root / "engines" / plain_name(model) / plain_name(variant_file(variant))

    def calib(self, model: str) -> Path:
        """calib/<model>"""
        return self.root / "calib" / plain_name(model)

    def published(self) -> Path:
        """calib/published: skip sets that others published, one file a model."""
        return self.root / "calib" / "published"

    def results(self, model: str) -> Path:
        """evals/results/<model>"""
        return self.root / "evals" / "results" / plain_name(model)

    def figures(self, model: str) -> Path:
        """evals/figures/<model>"""
        return self.root / "evals" / "figures" / plain_name(model)

    def report(self) -> Path:
        """evals/report"""
        return self.root / "evals" / "report"

    def benchmarks(self) -> Path:
        """evals/benchmarks: the project's own benchmarks."""
        return self.root / "evals" / "benchmarks"

    def sweep(self, recipe: str) -> Path:
        """evals/sweeps/<recipe>: a sweep's ledger, the logs of its jobs."""
        return self.root / "evals" / "sweeps" / plain_name(recipe)

    def requests(self, model: str) -> Path:
        """evals/cache/<model>: the tokens of benchmark requests."""
        return self.root / "evals" / "cache" / plain_name(model)

    # ---- files ----

    def engine(self, model: str, variant: str, backend: str, targets: str, precision: str) -> Path:
        """engines/<model>/<variant>/<backend>-<targets>-<precision>.plan"""
        return self.engines(model, variant) / f"{backend}-{targets}-{precision}.plan"

    def shipped(self, variant: Variant, form: str, kind: str | None = None) -> Path:
        """engines/<model>/<variant>/<model>-<variant>[.<type>].gguf, or the folder …/hf.

        Args:
            variant: that is shipped.
            form: 'gguf' or 'hf'.
            kind: type of a GGUF's tensors, where it is chosen.
        """
        folder = self.engines(variant.model, variant.name)
        name = file_name(f"{variant.model}-{variant.file}", MAX_STEM)
        return folder / form if form == "hf" else folder / f"{name}{f'.{kind}' if kind else ''}.gguf"

    def result(self, artefact: Path, what: str, provider: Provider = "cpu") -> Path:
        """evals/results/<model>/<variant>.<precision>[-<engine>].<what>.json, for what = check, bench, …

        What a graph gave on CUDA lies beside what it gave on the CPU: `base.fp32.check.cuda.json`.

        A graph beside a user's own checkpoint lies in no project: its folder is told from others of the same
        name by a digest, `base.fp32@1a2b3c.check.json`.
        """
        place = ""
        stem = artefact.stem if artefact.suffix == ".onnx" else f"{artefact.parent.name}.{artefact.stem}"
        if not any(PLACES.fullmatch(str(path)) for path in (_as_written(artefact), artefact.resolve())):
            place = f"@{hashlib.sha256(os.fsencode(artefact.resolve().parent)).hexdigest()[:6]}"
        stem = file_name(stem, MAX_STEM) + place
        end = f".{named}" if (named := provider_of(artefact, provider)) else ""
        what = file_name(what, MAX_RESULT - len(os.fsencode(stem + end))) + end
        return self.results(model_of(artefact)) / f"{stem}.{what}.json"

    def prompts(self, digest: str) -> Path:
        """Where the prompts of a benchmark task are kept; they are the same for every model."""
        return self.root / "evals" / "cache" / "prompts" / f"{digest[:32]}.json.gz"

    def report_inputs(self) -> dict[str, list[Path]]:
        """What the report reads, by kind of file: results, engines, ledgers, statistics."""
        patterns = {
            "results": "evals/results/*/*.json",
            "engines": "engines/*/*/*.json",
            "ledgers": "evals/sweeps/*/ledger.json",
            "statistics": "calib/*/similarity.json",
        }
        return {
            kind: sorted(path for path in self.root.glob(pattern) if not path.name.endswith(".run.json"))
            for kind, pattern in patterns.items()
        }


def result_of(artefact: Path, what: str, provider: Provider = "cpu") -> Path:
    """Where the result of `check`, `bench`, … on an artefact lies, in the artefact's own project."""
    return Project.of(artefact).result(artefact, what, provider)


def provider_of(artefact: Path, provider: Provider) -> Literal["cuda"] | None:
    """As records name it: 'cuda' for a graph there; None for the CPU, and for an engine, which has none."""
    return "cuda" if provider == "cuda" and artefact.suffix == ".onnx" else None


def measured_on(path: Path, device: Provider) -> Path:
    """Where what was measured on a device lies: on CUDA beside what the CPU gave, greedy-mlp.cuda.json."""
    return path if device == "cpu" else path.with_suffix(f".{device}{path.suffix}")


def graph_path(folder: Path, variant: Variant) -> Path:
    """A variant's graph beside the checkpoint in `folder`."""
    return folder / f"{variant.stem}.onnx"


def merged_from(merged: Path, variant: str, precision: str) -> Path:
    """The graph of a variant beside the graph that it was merged into."""
    return merged.with_name(f"{variant_file(variant)}.{precision}.onnx")


def overlay_path(folder: Path, variant: str, quantisation: str | None = None) -> Path:
    """The tensors of a variant's compensation or adapter, beside the checkpoint in `folder`.

    Args:
        folder: of the checkpoint.
        variant: its name.
        quantisation: of the weights that a compensation was fitted on.
    """
    weights = f".{quantisation}" if quantisation else ""
    return folder / f"{plain_name(variant_file(variant))}{weights}.safetensors"


def sidecar_path(artefact: Path) -> Path:
    """The JSON beside an artefact."""
    return artefact.with_name(f"{artefact.stem}.json")


def model_of(artefact: Path) -> str:
    """The model that a graph or an engine belongs to, from where it lies."""
    resolved = artefact.resolve()
    return resolved.parent.name if artefact.suffix == ".onnx" else resolved.parent.parent.name


def plain_name(name: str) -> str:
    """The name, after a check that it stays inside its folder.

    Raises:
        UserError: it is empty, hidden, too long, or holds a slash or a character that does not print.
    """
    if not re.fullmatch(r"[^/\\\0]+", name) or not name.isprintable() or name[0] in ". " or name[-1] == " ":
        raise UserError(
            f"{name!r} cannot be a file name here: it is hidden, or has a slash, a space at an end, "
            "or a character that does not print"
        )
    if len(os.fsencode(name)) > MAX_NAME:
        raise UserError(f"{name[:40]!r}… is too long for a file name: {MAX_NAME} bytes at most")
    return name


def relative(path: Path, to: Path) -> str:
    """A path as a record in the file `to` keeps it: relative to it in its project, absolute elsewhere."""
    root = _as_written(Project.of(to).root)
    written = (_as_written(path), _as_written(to), root)
    for file, record, top in (written, (path.resolve(), to.resolve(), root.resolve())):
        if file.is_relative_to(top) and record.is_relative_to(top):
            return os.path.relpath(file, record.parent)
    return str(path.resolve())


def resolved(text: str, record: Path) -> Path:
    """The path that a record in the file `record` names.

    Files of 0.1 name paths from the project's folder: taken so where nothing lies at the path itself.
    """
    here, path = Path.cwd(), _as_written(record.parent / text)
    older = _as_written(Project.of(record).root / text)
    chosen = path if path.exists() or not older.exists() else older
    return chosen.relative_to(here) if chosen.is_relative_to(here) else chosen


def _as_written(path: Path) -> Path:
    """The absolute path, without '..', its symbolic links not followed."""
    return Path(os.path.normpath(Path.cwd() / path))
