"""Which of the skip sets that others published is meant: by the model, then by kind and count, or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline import store
from pipeline.calib.published_files import PublishedModel, PublishedSet, SetKind, joined, models
from pipeline.models import origins
from pipeline.store import records
from pipeline.store.records import CheckpointSource
from pipeline.types import UserError, count_of

SET_KINDS: tuple[str, ...] = get_args(SetKind)


def ids_of(typed: str | None, folder: Path | None = None) -> list[str]:
    """What may be the id of a model: its name as it was typed, and what its folder says of where it is from.

    Args:
        typed: as the command line has it; None where the folder alone is known.
        folder: of the checkpoint; None: that which the name means, if any.
    """
    names = [] if typed is None else [typed.partition("@")[0]]
    folder = folder or (None if typed is None else origins.model_folder(typed) or _folder(typed))
    if folder is None:
        return names
    if (folder / store.SOURCE).is_file():
        names.append(records.read(CheckpointSource, folder / store.SOURCE).origin.partition("@")[0])
    if (folder / "config.json").is_file():
        name = records.read_object(folder / "config.json").get("_name_or_path")
        names += [name] if isinstance(name, str) else []
    return names


def layers_of(typed: str) -> int | None:
    """L of the checkpoint that a name means; None where there is none here."""
    folder = origins.model_folder(typed) or _folder(typed)
    if folder is None:
        return None
    layers = records.read_object(folder / "config.json").get("num_hidden_layers")
    return layers if isinstance(layers, int) else None


def _folder(typed: str) -> Path | None:
    return Path(typed) if typed and (Path(typed) / "config.json").is_file() else None


def find(ids: Iterable[str], num_layers: int | None = None) -> PublishedModel:
    """What was published of a model, in whichever files; a project's own sets come first.

    Args:
        ids: what may be its id (`ids_of`).
        num_layers: L, where it is known.

    Raises:
        UserError: of none of them any set is known, or the model has another number of layers.
    """
    known = models(store.Project())
    named = {name.casefold() for name in ids}
    of_it = [one for one in known if {name.casefold() for name in (one.model, *one.aliases)} & named]
    if of_it:
        published = joined(of_it)
        if num_layers not in (None, published.layers):
            raise UserError(
                f"the sets of {published.model} are of {published.layers} layers, "
                f"and this model has {num_layers}"
            )
        return published
    what = f"of {next(iter(ids), 'this model')!r:.80}"
    raise UserError(
        f"no published skip set {what} is known; there are some of "
        f"{', '.join(dict.fromkeys(one.model for one in known))}"
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sets are meant; what is None may be anything.

    Attributes:
        kind: attn, mlp, block, or any.
        count: how many of the kind; of any, how many sublayers.
        frac: in place of the count, a fraction of the layers.
        name: of the set.
    """

    kind: str | None = None
    count: int | None = None
    frac: float | None = None
    name: str | None = None

    @property
    def is_one(self) -> bool:
        """Whether one set is asked for, and not a list."""
        return (self.count, self.frac, self.name) != (None, None, None)

    def matching(self, published: PublishedModel) -> list[PublishedSet]:
        """The sets that are meant.

        Raises:
            UserError: the kind is none, there is no set of that name, or none matches.
        """
        if self.kind not in (None, *SET_KINDS):
            raise UserError(f"{self.kind!r:.40} is not a kind of set; choose from {', '.join(SET_KINDS)}")
        count = self.count if self.frac is None else count_of(self.frac, published.layers)
        sets = [one for one in published.sets if self.name in (None, one.name)]
        if not sets:
            known = ", ".join(one.name for one in published.sets)
            raise UserError(f"no set {self.name!r:.80} of {published.model} is known; there are {known}")
        sets = [one for one in sets if self.kind in (None, one.kind) and count in (None, one.count)]
        if not sets:
            kinds = Counter(f"{one.kind} {one.count}" for one in published.sets)
            what = " ".join(str(part) for part in (self.name, self.kind, count) if part is not None)
            raise UserError(f"no set {what} of {published.model} is known; there are {', '.join(kinds)}")
        return sets

    def one(self, published: PublishedModel) -> PublishedSet:
        """The set that is meant.

        Raises:
            UserError: as `matching`, or several match.
        """
        sets = self.matching(published)
        if len(sets) > 1:
            names = ", ".join(one.name for one in sets)
            raise UserError(f"{len(sets)} sets of {published.model} match; name one with --set: {names}")
        return sets[0]
