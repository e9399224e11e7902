"""The command. A command is a dozen lines: parse, call its stage, print. Each imports its stage inside the function."""

from pipeline.cli import deploy, learn, look, make, measure, report, scores, sweep  # noqa: F401 - importing a file registers its commands
from pipeline.cli.app import app, main

__all__ = ["app", "main"]
