"""How many artefacts are timed at once."""

from __future__ import annotations

import pytest

from runs.gpu.groups import Group, Room, groups

SIZES = [10.0, 8.0, 7.0, 9.0]


def test_all_at_once_where_there_is_room() -> None:
    assert groups(SIZES, Room(None, 1e6), True) == [Group((0, 1, 2, 3), True)]


@pytest.mark.parametrize(
    ("device", "with_torch", "expected"),
    [
        (34 * 1.1, False, [Group((0, 1, 2, 3), False)]),
        (33 * 1.1, False, [Group((0, 1, 2), False), Group((0, 3), False)]),
        (50 * 1.1, True, [Group((0, 1, 2), True), Group((0, 3), True)]),
        (34 * 1.1, True, [Group((0, 2), True), Group((0, 1), False), Group((0, 3), False)]),
    ],
)
def test_each_beside_the_base_where_there_is_less(
    device: float, with_torch: bool, expected: list[Group]
) -> None:
    found = groups(SIZES, Room(device + 1e-9, 1e6), with_torch)
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert sorted(one for group in found for one in group.members[1:]) == [1, 2, 3]


def test_what_fits_nowhere_says_so() -> None:
    (first, *_) = found = groups(SIZES, Room(15.0, 1e6), True)
    assert len(found) == 3 and all(group.lack for group in found)
    assert "do not fit into memory at once" in str(first.lack)


def test_the_host_is_asked_too() -> None:
    assert all(group.lack for group in groups(SIZES, Room(1e6, 30.0), False))


def test_a_base_alone() -> None:
    assert groups([10.0], Room(None, 1e6), True) == [Group((0,), True)]
