"""What may be scored: an artefact that has passed its check, beside the tokenizer that it was exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import tokenizer
from pipeline.types import UserError


def variants(path: Path, unchecked: bool = False) -> dict[str, tuple[Path, str]]:
    """Head of the artefact → (the artefact whose score it is, its SHA-256). One head '' but for a merged graph.

    Raises:
        UserError: missing, not checked, or the tokenizer beside it is another one.
    """
    record = store.read_sidecar(path)
    _same_tokenizer(path, record)
    if record.get("artefact") != "merged":
        store.variant_of(record)
        found = {"": (path, record["sha256"])}
    else:
        found = {
            name: (path.with_name(f"{name}.{record['precision']}.onnx"), sha)
            for name, sha in record["variants"].items()
        }
    for artefact, digest in found.values():
        if store.read_sidecar(artefact)["sha256"] != digest:
            raise UserError(f"{artefact} is not the graph that {path} was merged from; run the command again")
        if not unchecked and not store.check_passed(artefact, digest):
            raise UserError(
                f"{artefact} has passed no check; run `pipeline check {artefact}`, or pass --unchecked"
            )
    return found


def _same_tokenizer(path: Path, record: dict[str, Any]) -> None:
    folder = store.checkpoint_folder(path)
    known, found = record.get("tokenizer"), tokenizer.digest(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no tokenizer; copy the model's tokenizer files into it and export again"
        )
    if known is not None and known != found:
        raise UserError(
            f"the tokenizer in {folder} is not the one that {path.name} was exported with; put the model's own back, "
            f"or run `pipeline export` again if it was mended"
        )


def has_no_attention(path: Path) -> bool:
    """Whether nothing of a token's past can matter: every attention is left out."""
    record = store.read_sidecar(path, quick=True)
    return record.get("artefact") != "merged" and len(record["skip"]["attention"]) == record.get("num_layers")


def journal_path(path: Path, digest: str, protocol: str) -> Path:
    """Where the answers of an artefact are kept: the name holds all that they depend on."""
    what = store.text_digest(f"{digest} {protocol} {tokenizer.digest(store.checkpoint_folder(path))}")[:16]
    return store.result_path(store.model_of(path), path, f"answers-{what}").with_suffix(".jsonl")


def no_cache(path: Path) -> UserError:
    return UserError(
        f"{path} has no cache to generate with; export it with `pipeline export`, or leave the generating task out"
    )


def only_greedy(settings: dict[str, Any]) -> None:
    """Refuses settings that draw tokens at random."""
    if settings["do_sample"]:
        raise UserError(
            "the task samples (do_sample: true), and scoring decodes greedily; pass --gen_kwargs do_sample=False"
        )


def has_room(room: int, window: int) -> None:
    """Refuses to write more tokens than the window holds."""
    if room < 1:
        raise UserError(
            f"the task writes more tokens than the model's window of {window} holds; take another task"
        )
