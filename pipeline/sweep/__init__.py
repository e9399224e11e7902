"""Stage: a recipe → the whole grid of variants through all stages, resumable, on one machine or on Ray.

A job is one `pipeline …` command with files in and files out, run as a process of its own: it can be repeated by hand, it is
killed safely, and its exit code tells what happened. This room decides which jobs there are (`plan`), which are done
(`done`), and runs the rest (`sweep`, `ray_pool`); the ledger is what it leaves behind.
"""

from __future__ import annotations
