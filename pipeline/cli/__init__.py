"""The command. Each command parses its options, calls its stage and prints. It imports its stage inside the function."""

# Importing a file registers its commands; the order is that of `pipeline --help`.
from pipeline.cli import graphs, calib, engines, evals, report, sweep, generate, ship, show, doctor  # noqa: F401, I001
from pipeline.cli.app import app, main

__all__ = ["app", "main"]
