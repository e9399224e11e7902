"""Whole searches: the best of all masks, and the same whether they were stopped or not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.calib import selectors
from pipeline.calib.compensation.moment_files import HELD_OUT
from pipeline.calib.evolution import divergences, options, search, selection
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.models import checkpoint, texts
from pipeline.models.reference import Reference
from pipeline.store.records import CompensationSettings, EvoRecord, SublayerTimes, read
from pipeline.types import SkipSet
from tests import tiny
from tests.calib.evolution.test_divergences import whole_passes

LAYERS, LENGTH = 6, 18
SPACE, START = Space.by_count("mlp", 2, LAYERS), SkipSet((), (0, 1))


@pytest.fixture
def folder(workdir: Path) -> Path:
    tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=LAYERS)
    tiny.tokenizer(workdir / "models" / "tiny")
    return checkpoint.resolve("models/tiny").folder


def run(folder: Path, space: Space = SPACE, start: SkipSet = START, seed: int = 0, **limits) -> EvoRecord:
    return search.EvoSearch(folder, texts.OWN, 4, LENGTH).run(space, start, seed, EvoOptions(**limits))


def files() -> list[Path]:
    return sorted(Path("calib/tiny").glob("evo-*.json"))


def masks(space: Space) -> list[SkipSet]:
    """All of them."""
    every = [
        SkipSet(attention, mlp)
        for a in range(LAYERS + 1)
        for m in range(LAYERS + 1)
        for attention in itertools.combinations(range(LAYERS), a)
        for mlp in itertools.combinations(range(LAYERS), m)
    ]
    return [skip for skip in every if skip in space]


TIMED = Space.by_time("any", SublayerTimes(whole=12.0, attn=1.0, mlp=2.5), 2.6, LAYERS)


@pytest.mark.parametrize(
    ("space", "start"), [(SPACE, START), (TIMED, SkipSet((0, 1, 2)))], ids=["by count", "by time"]
)
def test_the_best_of_all_masks_is_reached(
    space: Space, start: SkipSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whole passes of every mask; the offspring of a first comparison are all measured to the end."""
    monkeypatch.setattr(selection, "FINALISTS", selection.OFFSPRING)
    record = run(folder, space, start)
    tokens, _ = texts.cut(folder, texts.OWN, LENGTH, 4)
    reference = Reference(folder)
    every = {skip.name: whole_passes(reference, tokens, skip)[0].mean() for skip in masks(space)}
    best = min(every, key=every.__getitem__)
    assert record.best == (best, pytest.approx(every[best], rel=1e-4))
    assert record.measured == pytest.approx({name: every[name] for name in record.measured}, rel=1e-4)
    assert next(iter(record.measured)) == best and record.stopped in ("patience", "exhausted")
    values = [one.value for one in record.generations]
    assert values == sorted(values, reverse=True) and len(record.measured) > 10


def test_a_search_that_goes_on_is_the_one_that_was_not_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "OFFSPRING", 2)
    monkeypatch.setattr(selection, "FINALISTS", 1)
    whole = run(folder, generations=4)
    assert len(whole.generations) == 4 and whole.stopped == "generations"
    (file,) = files()
    assert read(EvoRecord, file) == whole
    file.unlink()
    two = run(folder, generations=2)
    assert two.generations == whole.generations[:2] and two.start_value == whole.start_value
    four = run(folder, generations=4)
    assert four.generations == whole.generations and files() == [file]
    assert run(folder, generations=2).replaced(seconds=0.0) == two.replaced(seconds=0.0)
    other = run(folder, seed=1, generations=4)
    assert other.generations != whole.generations and len(files()) == 2


def test_a_finished_search_is_read_and_the_model_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(folder, generations=2)
    monkeypatch.setattr(search, "Reference", None)
    assert run(folder, generations=2) == record and run(folder, generations=1).best[1] >= record.best[1]


def test_minutes_end_a_search_which_goes_on_with_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "OFFSPRING", 2)
    clock = itertools.count(0.0, 30.0)  # half a minute at each look
    monkeypatch.setattr(search.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(search, "Progress", _NoProgress)
    one = run(folder, minutes=1.0)
    assert one.stopped == "minutes" and one.seconds == 60 and len(one.generations) == 2
    with monkeypatch.context() as patch:
        patch.setattr(search, "Reference", None)
        assert run(folder, minutes=1.0) == one
    more = run(folder, minutes=1e4, generations=4)
    assert more.generations[:2] == one.generations and len(more.generations) == 4
    assert more.stopped == "generations" and more.seconds > 60


class _NoProgress:
    """Looks at no clock."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> _NoProgress:
        return self

    def __exit__(self, *_: object) -> None: ...

    def add_task(self, *_: object, **__: object) -> int:
        return 0

    def update(self, *_: object, **__: object) -> None: ...


def test_a_search_that_was_killed_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "OFFSPRING", 2)
    whole = run(folder, generations=3)
    files()[0].unlink()
    real, calls = selection.next_generation, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(selection, "next_generation", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, generations=3)
    kept = read(EvoRecord, files()[0])
    assert kept.stopped is None and kept.generations == whole.generations[:2]
    assert run(folder, generations=3).generations == whole.generations and len(calls) == 4


def test_a_search_ends_where_nothing_better_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PATIENCE", 2)
    best = run(folder).best[0]
    for file in files():
        file.unlink()
    monkeypatch.setattr(selection, "OFFSPRING", 1)
    record = run(folder, start=SkipSet.parse(best))
    assert record.stopped == "patience" and len(record.generations) == record.idle == 2
    assert record.best == (best, record.start_value)
    alone = run(folder, Space.by_count("mlp", LAYERS, LAYERS), SkipSet.of("mlp", range(LAYERS)))
    assert alone.stopped == "exhausted" and alone.generations == ()
    assert options.GENERATIONS > options.PATIENCE > 2


def test_maps_stand_in_and_are_of_the_text_of_compensate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = CompensationSettings(samples=24, length=16)
    monkeypatch.setattr(search, "MAPS", maps)
    plain, mapped = run(folder, generations=1), run(folder, generations=1, compensated=True)
    assert mapped.maps_of is not None and plain.maps_of is None and len(files()) == 2
    assert mapped.start_value < plain.start_value
    assert sorted(path.stem for path in Path("calib/tiny/moments").glob("*.json")) == [
        f"mlp{k}" for k in range(LAYERS)
    ]
    assert mapped.texts.skipped * (LENGTH - 1) >= (24 + HELD_OUT) * 16 > plain.texts.skipped
    assert mapped.texts.ids != plain.texts.ids


def test_the_request_is_written_with_the_text_and_the_numbers(folder: Path) -> None:
    Path("a.txt").write_text("The grass of the field is green and the sky is blue. " * 60)
    input = texts.TextInput((Path("a.txt"),))
    record = search.EvoSearch(folder, input, 4, LENGTH).run(SPACE, START, 3, EvoOptions(generations=1))
    assert record.texts.origin == ("../../a.txt",) and record.seed == 3 and record.start == "mlp0-1"
    assert (record.kinds, record.front, record.every) == (("mlp",), ((2,),), divergences.EVERY)
    assert record.contents == checkpoint.open_checkpoint(folder).contents
    assert np.isfinite(record.start_value) and record.first == 1


def test_the_rule_gives_the_choice_and_its_runners_up(folder: Path) -> None:
    statistics = selectors.ModelStatistics(folder, samples=4, length=LENGTH)
    evo = EvoOptions(start="mlp0-1", generations=3)
    choice = selectors.choose("evo", selectors.Question("mlp", 2, LAYERS, statistics, 0, evo))
    record = read(EvoRecord, files()[0])
    assert [(skip.name, value) for skip, value in choice.runners_up] == list(record.measured.items())[:20]
    assert choice.runners_up[0] == (choice.skip, record.best[1]) and choice.skip.name == record.best[0]
    again = selectors.choose("evo", selectors.Question("mlp", 2, LAYERS, statistics, 0, evo))
    assert again == choice


def test_a_record_that_was_changed_is_made_again(folder: Path) -> None:
    """Whatever stands there: sets of another cost, texts that are no set, a best that was never measured."""
    record = run(folder, generations=2)
    (file,) = files()
    first, last = record.generations
    unmeasured = next(skip.name for skip in masks(SPACE) if skip.name not in record.measured)
    changed = [
        last.replaced(best="mlp0-2"),
        last.replaced(best="../../x"),
        last.replaced(best="mlp5-1"),
        last.replaced(best=unmeasured),
        last.replaced(value=last.value / 2),
        last.replaced(measured=(("mlp1_1_2", last.value), *last.measured)),
        first.replaced(best=record.start, value=record.start_value + 1),
    ]
    for one in changed:
        store.write_json(file, record.replaced(generations=(first, one)).plain())
        assert run(folder, generations=2).generations == record.generations
        assert read(EvoRecord, file).generations == record.generations


def test_another_search_need_not_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a lock of its own; one that asks for the same waits."""
    whole = selection.next_generation
    record = run(folder, generations=2)
    (file,) = files()
    file.unlink()

    def busy(*arguments):
        monkeypatch.setattr(selection, "next_generation", whole)
        assert run(folder, seed=1, generations=1).generations
        with pytest.raises(BlockingIOError), store.lock(file, wait=False, make=False):
            pass
        return whole(*arguments)

    monkeypatch.setattr(selection, "next_generation", busy)
    assert run(folder, generations=2).generations == record.generations and len(files()) == 2
    assert {path.suffix for path in Path("calib/tiny").iterdir()} == {".json", ".npy"}  # the text is kept
