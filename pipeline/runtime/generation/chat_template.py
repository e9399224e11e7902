"""A model's chat template, rendered as transformers renders it, in a process that may be killed.

`template_process` runs there, in jinja2's sandbox. It starts at the first rendering (a tenth of a second) and
stays, so that each further one takes a millisecond. No library renders Jinja within bounds of time; a pool of
`concurrent.futures` would import this whole process anew, and cannot end one worker alone.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError

SECONDS = 2.0
"""Of the processor's time, and of a clock on the wall, that a rendering may take."""
PATIENCE = 10.0
"""Seconds on the wall that it gets on a machine too busy to give it its two."""
START = 60.0
"""Seconds until the process must be up."""
INPUT = 32 * 10**6
"""Bytes that template and messages may have together."""
_ROOT = Path(__file__).parents[3]
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    from pipeline.runtime.generation.template_process import serve
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
else:
    serve()
"""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables.

    Args:
        template: Jinja, as the model's authors published it.
        variables: what JSON holds.

    Raises:
        UserError: it is no template, refuses the variables, or takes more than 2 s, 512 MB or 1,000,000
            characters.
    """
    try:
        return _process.render(template, variables)
    except _Refused as error:
        raise UserError(f"the model's chat template refuses these messages: {error}") from None


class _Refused(Exception):
    """Why there is no text, in one line."""


class _Ended(Exception):
    """The process is gone."""


class _TemplateProcess:
    """The process, and whose turn it is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        line = json.dumps({"template": template, "variables": variables}).encode() + b"\n"
        if len(line) > INPUT:
            raise _Refused(f"they have {len(line):,} bytes with the template; {INPUT:,} at most")
        with self.lock:
            try:
                answer = self._ask(line)
            except _Ended:  # between two renderings, with whatever its user killed
                try:
                    answer = self._ask(line)
                except _Ended:
                    raise _Refused("rendering it ended its process") from None
        if "error" in answer:
            raise _Refused(answer["error"])
        return answer["text"]

    def _ask(self, line: bytes) -> dict[str, str]:
        """One rendering; whatever stops it stops the process, so that no answer is left in its pipe."""
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
            return _read(process, SECONDS, PATIENCE)
        except BrokenPipeError:
            self.stop()
            raise _Ended from None
        except BaseException:
            self.stop()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is not None:
            return self.process
        paths = [*(str(Path.cwd() / path) for path in sys.path if path), str(_ROOT)]
        command = [_interpreter(), "-I", "-S", "-c", _PROGRAM, json.dumps(paths)]
        try:
            self.process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the command alone, whose end it sees
            )
            up = _read(self.process, START, START)
        except (OSError, _Ended):
            raise _Refused(f"{command[0]} does not start, which would render it") from None
        if "error" in up:
            raise _Refused(f"it cannot be rendered here: {up['error']}")
        return self.process

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    def forget(self) -> None:
        """After a fork: the process is the parent's."""
        self.lock, self.process = threading.Lock(), None


def _read(process: subprocess.Popen[bytes], seconds: float, patience: float) -> dict[str, str]:
    """The process's next line.

    Raises:
        _Ended: it is gone.
        _Refused: it took too long.
    """
    assert process.stdout is not None
    file, line = process.stdout.fileno(), bytearray()
    begin, spent = time.monotonic(), _processor_seconds(process.pid)
    while not line.endswith(b"\n"):
        if not select.select([file], [], [], 0.05)[0]:
            passed = time.monotonic() - begin
            busy = _processor_seconds(process.pid) - spent
            if passed > patience or min(passed, busy + 0.1) > seconds:
                raise _Refused(f"it takes over {seconds:g} s")
            continue
        piece = os.read(file, 1 << 20)
        if not piece:
            raise _Ended
        line += piece
    answer: dict[str, str] = json.loads(line)
    return answer


def _processor_seconds(pid: int) -> float:
    """What a child has had of the processor."""
    clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of the process, as clock_getcpuclockid(3) makes it
    try:
        return time.clock_gettime(clock)
    except OSError:  # it has just ended; its pipe will say so
        return 0.0


def _interpreter() -> str:
    """The Python that runs this process's code; Triton's stub embeds one, and is none itself."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folders = (Path(prefix) / "bin" for prefix in (sys.exec_prefix, sys.base_exec_prefix))
    for path in (Path(sys.executable or "/"), *(folder / name for folder in folders)):
        if path.name.startswith("python") and os.access(path, os.X_OK):
            return str(path)
    return name


_process = _TemplateProcess()
atexit.register(_process.stop)
os.register_at_fork(after_in_child=_process.forget)
