from __future__ import annotations

import importlib.metadata

from pipeline import store


def test_the_versions_are_those_of_the_installed_packages() -> None:
    assert store.version("numpy") == importlib.metadata.version("numpy")
    assert store.version("no-such-package") is None
    assert store.versions("numpy", "no-such-package") == {"numpy": store.version("numpy")}
