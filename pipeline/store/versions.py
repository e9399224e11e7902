"""Versions of installed packages, for the records that say how something came to be."""

from __future__ import annotations

import importlib.metadata
import importlib.util


def version(distribution: str) -> str | None:
    """The installed version; None where the package is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent package is missing, or it was imported without a spec
        return False


def versions(*distributions: str) -> dict[str, str]:
    """Name → version of those that are installed."""
    installed = {name: version(name) for name in distributions}
    return {name: number for name, number in installed.items() if number is not None}
