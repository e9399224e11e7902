"""Prompts of tests of generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.runtime.generation.prompts import Prompts

LONG = "The following sections describe the standard types that are built into the interpreter."


def changed(prompts: Prompts, **conventions: Any) -> Prompts:
    return Prompts(prompts.tokenizer, replace(prompts.conventions, **conventions))
