"""Skip sets that others published: calib/published/*.toml, one file a model, each set with its source.

A model is known by its id of the hub, or by another id of the same weights. A project's own calib/published
comes first, then that of this checkout, then that of the installed package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import store
from pipeline.store import markup
from pipeline.store.records import NumLayers
from pipeline.types import SkipSet, UserError

SetKind = Literal["attn", "mlp", "block", "any"]
"""`any`: attention and MLP sublayers, not of the same layers."""
_FORM = ConfigDict(extra="forbid", frozen=True, strict=True)
_Words = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""One line: control characters would move a terminal's cursor."""
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=80)]


class PublishedSource(BaseModel):
    """Where sets were printed.

    Attributes:
        work: authors, title and number of the paper.
        where: the paper's page, or repository and commit, that the sets were read in.
        rule: what chose them.
        numbering: how the source counts layers; here they count from 0.
        inferred: what the source leaves open, and how it was settled.
    """

    model_config = _FORM
    work: _Words
    where: _Words
    rule: _Words
    numbering: _Words
    inferred: _Words | None = None


class SetEntry(BaseModel):
    """One set, as the file has it.

    Attributes:
        name: of the set.
        skip: its name as a skip set.
        source: a key of the file's sources.
        place: table, file or line.
        printed: the layers as the source prints them, where that is one line.
        measured: what the source measured of it, as it prints that.
        rule: what chose it, where that is not the source's own rule.
    """

    model_config = _FORM
    name: _Name
    skip: _Words
    source: str
    place: _Words
    printed: _Words | None = None
    measured: _Words | None = None
    rule: _Words | None = None


class PublishedFile(BaseModel):
    """A file of calib/published.

    Attributes:
        model: its id of the hub.
        aliases: other ids of the same weights.
        layers: L.
        sources: key → where sets were printed.
        sets: the sets.
    """

    model_config = _FORM
    model: _Id
    aliases: list[_Id] = []
    layers: NumLayers
    sources: dict[str, PublishedSource]
    sets: Annotated[list[SetEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for entry in self.sets:
            if entry.source not in self.sources:
                raise ValueError(f"{entry.name}: no source {entry.source!r:.80}")
            skip = SkipSet.parse(entry.skip).within(self.layers)
            if not skip:
                raise ValueError(f"{entry.name}: leaves nothing out")
            if skip.name != entry.skip:
                raise ValueError(f"{entry.name}: the skip set {entry.skip} is written {skip.name}")
        return self


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A skip set that somebody published.

    Attributes:
        entry: what the file says of it.
        source: where it was printed.
        skip: what goes.
    """

    entry: SetEntry
    source: PublishedSource
    skip: SkipSet

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def kind(self) -> SetKind:
        """What goes: attention alone, MLPs alone, both of each layer, or any."""
        if self.skip.attention == self.skip.mlp:
            return "block"
        return "any" if self.skip.attention and self.skip.mlp else "attn" if self.skip.attention else "mlp"

    @property
    def sublayers(self) -> int:
        """How many sublayers go."""
        return len(self.skip.attention) + len(self.skip.mlp)

    @property
    def count(self) -> int:
        """How many of its kind go; of any, how many sublayers."""
        return len(self.skip.mlp) if self.kind == "block" else self.sublayers

    @property
    def rule(self) -> str:
        """What chose it, in words."""
        return self.entry.rule or self.source.rule

    @property
    def origin(self) -> str:
        """Who printed it, and where, in words."""
        return f"{self.source.work}: {self.entry.place}; {self.source.where}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "count": self.count,
            "sublayers": self.sublayers,
            "skip": self.skip.name,
            "attention": self.skip.attention,
            "mlp": self.skip.mlp,
            "rule": self.rule,
            "measured": self.entry.measured,
            "source": self.source.work,
            "place": self.entry.place,
            "where": self.source.where,
            "printed": self.entry.printed,
            "numbering": self.source.numbering,
            "inferred": self.source.inferred,
        }


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """What was published of one model.

    Attributes:
        model: its id of the hub.
        aliases: other ids of the same weights.
        layers: L.
        sets: the sets.
    """

    model: str
    aliases: tuple[str, ...]
    layers: int
    sets: tuple[PublishedSet, ...]


def folders(project: store.Project | None = None) -> list[Path]:
    """Where sets are looked for, in this order: the project, this checkout, the installed package.

    Args:
        project: by default the current directory.
    """
    package = Path(__file__).parents[1]
    candidates = [(project or store.Project()).published(), package / "calib" / "published_sets"]
    if (package.parent / "pyproject.toml").is_file():  # a checkout, not site-packages
        candidates.insert(1, store.Project(package.parent).published())
    return [folder for folder in candidates if folder.is_dir()]


def read(path: Path) -> PublishedModel:
    """What a file of calib/published says.

    Raises:
        UserError: it is no TOML, has an unknown key or another form, a set that does not fit the model, or a
            name twice.
    """
    tables = markup.read_toml(path)
    try:
        file = PublishedFile.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f" at {place!r:.200}" if place else ""
        raise UserError(f"{path}{where}: {first['msg'].removeprefix('Value error, ')}") from None
    sets = tuple(
        PublishedSet(entry, file.sources[entry.source], SkipSet.parse(entry.skip)) for entry in file.sets
    )
    _refuse_doubles(sets, path)
    return PublishedModel(file.model, tuple(file.aliases), file.layers, sets)


def _refuse_doubles(sets: Iterable[PublishedSet], where: object) -> None:
    name, times = Counter(one.name for one in sets).most_common(1)[0]
    if times > 1:
        raise UserError(f"{where}: a set {name} stands there twice")


def models(project: store.Project | None = None) -> list[PublishedModel]:
    """The models that sets are known of, the project's first; of two files of one name its own is read.

    Raises:
        UserError: as `read`.
    """
    files: dict[str, Path] = {}
    for folder in folders(project):
        for file in sorted(folder.glob("*.toml")):
            files.setdefault(file.name, file)
    return [read(file) for file in files.values()]


def joined(models: Sequence[PublishedModel]) -> PublishedModel:
    """What several files say of one model, as one; of two sets of one name the first.

    Args:
        models: of the files, in their order; one at least.

    Raises:
        UserError: they differ in the number of layers.
    """
    first = models[0]
    sets: dict[str, PublishedSet] = {}
    for one in models:
        if one.layers != first.layers:
            raise UserError(
                f"two files of calib/published differ: {first.model} has {first.layers} layers, "
                f"{one.model} {one.layers}"
            )
        for each in one.sets:
            sets.setdefault(each.name, each)
    names = dict.fromkeys(name for one in models for name in (one.model, *one.aliases))
    aliases = tuple(name for name in names if name != first.model)
    return PublishedModel(first.model, aliases, first.layers, tuple(sets.values()))
