"""A running server and its text models: what died is noticed within a second, and started again.

A model that is merely busy stays as it is. Dead is one whose process is gone, or that gives no sign of life.
Triton itself dies where a model's process is killed, as by the kernel for its memory, while it holds the lock
of the memory that both share.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from pipeline.ship.triton import checks
from pipeline.ship.triton.server import Server
from pipeline.ship.web.model_states import ModelStates
from pipeline.types import Failed

log = logging.getLogger(__name__)
EVERY = 5.0
"""Seconds between two questions whether a text model still answers."""
GLANCE = 0.2
"""Seconds between two looks whether its process is there."""
AGAIN = 1.0
"""Seconds after which a model that did not answer is asked once more."""
RESTARTS = 5
"""Times that a server is started anew within WITHIN; then something is wrong that a start does not mend."""
WITHIN = 600.0
"""Seconds."""


def keep(server: Server, models: Sequence[str], states: ModelStates) -> None:
    """For ever: watches the models, and starts the server anew where it ends by itself.

    Args:
        server: the running server.
        models: NAME_generate of those to watch.
        states: told of every model that goes down or comes back.

    Raises:
        Failed: the server ended too often, or did not become ready again.
    """
    ends = deque[float](maxlen=RESTARTS + 1)
    while True:
        reason = watch(server, models, states)
        ends.append(time.monotonic())
        for model in models:
            states.down(model, "the server ended")
        if len(ends) > RESTARTS and ends[-1] - ends[0] < WITHIN:
            minutes = f"{WITHIN / 60:.0f} minutes"
            raise Failed(f"the Triton server ended by itself {len(ends)} times within {minutes}: {reason}")
        log.warning("the Triton server ended by itself (%s); starting it again", reason)
        server.restart()
        log.warning("the Triton server is started again")


def watch(server: Server, models: Sequence[str], states: ModelStates) -> str:
    """Until the server ends, each model in a thread of its own: one that loads long holds up no other.

    Args:
        server: the running server.
        models: NAME_generate of those to watch.
        states: told of every model that goes down or comes back.

    Returns:
        Why the server ended.

    Raises:
        Failed: a model is watched no more.
    """
    over = threading.Event()
    threads = [
        threading.Thread(target=_watch_one, args=(server, name, states, over), name=name, daemon=True)
        for name in models
    ]
    try:
        for thread in threads:
            thread.start()
        while server.is_running():
            time.sleep(GLANCE)
            unwatched = [thread.name for thread in threads if not thread.is_alive()]
            if unwatched and server.is_running():  # they end where it does
                raise Failed(f"the watch of {unwatched[0]} ended; the lines above say why")
        over.set()
        for thread in threads:  # none of them takes the next server for this one
            thread.join(AGAIN)
        return server.reason()
    finally:
        over.set()


def _watch_one(server: Server, model: str, states: ModelStates, over: threading.Event) -> None:
    process, asked = server.stub(model), -EVERY  # a server that was started anew is asked at once
    while not over.wait(GLANCE):
        problem = None
        if process is not None and not server.is_stub(process, model):
            process = server.stub(model)  # there is one where the user has loaded the model again
            problem = None if process or not server.is_ready(model) else "its process ended"
        if problem is None:
            if time.monotonic() - asked < EVERY:
                continue
            problem, asked = _problem(server, model, over), time.monotonic()
        if over.is_set() or not server.is_running():
            return
        if problem is None:
            states.up(model)
            process = process or server.stub(model)
            continue
        states.down(model, problem)
        log.warning("%s does not answer (%s); loading it again", model, problem)
        if _is_reloaded(server, model):
            process, asked = server.stub(model), -EVERY  # asked at once whether it answers


def _problem(server: Server, model: str, over: threading.Event) -> str | None:
    """What is wrong with a model twice: Triton takes a process for dead that got no CPU for a second."""
    if checks.problem(server.http, model, server.metrics) is None or over.wait(AGAIN):
        return None
    return checks.problem(server.http, model, server.metrics)


def _is_reloaded(server: Server, model: str) -> bool:
    """Loads a model again; where that fails on a busy machine, the next look at it tries once more."""
    try:
        server.reload(model)
    except Failed as error:
        log.warning("%s", error)
        return False
    log.warning("%s is loaded again", model)
    return True
