"""The packages of the extra `serve`, which shipping and serving need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.types import UserError


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Within it a package is imported. One that is not installed becomes the command that installs it.

    Args:
        what: needs it; the beginning of the message, with its verb.

    Raises:
        UserError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise UserError(f"{what} {missing.name}; run `pip install 'skip-pipeline[serve]'`") from None
