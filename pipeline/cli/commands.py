"""All commands together. Importing a file registers its commands.

The order is that of `pipeline --help`, which is the data flow's.
"""

from pipeline.cli import graphs, calib, heal, compensate, engines, evals, predict, report  # noqa: F401, I001
from pipeline.cli import sweep, generate, ship, listing, show, doctor  # noqa: F401
from pipeline.cli.app import app, main

__all__ = ["app", "main"]
