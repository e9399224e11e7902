"""How the loss rises as sublayers go one at a time: what the `greedy` selector goes by (in the manner of SLEB and BlockPruner).

Every step measures each candidate that is still there and removes the one whose absence costs least. What makes that cheap:
the layers below a candidate are computed once for all candidates; the head is computed at every second position; and
candidates race: one whose loss is beyond doubt above the best one's is not measured on further sequences.

Legend: N sequences, T tokens, B sequences a batch, K positions of a sequence whose loss is read, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib import similarity
from pipeline.models import checkpoint, texts
from pipeline.models.reference import FAST, Reference
from pipeline.types import BASE, SkipSet, UserError

Array = npt.NDArray[Any]
Losses = dict[str, list[Array]]
"""Candidate → [B·K] losses of each batch that it was measured on."""
BATCH = 2
EVERY = 2
"""The loss is read at every second position."""
DOUBT = 1.5
"""A candidate is out of the race when it is so many standard errors of the difference, position by position, behind the best."""


@dataclass(slots=True)
class Step:
    """One removal.

    Attributes:
        removed: the candidate's name, as a skip set.
        loss: nats a token without it and all that went before, over all N sequences.
        others: (name, loss, sequences measured) of the candidates that stay, the nearest first.
    """

    removed: str
    loss: float
    others: list[tuple[str, float, int]]


@dataclass(slots=True)
class Removals:
    """A greedy order of removals of one kind, and what it took.

    Attributes:
        base_loss: nats a token of the whole model on the same positions.
        flops, plain_flops: of matrix products with weights; plain: a whole pass for each candidate, as the papers' scripts do.
    """

    base_loss: float = 0.0
    steps: list[Step] = field(default_factory=list)
    flops: float = 0.0
    plain_flops: float = 0.0


def removals(
    folder: Path, kind: str, count: int, source: texts.Source, samples: int = 32, length: int = 256
) -> Removals:
    """The first `count` removals of a kind, kept in calib/<model>/greedy-<kind>.json: a longer order goes on from a shorter one.

    Raises:
        UserError: too little text, or a loss that is no number.
    """
    found = checkpoint.open_checkpoint(folder)
    tokens, told = texts.cut(folder, source, length, samples)
    settings = {
        "what": "greedy", "model": found.model, "weights": similarity.identity(found), "kind": kind, "samples": samples,
        "length": length, "every": EVERY, "doubt": DOUBT, "texts": told,
    }  # fmt: skip
    path = store.calib_dir(found.model) / f"greedy-{kind}.json"
    with store.lock(path.parent):
        known = _read(path, settings)
        if len(known.steps) < count:
            race = Race(Reference(folder, load=FAST), kind, tokens)
            _extend(known, race, count, lambda: store.write_json(path, {**settings, **asdict(known)}))
    return known


def _read(path: Path, settings: dict[str, Any]) -> Removals:
    """What an earlier run of these very settings found."""
    if not path.is_file():
        return Removals()
    held = store.read_json(path)
    if any(held.get(key) != value for key, value in settings.items()):
        return Removals()
    steps = [
        Step(s["removed"], s["loss"], [(str(n), float(v), int(k)) for n, v, k in s["others"]])
        for s in held["steps"]
    ]
    return Removals(held["base_loss"], steps, held["flops"], held["plain_flops"])


def _extend(known: Removals, race: Race, count: int, save: Callable[[], None]) -> None:
    """Removes until `count` are gone; saved after every removal."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("removals", total=count, completed=len(known.steps))
        if not known.steps:
            known.base_loss = float(np.mean(race.losses(BASE)))
        while len(known.steps) < count:
            gone = BASE
            for step in known.steps:
                gone |= SkipSet.parse(step.removed)
            known.steps.append(race.run(gone))
            known.flops, known.plain_flops = known.flops + race.flops, known.plain_flops + race.plain_flops
            save()
            bar.advance(task)


class Race:
    """Measures candidates of a kind beside each other.

    Args:
        tokens: [N, T] token ids.
    """

    def __init__(self, reference: Reference, kind: str, tokens: npt.NDArray[np.int64]) -> None:
        self.reference, self.kind, self.tokens = reference, kind, tokens
        self.flops = self.plain_flops = 0.0
        self.positions = torch.arange(EVERY - 1, tokens.shape[1] - 1, EVERY)
        head = reference.model.get_output_embeddings().weight.numel()
        self.per_layer = [
            2.0 * sum(p.numel() for p in layer.parameters() if p.ndim == 2) for layer in reference.layers
        ]
        self.head = 2.0 * head * len(self.positions) / tokens.shape[1]  # a token, on average

    def losses(self, gone: SkipSet) -> list[float]:
        """[N] mean loss of each sequence without `gone`, in nats."""
        with torch.inference_mode(), self.reference.without(gone):
            found = [
                self._tail(batch, 0, None).reshape(len(batch), -1).mean(axis=1) for batch in self._batches()
            ]
        return [float(value) for value in np.concatenate(found)]

    def run(self, gone: SkipSet) -> Step:
        """The candidate whose absence costs least, once `gone` is left out."""
        self.flops = self.plain_flops = 0.0
        layers = len(self.reference.layers)
        candidates = [
            SkipSet.of(self.kind, [k])
            for k in range(layers)
            if not _overlap(SkipSet.of(self.kind, [k]), gone)
        ]
        if not candidates:
            raise UserError(f"no {self.kind} is left to leave out")
        held: Losses = {candidate.name: [] for candidate in candidates}
        self.plain_flops = len(candidates) * self.tokens.size * (sum(self.per_layer) + self.head * EVERY)
        racing = candidates
        with torch.inference_mode(), self.reference.without(gone):
            for batch in self._batches():
                trunk = self._trunk(batch) if len(racing) > 1 else {}
                for candidate in racing:
                    first = (candidate.attention or candidate.mlp)[0] if trunk else 0
                    with self.reference.without(candidate):
                        held[candidate.name].append(self._tail(batch, first, trunk.get(first)))
                racing = still_racing(racing, held)
        loss = {name: float(np.mean(np.concatenate(batches))) for name, batches in held.items()}
        best, *rest = sorted(held, key=lambda name: (-len(held[name]), loss[name]))
        seen = {name: sum(len(part) for part in held[name]) // len(self.positions) for name in rest}
        return Step(best, loss[best], [(name, loss[name], seen[name]) for name in rest])

    def _batches(self) -> Iterator[torch.Tensor]:
        return iter(torch.from_numpy(self.tokens).split(BATCH))

    def _trunk(self, batch: torch.Tensor) -> dict[int, torch.Tensor]:
        """Layer → the stream [B, T, C] before it."""
        self.flops += batch.numel() * sum(self.per_layer)
        with self.reference.entering() as streams:
            self.reference.logits_at(batch, self.positions[-1:])
        return streams

    def _tail(self, batch: torch.Tensor, first: int, stream: torch.Tensor | None) -> Array:
        """[B·K] losses of a pass that is taken up before layer `first` with the stream there."""
        self.flops += batch.numel() * (sum(self.per_layer[first:]) + self.head)
        with self.reference.taken_up(first, stream):
            logits = self.reference.logits_at(batch, self.positions)
        wanted = batch[:, self.positions + 1]
        losses: Array = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), reduction="none"
        ).numpy()
        if not np.isfinite(losses).all():
            raise UserError(
                "a loss is not finite: a weight is NaN or infinite; look with `pipeline check --localize`"
            )
        return losses


def still_racing(racing: list[SkipSet], held: Losses) -> list[SkipSet]:
    """Those whose loss may yet turn out to be the least: not beyond doubt above the best mean, position by position."""
    losses = {candidate: np.concatenate(held[candidate.name]).astype(np.float64) for candidate in racing}
    best = min(racing, key=lambda candidate: float(losses[candidate].mean()))

    def is_open(candidate: SkipSet) -> bool:
        behind = losses[candidate] - losses[best]
        return bool(behind.mean() <= DOUBT * behind.std() / len(behind) ** 0.5)

    return [candidate for candidate in racing if candidate is best or is_open(candidate)]


def _overlap(one: SkipSet, other: SkipSet) -> bool:
    return bool(set(one.attention) & set(other.attention) or set(one.mlp) & set(other.mlp))
