"""A model that came from a GGUF file, beside llama.cpp on the file itself.

The usual comparison reads what `export` made of the GGUF, on both sides. llama.cpp reads the user's own file,
so that a tensor or a key that was taken wrongly shows.

Legend: V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import store
from pipeline.evals.check import llamacpp
from pipeline.models import checkpoint, demo, drop_lists, texts
from pipeline.models.config import read_config
from pipeline.models.gguf import parts
from pipeline.models.reference import Reference
from pipeline.runtime.runner import Array
from pipeline.store.records import LlamaCppRecord
from pipeline.types import Provider, UserError

LENGTHS = (24, 200)
"""Tokens of the prompts."""
LIMIT, LIMIT_QUANTISED = 0.03, 0.2
"""Of the distance. llama.cpp rounds activations to the weights' type, so a quantised model is further off:
0.001 was measured in float32, 0.004 in bfloat16, 0.045 for the demo (4 to 8 bits). A model with one
wrong tensor or frequency is at 0.3 and more."""
_EXACT = ("F32", "F16", "BF16", "F64")


def compare(folder: Path, seed: int = 0, device: Provider = "cpu") -> LlamaCppRecord | str | None:
    """How far PyTorch on a checkpoint is from llama.cpp on the GGUF that it was made from.

    Args:
        folder: of the checkpoint.
        seed: of the tokens.
        device: that PyTorch computes on.

    Returns:
        Why it was not compared, in words, where the file is gone, or llama.cpp is not there or cannot run it;
        None where the model came from no GGUF.
    """
    file = _file(folder)
    if not isinstance(file, Path):
        return file
    config = read_config(folder)
    words, context = (config[key] for key in ("vocab_size", "max_position_embeddings"))
    lengths = [min(length, context - 1) for length in LENGTHS]
    rows = texts.sequences(folder, max(lengths), len(lengths), seed)[0]
    prompts = [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
    try:
        theirs = llamacpp.answers(file, prompts, words, min(512, context))
    except UserError as error:
        return str(error)
    # What the file has not, of a pruned model's: PyTorch leaves it out, as llama.cpp does.
    reference = Reference(folder, drop_lists.skip_set(config, folder / "config.json"), device=device)
    largest = max(_distance(reference, *pair) for pair in zip(prompts, theirs, strict=True))
    kinds = {tensor.kind.name for tensor in parts.read(file).tensors}
    limit = LIMIT if kinds <= set(_EXACT) else LIMIT_QUANTISED
    return LlamaCppRecord(
        file=store.relative(file, folder / store.SOURCE),
        distance=largest if np.isfinite(largest) else None,
        limit=limit,
        passed=largest <= limit,
        tokens=tuple(lengths),
        kinds=tuple(sorted(kinds)),
        version=store.versions("xllamacpp").get("xllamacpp", ""),
    )


def _file(folder: Path) -> Path | str | None:
    """The GGUF that a checkpoint was made from; else why llama.cpp cannot be asked; None without a GGUF."""
    opened = checkpoint.open_checkpoint(folder)
    if opened.source.kind != "gguf":
        return None
    built_in = opened.source.origin in demo.MODELS
    file = demo.gguf(opened.source.origin) if built_in else opened.origin
    if not store.is_installed("xllamacpp"):
        return (
            "xllamacpp is not installed: pip install 'skip-pipeline[llamacpp]', and check again with --force"
        )
    if not file.is_file():
        return f"{file} is gone"
    return file


def fields(outcome: LlamaCppRecord | str | None) -> dict[str, Any]:
    """What the check's record says of it."""
    is_compared = isinstance(outcome, LlamaCppRecord)
    return {
        "llamacpp": outcome if is_compared else None,
        "llamacpp_missed": None if is_compared else outcome,
    }


def failures(record: LlamaCppRecord | str | None) -> tuple[str, ...]:
    """In words, what does not agree."""
    if not isinstance(record, LlamaCppRecord) or record.passed:
        return ()
    distance = "not finite" if record.distance is None else f"{record.distance:.2g}"
    return (f"llama.cpp on {record.file} is another model: distance {distance}, limit {record.limit:g}",)


def _distance(reference: Reference, prompt: list[int], theirs: Array) -> float:
    """The rms of the differences of log-probabilities, over their own spread; inf where one is missing."""
    last = torch.tensor([len(prompt) - 1])
    with torch.inference_mode():
        logits: Any = reference.logits_at(torch.tensor([prompt]), last)[0, 0].double()
    ours = torch.log_softmax(logits, -1).cpu().numpy()
    distance = float(np.sqrt(np.mean((theirs - ours) ** 2)) / ours.std())
    return distance if np.isfinite(distance) else np.inf
