from __future__ import annotations

import importlib.metadata

import pytest

from pipeline import store


def test_the_versions_are_those_of_the_installed_packages() -> None:
    assert store.version("numpy") == importlib.metadata.version("numpy")
    assert store.version("no-such-package") is None
    assert store.versions("numpy", "no-such-package") == {"numpy": store.version("numpy")}


@pytest.mark.parametrize(
    ("module", "is_there"),
    [
        ("json", True),
        ("json.decoder", True),
        ("no_such_a", False),
        ("no_such_a.part", False),
        ("json.no", False),
    ],
)
def test_whether_a_module_is_installed(module: str, is_there: bool) -> None:
    assert store.is_installed(module) is is_there
