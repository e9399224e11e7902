"""What `pipeline export` leaves out, by its options: --skip with --frac, --count, --layers or --select."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.calib import published, selectors
from pipeline.calib.evolution.options import EvoOptions
from pipeline.types import BASE, KINDS, SkipSet, UserError, count_of, parse_layers


@dataclass(frozen=True, slots=True)
class SkipOptions:
    """The options, as they were typed.

    Attributes:
        skip: a kind (attn, mlp, block) with one of frac, count or layers; or a whole skip set,
            'attn20-28+mlp25-31'.
        frac, count, layers: how many, or which.
        select: the rule; `last` where none is named.
        seed: of rules that draw; 0 where none was typed.
        evo: how `evo` searches.
        set_name: of a published set; it may stand without skip.
        model: its name, by which published sets are found.
    """

    skip: str | None = None
    frac: float | None = None
    count: int | None = None
    layers: str | None = None
    select: str | None = None
    seed: int | None = None
    evo: EvoOptions = field(default_factory=EvoOptions)
    set_name: str | None = None
    model: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether they say nothing of what is left out."""
        return self.skip is None and self.set_name is None

    def skip_set(self, num_layers: int, statistics: selectors.ModelStatistics | None = None) -> SkipSet:
        """The skip set that they mean.

        Args:
            num_layers: L.
            statistics: of the model, for selectors that need some.

        Raises:
            UserError: options that contradict or lack each other, layers that do not exist, or statistics
                that are not there.
        """
        amounts = self._amounts()
        self.evo.belong_to(self.select or "last")
        if self.seed is not None:
            selectors.refuse_unread("seed", self.select or "last", self.evo.start)
        if self.set_name is not None:
            return self._named(num_layers, statistics or selectors.ModelStatistics())
        if self.skip is None or self.skip not in KINDS:
            return self._whole(amounts).within(num_layers)
        if len(amounts) != 1:
            what = " and ".join(amounts) if amounts else "none"
            raise UserError(
                f"--skip {self.skip} takes exactly one of --frac, --count and --layers; given: {what}"
            )
        if self.layers is not None:
            if self.select:
                raise UserError("--layers names the layers already; leave --select out")
            return SkipSet.of(self.skip, parse_layers(self.layers)).within(num_layers)
        count = self.count if self.count is not None else count_of(self.frac or 0.0, num_layers)
        question = selectors.Question(
            self.skip,
            count,
            num_layers,
            statistics or selectors.ModelStatistics(),
            self.seed or 0,
            self.evo,
            model=self.model,
        )
        return selectors.choose(self.select or "last", question).skip

    def prove_published(self) -> None:
        """Refuses a published set that is not known, before a checkpoint is fetched or copied for it.

        Raises:
            UserError: as `skip_set`.
        """
        if self.select != "published" or self.model is None:
            return
        layers = published.layers_of(self.model)
        if layers is None:  # it is not here yet
            layers = published.find(published.ids_of(self.model)).layers
        self.skip_set(layers)

    def _named(self, num_layers: int, statistics: selectors.ModelStatistics) -> SkipSet:
        """The published set of that name, which must be what --skip with --frac or --count says beside it."""
        if self.select != "published":
            raise UserError(f"--set {self.set_name} names a published set: add --select published")
        if self.layers is not None or self.skip not in (None, *KINDS):
            extra = f"--skip {self.skip}" if self.layers is None else "--layers"
            raise UserError(f"--set {self.set_name} names its layers already; leave {extra} out")
        sets = published.find(published.ids_of(self.model, statistics.folder), num_layers)
        return published.Wanted(self.skip, self.count, self.frac, self.set_name).one(sets).skip

    def _amounts(self) -> list[str]:
        """Those of --frac, --count and --layers that were typed."""
        options = {"--frac": self.frac, "--count": self.count, "--layers": self.layers}
        return [name for name, value in options.items() if value is not None]

    def _whole(self, amounts: list[str]) -> SkipSet:
        """Without a kind: the base, or the skip set that --skip spells out."""
        extra = amounts[0] if amounts else "--select" if self.select else None
        if self.skip is None:
            if extra:
                other = ", or --set NAME" if self.select == "published" else ""
                raise UserError(f"{extra} needs --skip attn, mlp or block{other}")
            return BASE
        if extra:
            raise UserError(f"--skip {self.skip} names its layers already; leave {extra} out")
        return SkipSet.parse(self.skip)
