"""The server as a child process: when it is stopped, no process, port or shared memory is left."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx
import tritonclient.http as client
from tritonclient.utils import InferenceServerException

from pipeline.ship.ports import HOST, Ports
from pipeline.ship.triton import homes, http
from pipeline.ship.triton.wheel import Wheel
from pipeline.store.processes import end_with_parent, kill_group
from pipeline.types import Failed, first_line

STANDIN = Path(__file__).with_name("standin.py")
STOOD_IN = ("onnxruntime", "tensorrt")
LOAD_RATE = 50e6
"""Bytes a second that a model is hashed and loaded with, on a slow disk."""
HARMLESS = ("CudaDriverHelper", "NVML", "DCGM", "CUDA memory pool")
"""Complaints about the missing GPU."""


class Server:
    """A Triton server on this machine, for a model repository that `pipeline ship` wrote.

    Args:
        wheel: the environment that it runs in.
        repository: the model repository.
        models: those that are loaded; load and unload stay possible (explicit model control).
        ports: where it listens, on 127.0.0.1 only.
        log: the file that its output goes to; by default one in its temporary folder, gone when it stops.

    Raises:
        UserError: a port is taken.
        Failed: it did not become ready; the message holds the end of its log.
    """

    def __init__(
        self,
        wheel: Wheel,
        repository: Path,
        models: Sequence[str],
        ports: Ports | None = None,
        log: Path | None = None,
    ) -> None:
        self.wheel, self.repository, self.models = wheel, repository, list(models)
        self.ports = (ports or Ports()).fixed()
        self.http, self.grpc = f"http://{HOST}:{self.ports.http}", f"{HOST}:{self.ports.grpc}"
        self.metrics = f"http://{HOST}:{self.ports.metrics}/metrics"
        self.process: subprocess.Popen[bytes] | None = None
        self._given_log = log
        self._claim()

    def _claim(self) -> None:
        self.home = homes.claim()
        self.folder, self.shm_prefix = self.home.folder, self.home.shm_prefix
        self.log = self._given_log or self.folder / "server.log"

    def __enter__(self) -> Self:
        try:
            self._start("wb")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def restart(self) -> None:
        """Starts it anew on the same ports, once what was left of it is gone; a log of the user's goes on.

        Raises:
            Failed: it did not become ready.
        """
        self.stop()
        self._claim()
        self._start("ab")

    def _start(self, log_mode: Literal["wb", "ab"]) -> None:
        bytes_to_load = sum(file.stat().st_size for file in self.repository.rglob("*") if file.is_file())
        seconds = 120 + bytes_to_load / LOAD_RATE
        self._install_backends()
        with self.log.open(log_mode) as out:
            self.process = subprocess.Popen(
                self._command(),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.wheel.environment(),
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGTERM, os.getpid()),
            )
        until = time.monotonic() + seconds
        while not self.is_healthy():
            if self.process.poll() is not None:
                code, reason = self.process.returncode, self.reason()
                raise Failed(f"the Triton server ended with {code} before it was ready: {reason}")
            if time.monotonic() > until:
                raise Failed(f"the Triton server was not ready after {seconds:.0f} s: {self.reason()}")
            time.sleep(0.05)

    def is_healthy(self) -> bool:
        """Whether the server says that it and its models are ready. A crashed Python model says so too."""
        try:
            return http.get(f"{self.http}/v2/health/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def is_ready(self, model: str) -> bool:
        """Whether the server says that a model is ready. One whose process has died is ready to it, too."""
        try:
            answer = http.get(f"{self.http}/v2/models/{model}/ready")
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    def stub(self, model: str) -> int | None:
        """Process id of a Python model; None where it has no process."""
        candidates = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
        return next((process for process in candidates if self.is_stub(process, model)), None)

    def is_stub(self, process: int, model: str) -> bool:
        """Whether a process is there, a child of this server, and runs this model."""
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes()  # empty, once it has ended
            if f"/{model}/".encode() not in words or self.shm_prefix.encode() not in words:
                return False
            state, parent = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            return False
        return state != "Z" and self.process is not None and int(parent) == self.process.pid

    def reload(self, model: str, seconds: float = 30) -> None:
        """Unloads a model, waits until it is gone, and loads it again. Its process is killed first.

        A process that hangs would never let go of what is in it, and Triton would wait for it.

        Args:
            model: its name.
            seconds: to wait for it to be gone.

        Raises:
            Failed: the server did not do it; it may the next time.
        """
        address = self.http.removeprefix("http://")
        if self.is_ready(model) and (process := self.stub(model)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            with client.InferenceServerClient(address, network_timeout=120) as triton:
                triton.unload_model(model)
                until = time.monotonic() + seconds
                while triton.is_model_ready(model) and time.monotonic() < until:
                    time.sleep(0.1)
                triton.load_model(model)
        except (InferenceServerException, OSError) as error:
            raise Failed(f"{model} was not loaded again: {first_line(error)}") from error

    def stop(self, grace: float = 6) -> None:
        """SIGTERM, time for the models to unload, SIGKILL for all its processes; shared memory is removed."""
        process, self.process = self.process, None
        if process is not None:
            if process.poll() is None:
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            kill_group(process.pid)  # the stubs are in it
            process.wait(10)
        self.home.remove()

    def tail(self, lines: int = 40) -> str:
        """The end of the server's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    def reason(self) -> str:
        """The last complaint in the log."""
        lines = [line for line in self.tail(200).splitlines() if not any(word in line for word in HARMLESS)]
        complaints = [line for line in lines if line.startswith(("E", "Signal (")) or "rror:" in line]
        return (complaints or ["no reason in its log"])[-1]

    def _install_backends(self) -> None:
        """Puts the Python backend, its stub (the wheel keeps it apart) and the stand-ins into one folder."""
        python = self.folder / "backends" / "python"
        python.mkdir(parents=True)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):  # Triton refuses links here
            shutil.copy(self.wheel.root / "backends" / "python" / name, python / name)
        shutil.copy(self.wheel.stub, python)
        (python / self.wheel.stub.name).chmod(0o755)
        for name in STOOD_IN:
            (self.folder / "backends" / name).mkdir()
            shutil.copy(STANDIN, self.folder / "backends" / name / "model.py")

    def _linked_repository(self) -> Path:
        """The repository by a path without spaces and non-ASCII letters.

        Triton starts a Python model through a shell that splits the path, and in C's locale. With such a path
        the server waits for ever.
        """
        path = self.repository.resolve()
        if shlex.quote(str(path)) == str(path):
            return path
        link = self.folder / "models"
        link.symlink_to(path)
        return link

    def _command(self) -> list[str]:
        root, ports = self.wheel.root, self.ports
        addresses = {"http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics}
        return [
            str(root / "bin" / "tritonserver"),
            f"--model-repository={self._linked_repository()}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--cache-directory={root / 'caches'}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            *(f"--{name}-address={HOST}" for name in addresses),
            *(f"--{name}-port={port}" for name, port in addresses.items()),
            "--http-thread-count=16",
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            "--exit-timeout-secs=5",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
        ]
