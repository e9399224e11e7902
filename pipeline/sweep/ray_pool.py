"""Jobs as tasks of a Ray cluster. All nodes see the project's folder under the same path.

Every node offers one `pipeline_device`. A job takes a share of it; a measurement of time takes it whole, so
that nothing runs beside it there. A job whose worker is lost is run again elsewhere: it is a command, which
passes over what is finished.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sweep.jobs import Command, Job
from pipeline.sweep.local import JobProcess, Outcome, environment
from pipeline.types import UserError, first_line

DEVICE = "pipeline_device"
RETRIES = 3
"""Times that a job is run again after its worker was lost."""
OBJECT_STORE = 80_000_000
"""Bytes of Ray's object store: the result of a task is one line, data goes through files."""


@dataclass(frozen=True, slots=True)
class RayTask:
    """What a worker needs to run one job.

    Attributes:
        root: the project's folder.
        logs, stdout: relative to it.
        threads: OMP_NUM_THREADS of the sweep; Ray's own setting is one for each CPU of the task.
    """

    id: str
    command: Command
    root: str
    logs: str
    stdout: str | None
    threads: str | None


def work(task: RayTask) -> Outcome:
    """On a worker: runs one job in the shared folder."""
    root = Path(task.root)
    if not (root / task.logs).is_dir():
        node = os.uname().nodename
        error = f"{root} is not the project's folder on node {node}; share it under that path"
        return Outcome(task.id, error, 0.0)
    os.environ.pop("OMP_NUM_THREADS", None)
    if task.threads:
        os.environ["OMP_NUM_THREADS"] = task.threads
    stdout = root / task.stdout if task.stdout else None
    process = JobProcess(task.id, task.command, root / task.logs, stdout, root)
    try:
        while (outcome := process.ended()) is None:
            time.sleep(0.05)
    finally:
        process.kill()
    return outcome


class RayPool:
    """A cluster.

    Args:
        address: of its head, or 'local' for one of this machine alone, which is ended with the sweep.
        slots: jobs side by side on a node.
        logs: folder of what jobs print.
        accelerator: Ray's name of the GPU that GPU jobs run on; None for any.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or its nodes offer no `pipeline_device`.
    """

    def __init__(self, address: str, slots: int, logs: Path, accelerator: str | None = None) -> None:
        self.ray = _connected(address)
        self.logs, self.accelerator = logs, accelerator
        self.share = int(10_000 / slots) / 10_000  # Ray counts in ten-thousandths
        self.task = self.ray.remote(work)
        self.running: dict[Any, str] = {}
        """Reference to a task's result → job id."""
        self.refused: list[Outcome] = []
        logs.mkdir(parents=True, exist_ok=True)

    def takes(self, job: Job) -> bool:  # noqa: ARG002 - Ray queues what does not fit yet
        """Always."""
        return True

    def start(self, job: Job) -> None:
        """Hands it to Ray, or refuses what no node can run."""
        if problem := self._misfit(job):
            self.refused.append(Outcome(job.id, problem, 0.0))
            return
        options: dict[str, Any] = {"num_cpus": 1, "resources": {DEVICE: 1 if job.exclusive else self.share}}
        options |= {"memory": job.memory} if job.memory else {}
        options |= {"num_gpus": 1} if job.gpu else {}
        options |= {"accelerator_type": self.accelerator} if job.gpu and self.accelerator else {}
        remote = self.task.options(**options, max_retries=RETRIES, scheduling_strategy="SPREAD", name=job.id)
        stdout = str(job.stdout) if job.stdout else None
        threads = os.environ.get("OMP_NUM_THREADS")
        task = RayTask(job.id, job.command, str(Path.cwd()), str(self.logs), stdout, threads)
        self.running[remote.remote(task)] = job.id

    def _misfit(self, job: Job) -> str | None:
        """What the job needs and no node of the cluster has; Ray would wait for it forever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if job.gpu and not any(node.get("GPU", 0) >= 1 for node in nodes):
            return "needs an NVIDIA GPU, and no node of the cluster has one"
        kind = f"accelerator_type:{self.accelerator}"
        if job.gpu and self.accelerator and not any(kind in node for node in nodes):
            gpu = f"needs a GPU of type {self.accelerator} (build.accelerator)"
            return f"{gpu}, and no node of the cluster has one"
        most = max((node.get("memory", 0.0) for node in nodes), default=0.0)
        if job.memory and job.memory > most:
            needed = f"needs about {job.memory / 1e9:.1f} GB of memory"
            return f"{needed}, and the largest node offers {most / 1e9:.1f} GB"
        return None

    def ended(self, wait: float) -> list[Outcome]:
        """The jobs that have ended; waits at most `wait` seconds for one."""
        outcomes, self.refused = self.refused, []
        if not self.running:
            return outcomes
        ready, _ = self.ray.wait(list(self.running), timeout=0 if outcomes else wait)
        if ready:
            ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for reference in ready:
            outcomes.append(self._outcome(reference, self.running.pop(reference)))
        return outcomes

    def _outcome(self, reference: Any, id: str) -> Outcome:
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            # The worker was lost too often, or the task cannot be made there.
            reason = " ".join(str(error).split())[:400]
            return Outcome(id, f"its worker was lost {RETRIES + 1} times: {reason}", 0.0)
        return outcome

    def close(self) -> None:
        """Kills what runs."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running.clear()
        self.ray.shutdown()


def _connected(address: str) -> Any:
    """The module `ray`, connected."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "--ray needs Ray, which is an extra: pip install 'skip-pipeline[ray]'; "
            "without --ray this machine runs all"
        ) from None
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]  # workers started from here find this package
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    alone = {"resources": {DEVICE: 1}, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    if address not in ("local", "auto"):
        _refuse_unreachable(address)
    try:
        ray.init(address, **quiet, **(alone if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        raise UserError(_no_cluster(address, error)) from None
    if not ray.cluster_resources().get(DEVICE):
        ray.shutdown()
        start = f"ray start … --resources='{{\"{DEVICE}\": 1}}'"
        raise UserError(f"the nodes of the cluster at {address} offer no {DEVICE}; start each with {start}")
    return ray


def _refuse_unreachable(address: str) -> None:
    """Refuses an address where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(_no_cluster(address, error)) from None


def _no_cluster(address: str, error: Exception) -> str:
    reason = first_line(error, 200)
    start = "start one with `ray start --head`, or pass --ray local"
    return f"no Ray cluster at {address} ({reason}); {start}"
