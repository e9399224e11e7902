"""Jobs as tasks of a Ray cluster. Files go through the project's folder, which every node must see under the same path.

Every node offers one `pipeline_device`. A job holds a share of it, a measurement of time holds it whole: nothing runs beside
it there. A job whose worker is lost is run again elsewhere; it is a command, and what is finished it passes over.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.sweep.jobs import Command, Job
from pipeline.sweep.local import Outcome, Process, environment
from pipeline.types import UserError

DEVICE = "pipeline_device"
RETRIES = 3
"""Times that a job is run again after its worker was lost."""
STORE = 80_000_000
"""Bytes of Ray's object store: results of tasks are one line each, data goes through files."""


def work(id: str, command: Command, root: str, logs: str, stdout: str | None, threads: str | None) -> Outcome:
    """On a worker: runs one job in the shared folder.

    Args:
        threads: OMP_NUM_THREADS of whoever started the sweep; Ray's own setting, one a CPU of the task, is not ours.
    """
    if not (Path(root) / logs).is_dir():
        return Outcome(
            id,
            f"{root} is not the project's folder on node {os.uname().nodename}; share it under that path",
            0.0,
        )
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads:
        os.environ["OMP_NUM_THREADS"] = threads
    process = Process(id, command, Path(root) / logs, Path(root) / stdout if stdout else None, Path(root))
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
        accelerator: Ray's name of the GPU that GPU jobs run on; None for any.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or its nodes offer no `pipeline_device`.
    """

    def __init__(self, address: str, slots: int, logs: Path, accelerator: str | None = None) -> None:
        self.ray = _connected(address)
        self.logs, self.accelerator = logs, accelerator
        self.share = int(10_000 / slots) / 10_000  # Ray counts in ten-thousandths
        self.task = self.ray.remote(work)
        self.held: dict[Any, str] = {}
        self.refused: list[Outcome] = []
        logs.mkdir(parents=True, exist_ok=True)

    def takes(self, job: Job) -> bool:  # noqa: ARG002 - Ray queues what does not fit yet
        return True

    def start(self, job: Job) -> None:
        if lack := self._lacks(job):
            self.refused.append(Outcome(job.id, lack, 0.0))
            return
        wants: dict[str, Any] = {"num_cpus": 1, "resources": {DEVICE: 1 if job.exclusive else self.share}}
        wants |= {"memory": job.memory} if job.memory else {}
        wants |= {"num_gpus": 1} if job.gpu else {}
        wants |= {"accelerator_type": self.accelerator} if job.gpu and self.accelerator else {}
        task = self.task.options(**wants, max_retries=RETRIES, scheduling_strategy="SPREAD", name=job.id)
        stdout = str(job.stdout) if job.stdout else None
        root, threads = str(Path.cwd()), os.environ.get("OMP_NUM_THREADS")
        self.held[task.remote(job.id, job.command, root, str(self.logs), stdout, threads)] = job.id

    def _lacks(self, job: Job) -> str | None:
        """What no node of the cluster has; Ray would wait for it forever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if job.gpu and not any(node.get("GPU", 0) >= 1 for node in nodes):
            return "needs an NVIDIA GPU, and no node of the cluster has one"
        if (
            job.gpu
            and self.accelerator
            and not any(f"accelerator_type:{self.accelerator}" in node for node in nodes)
        ):
            return f"needs a GPU of type {self.accelerator} (build.accelerator), and no node of the cluster has one"
        most = max((node.get("memory", 0.0) for node in nodes), default=0.0)
        if job.memory and job.memory > most:
            return f"needs about {job.memory / 1e9:.1f} GB of memory, and the largest node offers {most / 1e9:.1f} GB"
        return None

    def ended(self, wait: float) -> list[Outcome]:
        found, self.refused = self.refused, []
        if not self.held:
            return found
        ready, _ = self.ray.wait(list(self.held), timeout=0 if found else wait)
        if ready:
            ready, _ = self.ray.wait(list(self.held), num_returns=len(self.held), timeout=0)
        for ref in ready:
            id = self.held.pop(ref)
            try:
                found.append(self.ray.get(ref))
            except (
                self.ray.exceptions.RayError
            ) as error:  # the worker was lost too often, or the task cannot be made there
                reason = " ".join(str(error).split())[:400]
                found.append(Outcome(id, f"its worker was lost {RETRIES + 1} times: {reason}", 0.0))
        return found

    def close(self) -> None:
        for ref in self.held:
            self.ray.cancel(ref, force=True)
        self.held.clear()
        self.ray.shutdown()


def _connected(address: str) -> Any:
    """The module `ray`, connected."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "--ray needs Ray, which is an extra: pip install 'skip-pipeline[ray]'; without --ray this machine runs all"
        ) from None
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]  # workers started from here find this package
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address not in ("local", "auto"):
        _reachable(address)
    try:
        if address == "local":
            ray.init(
                "local", resources={DEVICE: 1}, include_dashboard=False, object_store_memory=STORE, **quiet
            )
        else:
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no Ray cluster at {address} ({reason[:200]}); start one with `ray start --head`, or pass --ray local"
        ) from None
    if not ray.cluster_resources().get(DEVICE):
        ray.shutdown()
        start = f"ray start … --resources='{{\"{DEVICE}\": 1}}'"
        raise UserError(f"the nodes of the cluster at {address} offer no {DEVICE}; start each with {start}")
    return ray


def _reachable(address: str) -> None:
    """Refuses an address where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address} ({error}); start one with `ray start --head`, or pass --ray local"
        ) from None
