"""`make demo` runs just the commands that it prints."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.cli.commands import app

SCRIPT = Path(__file__).parents[2] / "runs" / "demo.sh"


@pytest.mark.parametrize("has_rtx", [True, False])
def test_what_is_printed_is_what_is_run(has_rtx: bool, tmp_path: Path) -> None:
    stubs = {
        "pipeline": "#!/usr/bin/env python3\nimport json, os, sys\n"
        'print(json.dumps(sys.argv[1:]), file=open(os.environ["LOG"], "a"))\n'
        'assert os.environ["PIPELINE_MODEL"] == "SmolLM2-135M-Instruct"\n',
        "python": f"#!/bin/sh\nexit {0 if has_rtx else 1}\n",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    others = {**os.environ, "PIPELINE_MODEL": "another"}  # the demo is of its own model
    environment = {**others, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, env=environment, check=True)
    ran = [json.loads(line) for line in log.read_text().splitlines()]
    printed = [shlex.split(line)[2:] for line in done.stdout.splitlines() if line.startswith("$ pipeline ")]
    assert printed == ran and len(ran) >= 13
    assert "$ export PIPELINE_MODEL=SmolLM2-135M-Instruct" in done.stdout.splitlines()
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {command for command, *_ in ran} <= known
    assert ("build-engine" in {command for command, *_ in ran}) == has_rtx
    assert ("no engine: TensorRT-RTX is not installed" in done.stdout) != has_rtx
