"""Every path, every sidecar, every atomic write. Nobody else joins paths.

The top level is the data flow, calib → graphs → engines → evals, under the current directory. A sidecar is the JSON
beside an artefact that says how it came to be; a reader refuses one that does not match its artefact.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.types import PRECISIONS, SkipSet, UserError, Variant

DEMO = "demo"
SOURCE = "source.json"
"""Written last into a model's folder: the checkpoint there is complete, and this is where it came from."""


# ---- paths ----------------------------------------------------------------------------------------------------------


def graphs_dir(model: str) -> Path:
    return Path("graphs") / plain_name(model)


def engines_dir(model: str, variant: str) -> Path:
    return Path("engines") / plain_name(model) / plain_name(variant)


def calib_dir(model: str) -> Path:
    return Path("calib") / plain_name(model)


def results_dir(model: str) -> Path:
    return Path("evals") / "results" / plain_name(model)


def figures_dir(model: str) -> Path:
    return Path("evals") / "figures" / plain_name(model)


def sweep_dir(recipe: str) -> Path:
    """What a sweep leaves behind: its ledger, the logs of its jobs."""
    return Path("evals") / "sweeps" / plain_name(recipe)


def graph_path(folder: Path, variant: Variant) -> Path:
    return folder / f"{variant.stem}.onnx"


def engine_path(model: str, variant: str, backend: str, targets: str, precision: str) -> Path:
    """engines/<model>/<variant>/<backend>-<targets>-<precision>.plan"""
    return engines_dir(model, variant) / f"{backend}-{targets}-{precision}.plan"


def result_path(model: str, artefact: Path, what: str) -> Path:
    """evals/results/<model>/<variant>.<precision>[-<engine>].<what>.json for what = check, bench, …"""
    stem = artefact.stem if artefact.suffix == ".onnx" else f"{artefact.parent.name}.{artefact.stem}"
    return results_dir(model) / f"{stem}.{what}.json"


def report_dir() -> Path:
    return Path("evals") / "report"


def report_inputs() -> dict[str, list[Path]]:
    """What the report reads, by kind of file."""
    patterns = {"results": "evals/results/*/*.json", "engines": "engines/*/*/*.json"}
    patterns |= {"ledgers": "evals/sweeps/*/ledger.json", "statistics": "calib/*/similarity.json"}
    return {
        what: sorted(path for path in Path().glob(p) if not path.name.endswith(".run.json")) for what, p in patterns.items()
    }


def requests_dir(folder: Path) -> Path:
    """Where the tokens of benchmark requests are kept, for the checkpoint in `folder`."""
    return Path("evals") / "cache" / plain_name(folder.resolve().name)


def prompts_path(digest: str) -> Path:
    """Where the prompts of a benchmark task are kept; they are the same for every model."""
    return Path("evals") / "cache" / "prompts" / f"{digest[:32]}.json.gz"


def plain_name(name: str) -> str:
    """The name, after a check that it stays inside its folder."""
    if not re.fullmatch(r"[\w.+~@=-]{1,200}", name) or name.startswith("."):
        raise UserError(f"{name!r} cannot be a file name here; use letters, digits, '.', '_' and '-'")
    return name


# ---- what exists ----------------------------------------------------------------------------------------------------


def models() -> list[str]:
    """Names of the models under graphs/, those with a complete checkpoint."""
    return sorted(path.parent.name for path in Path("graphs").glob(f"*/{SOURCE}"))


def default_model() -> str:
    """PIPELINE_MODEL, else the only model under graphs/, else 'demo'.

    Raises:
        UserError: several models are there and none is named.
    """
    if name := os.environ.get("PIPELINE_MODEL"):
        return name
    found = models()
    if len(found) > 1:
        raise UserError(f"several models under graphs/: {', '.join(found)}; name one, or set PIPELINE_MODEL")
    return found[0] if found else DEMO


def model_of(artefact: Path) -> str:
    """The model that a graph or an engine belongs to, from where it lies."""
    return artefact.resolve().parent.name if artefact.suffix == ".onnx" else artefact.resolve().parent.parent.name


def checkpoint_folder(artefact: Path) -> Path:
    """Where config, tokenizer and weights of a graph's or an engine's model lie."""
    return artefact.parent if artefact.suffix == ".onnx" else Path(read_sidecar(artefact)["folder"])


def graphs_of(model: str) -> list[Path]:
    """The model's graphs that stages work on: base first, then by name; no `--head all` twins, no merged graphs."""
    found = [
        path
        for path in graphs_dir(model).glob("*.onnx")
        if path.stem.split(".")[-1] in PRECISIONS and not path.name.startswith("merged-") and sidecar_path(path).exists()
    ]
    return sorted(found, key=lambda p: (not p.name.startswith("base."), p.name))


def engines_of(model: str) -> list[Path]:
    """The model's engines that stages work on; none of merged graphs."""
    found = (Path("engines") / plain_name(model)).glob("*/*.plan")
    return sorted(path for path in found if not path.parent.name.startswith("merged-"))


# ---- atomic writes --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder; on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        UserError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


@contextlib.contextmanager
def lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """One writer at a time in a folder. The kernel drops the lock when a process dies, however it dies.

    Raises:
        BlockingIOError: another one writes, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def sweep_temporaries(folder: Path) -> None:
    """Removes what a killed writer left. Call it under `lock`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


# ---- sidecars -------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def healed_weights(artefact: Path) -> Path | None:
    """The safetensors that hold the weights which a healed artefact's adapter touched; None where it has no adapter."""
    record = read_sidecar(artefact, quick=True)
    if not record.get("adapter"):
        return None
    path = healed_path(checkpoint_folder(artefact), variant_of(record).name)
    if not path.is_file() or sha256(path) != record["healed"]["sha256"]:
        raise UserError(f"{path} is not what {artefact.name} was made with; run its `pipeline export … --adapter` again")
    return path


def healed_path(folder: Path, variant: str) -> Path:
    return folder / f"{plain_name(variant)}.safetensors"


def sidecar_path(artefact: Path) -> Path:
    return artefact.with_name(f"{artefact.stem}.json")


def write_sidecar(artefact: Path, record: dict[str, Any]) -> None:
    """Writes the sidecar with the artefact's SHA-256 and size added."""
    write_json(
        sidecar_path(artefact), {**record, "file": artefact.name, "sha256": sha256(artefact), "bytes": artefact.stat().st_size}
    )


def read_sidecar(artefact: Path, quick: bool = False) -> dict[str, Any]:
    """The sidecar of an artefact, after a check that it is the artefact's own.

    Args:
        quick: compare sizes only, where many gigabytes of engines would be hashed just to list them.

    Raises:
        UserError: artefact or sidecar is missing, or they do not match.
    """
    if not artefact.is_file():
        raise UserError(f"{artefact} does not exist; `pipeline list` shows what does")
    if not sidecar_path(artefact).is_file():
        raise UserError(
            f"{artefact} has no sidecar {sidecar_path(artefact).name}; make it with `pipeline export` or `build-engine`"
        )
    record = read_json(sidecar_path(artefact))
    same = isinstance(record, dict) and record.get("bytes") == artefact.stat().st_size
    if not same or not (quick or record.get("sha256") == sha256(artefact)):
        raise UserError(f"{artefact} is not what its sidecar describes; remove it and make it again")
    return record


def variant_of(record: dict[str, Any]) -> Variant:
    """The variant that a sidecar describes.

    Raises:
        UserError: it describes none (a merged graph's, or one that was edited).
    """
    try:
        skip = SkipSet(tuple(record["skip"]["attention"]), tuple(record["skip"]["mlp"]))
        return Variant(record["model"], skip, record["precision"], record.get("adapter"), record.get("head", "gather"))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the sidecar of {record.get('file')} describes no variant: it lacks {error}; make the artefact again"
        ) from None


def variant_record(variant: Variant) -> dict[str, Any]:
    """The fields of a sidecar that say which variant it is; `variant_of` reads them back."""
    return {
        "model": variant.model,
        "variant": variant.name,
        "skip": {"attention": list(variant.skip.attention), "mlp": list(variant.skip.mlp)},
        "precision": variant.precision,
        "adapter": variant.adapter,
        "head": variant.head,
    }


def is_current(artefact: Path, wanted: dict[str, Any]) -> bool:
    """Whether the artefact exists, matches its sidecar, and was made from just what is wanted now."""
    try:
        record = read_sidecar(artefact)
    except UserError:
        return False
    return all(record.get(key) == value for key, value in wanted.items())


def check_passed(artefact: Path, digest: str | None = None) -> bool:
    """Whether `pipeline check` has passed on this very artefact (same SHA-256; computed unless given)."""
    result = result_path(model_of(artefact), artefact, "check")
    if not result.is_file():
        return False
    record = read_json(result)
    return bool(record.get("passed")) and record.get("sha256") == (digest or sha256(artefact))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
