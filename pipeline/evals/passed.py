"""What may be scored: an artefact that has passed its check and lies beside its own tokenizer."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from pipeline import store
from pipeline.models import identity
from pipeline.store.records import EngineRecord, GraphRecord, MergedRecord
from pipeline.types import Provider, UserError


def variants(
    path: Path, unchecked: bool = False, provider: Provider | None = "cpu"
) -> dict[str, tuple[Path, str]]:
    """Head of the artefact → (the artefact whose score it is, its SHA-256).

    A merged graph has one head a variant; any other artefact has one, named ''.

    Args:
        path: a graph or an engine.
        unchecked: also what has passed no check.
        provider: of ONNX Runtime, on which a graph must have passed; None for any.

    Raises:
        UserError: it is missing, has a static cache, has not passed its check, or lies beside another
            tokenizer.
    """
    sidecar = store.sidecar(path)
    refuse_static(path)
    _refuse_other_tokenizer(path, sidecar.tokenizer)
    if isinstance(sidecar, MergedRecord):
        heads = {
            name: (store.merged_from(path, name, sidecar.precision_name), digest)
            for name, digest in sidecar.variants.items()
        }
    else:
        store.variant(path, quick=True)  # the engine of a merged graph is refused
        heads = {"": (path, sidecar.sha256)}
    for artefact, digest in heads.values():
        if artefact != path and store.sidecar(artefact).sha256 != digest:
            raise UserError(f"{artefact} is not the graph that {path} was merged from; run the command again")
        if not unchecked:
            require_check(artefact, digest, provider)
    return heads


def require_check(path: Path, digest: str | None = None, provider: Provider | None = "cpu") -> None:
    """Refuses an artefact that has not passed its check.

    Args:
        path: a graph or an engine.
        digest: its SHA-256, where it is known.
        provider: of ONNX Runtime, on which a graph must have passed; None for any.

    Raises:
        UserError: it has not passed.
    """
    if store.check_passed(path, digest, provider):
        return
    command, where = f"pipeline check {shlex.quote(str(path))}", ""
    if provider and (provider == "cuda" or store.check_passed(path, digest, None)):
        command, where = f"{command} --provider {provider}", f" on {provider}"
    raise UserError(f"{path} has passed no check{where}; run `{command}`, or pass --unchecked")


def refuse_static(path: Path) -> None:
    """Refuses a static cache where the usual form gives the same numbers, and sooner on a CPU.

    Raises:
        UserError: the artefact has one.
    """
    record = store.sidecar(path, quick=True)
    if isinstance(record, GraphRecord | EngineRecord) and record.max_tokens is not None:
        twin = record.as_variant()
        assert twin is not None, "merged graphs have no static cache"
        name = f"{replace(twin, max_tokens=None).stem}.onnx"
        raise UserError(
            f"{path} has a static cache, which check, generate and build-engine take, and bench of engines; "
            f"name its twin {name}, or the engine of that"
        )


def _refuse_other_tokenizer(path: Path, exported: str | None) -> None:
    """Refuses an artefact whose folder holds no tokenizer, or not the one of this digest."""
    folder = store.checkpoint_folder(path)
    present = identity.tokenizer_digest(folder)
    if present is None:
        raise UserError(
            f"{folder} holds no tokenizer; copy the model's tokenizer files into it and export again"
        )
    if exported is not None and exported != present:
        raise UserError(
            f"the tokenizer in {folder} is not the one that {path.name} was exported with; "
            "put the model's own back, or run `pipeline export` again if it was mended"
        )


def has_no_attention(path: Path) -> bool:
    """Whether nothing of a token's past can matter: every attention is left out."""
    sidecar = store.sidecar(path, quick=True)
    return isinstance(sidecar, GraphRecord) and len(sidecar.skip.attention) == sidecar.num_layers


JOURNAL = 2
"""Of the answers' form. Those of 1 could be texts of logits that are no numbers."""


def journal_path(path: Path, digest: str, protocol: str, provider: Provider = "cpu") -> Path:
    """Where the answers of an artefact are kept; the name holds all that they depend on, its weights too."""
    tokenizer = identity.tokenizer_digest(store.checkpoint_folder(path))
    key = store.text_digest(f"{digest} {store.contents(path)} {protocol} {tokenizer}")[:16]
    return store.result_of(path, f"answers-{key}", provider).with_suffix(".jsonl")


def no_cache(path: Path) -> UserError:
    """The error for a generating task on a graph without a cache."""
    return UserError(
        f"{path} has no cache to generate with; export it with `pipeline export`, "
        "or leave the generating task out"
    )
