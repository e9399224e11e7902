"""What evo makes of a search, and where it begins."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.store.records import EvoGeneration, EvoRecord, TextSource
from pipeline.types import SkipSet, UserError
from tests.known_statistics import Known, chosen, evolution


class Kept(Known):
    """Says what it was asked."""

    def evolved(
        self, space: Space, start: Callable[[], SkipSet], seed: int, options: EvoOptions
    ) -> EvoRecord:
        self.asked = (space, start(), seed, options)
        return super().evolved(space, start, seed, options)


def start_of(kind: str, count: int, **options) -> SkipSet:
    statistics = Kept()
    chosen("evo", kind, count, statistics=statistics, evo=EvoOptions(**options), seed=5)
    space, start, seed, _ = statistics.asked
    assert start in space and seed == 5
    return start


def test_it_begins_with_cosine_or_with_what_is_named() -> None:
    assert start_of("mlp", 2).name == chosen("cosine", "mlp", 2).skip.name == "mlp1_4"
    assert start_of("mlp", 2, start="last").name == "mlp4-5"
    assert start_of("block", 2, start="angular") == chosen("angular", "block", 2).skip
    assert start_of("attn", 3, start="attn0_2_4").name == "attn0_2_4"


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("evo", "would begin with itself"),
        ("mlp1", "--start mlp1 does not leave out 2 MLPs"),
        ("attn1-2", "--start attn1-2 does not leave out 2 MLPs"),
        ("mlp5-6", "--start is a rule .* or a skip set: layer 6 does not exist"),
        ("best", "--start is a rule .*last, last-but-final.* or a skip set: cannot read"),
        ("angular", "take --kind block, not mlp"),
    ],
)
def test_a_start_that_is_none_is_refused(start: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen("evo", "mlp", 2, evo=EvoOptions(start=start))


def test_other_rules_refuse_its_options() -> None:
    with pytest.raises(UserError, match="--minutes belongs to --select evo, and the rule is cosine"):
        chosen("cosine", "mlp", 2, evo=EvoOptions(minutes=1.0))


def test_the_choice_is_the_best_that_was_measured() -> None:
    record = evolution(Space.by_count("mlp", 1, 6), "mlp0", 0, "minutes")
    record = record.replaced(
        generations=(
            EvoGeneration(best="mlp3", value=0.5, measured=(("mlp3", 0.5), ("mlp1", 0.9))),
            EvoGeneration(best="mlp3", value=0.5, measured=(("mlp2", 0.6), ("mlp5", 2.0))),
        ),
        texts=TextSource(origin="words"),
    )

    class Done(Known):
        def evolved(self, *_: object) -> EvoRecord:
            return record

    choice = chosen("evo", "mlp", 1, statistics=Done())
    assert choice.skip.name == "mlp3" and choice.chosen == (("mlp3", 0.5),)
    names = [skip.name for skip, _ in choice.runners_up]
    assert names == ["mlp3", "mlp2", "mlp1", "mlp0", "mlp5"]
    assert choice.stays == tuple((skip.name, value) for skip, value in choice.runners_up[1:])
    assert choice.note.startswith("start: 1.0000 (mlp0); 2 generations, its minutes were over")
    assert record.idle == 1 and record.until(1).idle == 0 and record.until(1).best == ("mlp3", 0.5)
