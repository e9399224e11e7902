"""lm-eval's own command with the model `pipeline`; its arguments are held against what is read."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval._cli.harness import HarnessCLI
from lm_eval.utils import setup_logging

from pipeline.evals.score import generation, harness  # noqa: F401 - importing it registers the model
from pipeline.evals.score.settings import ModelSettings
from pipeline.types import UserError

METADATA = ("max_seq_lengths", "tokenizer", "pretrained")
"""What lm-eval's own tasks take of `--metadata` (RULER, babilong); tasks of users may take more."""
ALIKE = 0.75
"""Likeness from which a name of `--metadata` is taken for a misspelt one."""


def run(arguments: Sequence[str]) -> None:
    """Runs lm-eval's command.

    Raises:
        UserError: an argument of the model, of the generation or of the tasks is misspelt; nothing has run.
    """
    sys.argv = ["lm-eval", *arguments]
    setup_logging()
    parser = HarnessCLI()
    parsed = parser.parse_args()
    check(parsed)
    parser.execute(parsed)


def check(parsed: argparse.Namespace) -> None:
    """Refuses names that nothing would read, before a task is loaded.

    Raises:
        UserError: names the argument, and the nearest one that there is.
    """
    if getattr(parsed, "model", None) != "pipeline":
        return
    model, texts, metadata = (_given(parsed, name) for name in ("model_args", "gen_kwargs", "metadata"))
    if model is not None:
        ModelSettings.of(model)
    generation.refuse(texts or {})
    for name in metadata or {}:
        near = difflib.get_close_matches(str(name), METADATA, 1, ALIKE)
        if name not in METADATA and near:
            raise UserError(f"--metadata has no {name!r}; did you mean {near[0]}?")


def _given(parsed: argparse.Namespace, name: str) -> Mapping[str, Any] | None:
    """The dictionary that an option holds; None where it was not given."""
    value = getattr(parsed, name, None)
    return value if isinstance(value, Mapping) else None
