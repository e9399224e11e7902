"""Which artefacts are timed in one process: all where there is memory for it, else few beside the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HOST_COPIES = 2.0
"""Of an artefact's weights that may lie on the host while it is opened."""
DEVICE_SHARE = 1.1
"""Memory of an artefact on the GPU, of its weights."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that is free.

    Attributes:
        device: bytes of the GPU; None where there is none, or it is not known.
        host: bytes of the machine.
    """

    device: float | None
    host: float

    def fits(self, sizes: Sequence[float], with_torch: bool) -> bool:
        """Whether artefacts with weights of these sizes can be open at once, PyTorch's models beside them."""
        models = sum(sizes) * (2 if with_torch else 1)
        if self.device is not None and models * DEVICE_SHARE > self.device:
            return False
        return sum(sizes) * HOST_COPIES <= self.host


@dataclass(frozen=True, slots=True)
class Group:
    """Artefacts that are timed together.

    Attributes:
        members: their numbers; the base, 0, is the first.
        with_torch: PyTorch's model of each is timed beside it.
        lack: why they cannot be; None where they can.
    """

    members: tuple[int, ...]
    with_torch: bool
    lack: str | None = None


def groups(sizes: Sequence[float], room: Room, with_torch: bool) -> list[Group]:
    """As few groups as the memory allows, each with the base.

    Args:
        sizes: bytes of the weights of each artefact, the base's first.
        room: that there is.
        with_torch: PyTorch is to be timed too, where it fits.
    """
    found, open_members = list[Group](), [0]
    for number in range(1, len(sizes)):
        wanted = [*open_members, number]
        if room.fits([sizes[one] for one in wanted], with_torch):
            open_members = wanted
            continue
        if len(open_members) > 1:
            found.append(Group(tuple(open_members), with_torch))
            open_members = [0]
        pair = [sizes[0], sizes[number]]
        if room.fits(pair, with_torch):
            open_members = [0, number]
        elif room.fits(pair, False):
            found.append(Group((0, number), False))
        else:
            found.append(Group((0, number), False, lack(pair, room)))
    if len(open_members) > 1 or not found:
        found.append(Group(tuple(open_members), with_torch))
    return found


def lack(sizes: Sequence[float], room: Room) -> str:
    """Why artefacts with weights of these sizes cannot be timed together, in words."""
    free = f"{room.host / 1e9:.1f} GB" + (f", the GPU {room.device / 1e9:.1f}" if room.device else "")
    return (
        f"{len(sizes)} artefacts of {sum(sizes) / 1e9:.1f} GB do not fit into memory at once (free: {free})"
    )
