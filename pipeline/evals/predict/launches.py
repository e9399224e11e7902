"""How many kernels eager PyTorch launches for a pass of a variant (`launches.toml`, counted, not guessed)."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipeline.models import costs
from pipeline.models.config import Config
from pipeline.store import records
from pipeline.store.records import Count, Record
from pipeline.types import SkipSet

LLAMA = "llama"


class PassLaunches(Record):
    """Of one kind of pass: of each attention and MLP, and of all that is no layer."""

    attention: Count
    mlp: Count
    rest: Count


class ArchitectureLaunches(Record):
    """Of an architecture.

    Attributes:
        norm: of one norm.
        rope: by which an attention without rope has fewer.
        prefill, decode: of the passes.
    """

    norm: Count
    rope: Count = 0
    prefill: PassLaunches
    decode: PassLaunches


class LaunchTable(Record):
    """launches.toml.

    Attributes:
        versions: of the packages whose code was counted.
        architectures: model_type → its launches.
    """

    versions: dict[str, str]
    architectures: dict[str, ArchitectureLaunches]


@dataclass(frozen=True, slots=True)
class StandIn:
    """A map in the place of what is skipped.

    Attributes:
        products: matrices that it multiplies by.
        is_normed: it reads through the sublayer's norm; a bias reads nothing, and a run's map the stream.
    """

    products: int
    is_normed: bool

    def launches(self, norm: int) -> int:
        """Its norm, its products, its bias and its addition to the stream; a bias is added at once."""
        return norm * self.is_normed + self.products + (2 if self.products else 1)


@functools.cache
def table() -> LaunchTable:
    """launches.toml."""
    text = resources.files("pipeline.evals.predict").joinpath("launches.toml").read_text(encoding="utf-8")
    return records.parse(LaunchTable, json.dumps(tomllib.loads(text)).encode(), Path("launches.toml"))


def is_counted(model_type: object) -> bool:
    """Whether an architecture's own launches were counted; where not, Llama's stand for them."""
    return model_type in table().architectures


def count(config: Config, skip: SkipSet, decode: bool, stand_ins: Iterable[StandIn] = ()) -> int:
    """Kernels of one pass of a variant.

    Args:
        config: of the model.
        skip: what is left out, with its norms and its additions to the stream.
        decode: whether it decodes a token on a cache; else it is a prefill.
        stand_ins: the maps of the variant's compensation.
    """
    own = table().architectures.get(str(config.get("model_type")), table().architectures[LLAMA])
    one = own.decode if decode else own.prefill
    layers = costs.sizes(config).layers
    without_rope = {i for i, has_rope in enumerate(config.get("no_rope_layers") or ()) if not has_rope}
    attention = sum(
        one.attention - own.rope * (i in without_rope) for i in range(layers) if i not in skip.attention
    )
    mlp = (layers - len(skip.mlp)) * one.mlp
    return one.rest + attention + mlp + sum(stand_in.launches(own.norm) for stand_in in stand_ins)
