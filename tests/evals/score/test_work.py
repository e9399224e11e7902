from __future__ import annotations

import pytest

from pipeline.evals.score.work import Work


def test_shares_add_up_to_the_whole() -> None:
    whole = Work(tokens=1001, padding=7, passes=13, asked=5000, seconds=2.25)
    for count in (1, 3, 7, 999):
        shares = [Work.of(whole.share(count).numbers()) for _ in range(count)]
        assert Work.total(shares).counts() == whole.counts()
    assert whole.counts()["seconds"] == 2 and Work.total([]) == Work()


def test_what_came_after() -> None:
    later = Work(10, 2, 3, 20, 1.0).since(Work(4, 2, 1, 5, 0.5))
    assert later == Work(6, 0, 2, 15, 0.5)


@pytest.mark.parametrize("numbers", [None, [], [1, 2], [1, 2, 3, 4, "5"], [1, 2, 3, 4, -5], [1e400] * 5])
def test_numbers_of_another_form_count_nothing(numbers: object) -> None:
    assert Work.of(numbers) == Work()
