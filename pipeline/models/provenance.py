"""What a file for another engine says of where it comes from: under names that those engines pass over.

A GGUF has the keys `skip_pipeline.variant` and so on, a config.json the object `skip_pipeline`.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import store

NAME = "skip_pipeline"
"""In front of the keys of a GGUF; the key of config.json."""
VARIANT, NUM_LAYERS, LAYERS, FORM, DIGEST = "variant", "num_layers", "layers", "form", "digest"
"""The variant's name; L of the whole model; the index there of each layer of the file; the form; `digest`."""


_WRITERS = 1
"""Version of what `ship` writes; raise it with every change that makes another file of the same variant."""


def digest(graph: Path, form: str) -> str:
    """What a file that is made of a variant depends on, as one number.

    Args:
        graph: of the variant.
        form: of the file: 'hf', or the type of a GGUF's tensors.
    """
    parts = (store.sidecar(graph, quick=True).sha256, store.contents(graph), form, str(_WRITERS))
    return store.text_digest(" ".join(parts))
