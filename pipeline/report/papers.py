"""The papers' own numbers: data files with their source, read once."""

from __future__ import annotations

import csv
import functools
import tomllib
from importlib import resources
from typing import Any


@functools.cache
def sources() -> dict[str, Any]:
    """papers.toml: what each paper is, and under which names its models are found here."""
    found: dict[str, Any] = tomllib.loads(_text("papers.toml"))
    return found


@functools.cache
def scores() -> list[dict[str, str]]:
    """Tyukin et al., tables 1-6: %, one row a (table, model, % kept)."""
    return _table(sources()["tyukin"]["scores"])


@functools.cache
def latencies() -> list[dict[str, str]]:
    """Tyukin et al., tables 7-10: seconds for 1 token on each of 1000 sequences, and % saved."""
    return _table(sources()["tyukin"]["latency"])


def name_of(model: str) -> str | None:
    """'Llama-2-7b-hf' → '7B': what Tyukin et al. call a model; None where it is none of theirs."""
    return next((m["name"] for m in sources()["tyukin"]["models"] if model.casefold() in m["here"]), None)


def layers(model: str) -> int | None:
    """How many layers a model of Tyukin et al.'s has, by its name here or in the paper."""
    found = sources()["tyukin"]["models"]
    return next(
        (int(m["layers"]) for m in found if model.casefold() in m["here"] or model == m["name"]), None
    )


def transition(model: str) -> tuple[float, float] | None:
    """Gromov et al.: between which % of blocks left out MMLU falls to chance."""
    found = next((t for t in sources()["gromov"]["transitions"] if model.casefold() in t["here"]), None)
    return None if found is None else (float(found["percent"][0]), float(found["percent"][1]))


def chance(benchmark: str) -> float | None:
    """What guessing gives, %."""
    value = sources()["gromov"]["chance"].get(benchmark)
    return None if value is None else float(value)


def citation(paper: str, table: str) -> str:
    """'Tyukin et al. 2024, …, arXiv:2407.15516, table 3'."""
    found = sources()[paper]
    return f"{found['title']}, arXiv:{found['arxiv']}, {table}"


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(name).splitlines()))


def _text(name: str) -> str:
    return resources.files("pipeline.report").joinpath("papers", name).read_text(encoding="utf-8")
