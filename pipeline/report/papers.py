"""The papers' own numbers: data files with their source, read once."""

from __future__ import annotations

import csv
import functools
import json
import tomllib
from importlib import resources
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.store import records
from pipeline.store.records import NumLayers, Record


class PaperModel(Record):
    """A model of a paper.

    Attributes:
        here: the names, in lower case, under which it is known in this project.
    """

    name: str
    layers: NumLayers
    here: tuple[str, ...]


class Transition(Record):
    """Between which % of blocks left out a model's MMLU falls to chance."""

    model: str
    here: tuple[str, ...]
    percent: tuple[float, float]


class Paper(Record):
    """What a paper is, and what of it is kept here.

    Attributes:
        note: how its numbers were read.
        scores, latency: CSV files of its tables.
    """

    title: str
    arxiv: str
    note: str = ""
    scores: str = ""
    latency: str = ""
    models: tuple[PaperModel, ...] = ()
    transitions: tuple[Transition, ...] = ()


PAPERS: TypeAdapter[dict[str, Paper]] = TypeAdapter(dict[str, Paper])


@functools.cache
def sources() -> dict[str, Paper]:
    """papers.toml: the papers by their keys, in the order in which the report names them."""
    content = json.dumps(tomllib.loads(_text("papers.toml")))
    return records.parse(PAPERS, content.encode(), Path("papers.toml"))


@functools.cache
def scores() -> list[dict[str, str]]:
    """Tyukin et al., tables 1-6: %, one row a (table, model, % kept)."""
    return _table(sources()["tyukin"].scores)


@functools.cache
def latencies() -> list[dict[str, str]]:
    """Tyukin et al., tables 7-10: seconds for 1 token on each of 1000 sequences, and % saved."""
    return _table(sources()["tyukin"].latency)


def name_of(model: str) -> str | None:
    """'Llama-2-7b-hf' → '7B': what Tyukin et al. call a model; None where it is none of theirs."""
    return next((m.name for m in sources()["tyukin"].models if model.casefold() in m.here), None)


def layers(model: str) -> int | None:
    """How many layers a model of Tyukin et al.'s has, by its name here or in the paper."""
    models = sources()["tyukin"].models
    return next((m.layers for m in models if model.casefold() in m.here or model == m.name), None)


def transition(model: str) -> tuple[float, float] | None:
    """Gromov et al.: between which % of blocks left out MMLU falls to chance."""
    return next((t.percent for t in sources()["gromov"].transitions if model.casefold() in t.here), None)


def citation(paper: str, table: str) -> str:
    """'Tyukin et al. 2024, …, arXiv:2407.15516, table 3'."""
    source = sources()[paper]
    return f"{source.title}, arXiv:{source.arxiv}, {table}"


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(name).splitlines()))


def _text(name: str) -> str:
    return resources.files("pipeline.report").joinpath("papers", name).read_text(encoding="utf-8")
