"""`pipeline select --finalists`: the skip sets nearest to a choice, through all stages, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import store
from pipeline.cli import arguments, extras, prerequisites, timing
from pipeline.cli.app import show_result
from pipeline.types import BASE, Devices, SkipSet, UserError, is_compensation

if TYPE_CHECKING:
    from pipeline.calib.held_out import HeldOutText
    from pipeline.calib.selectors import Choice, ModelStatistics
    from pipeline.cli.budgets import TimedChoice
    from pipeline.store.records import FinalistRow, FinalistsRecord, HeldOutLosses, Latency, Score

NOMINATED = 8
"""Sequences on which the losses are measured that finalists are found by; as of a generation of `evo`."""
JUDGED = 16
"""Sequences behind those, on which loss and KL in the table are measured."""
LENGTH = 100
"""Tokens of the prefill that is timed, where no time was asked: the papers' longer one."""
NONE = "none"
TASKS = "smoke,probes"

FinalistsOption = Annotated[
    int | None,
    typer.Option(
        help="Take so many skip sets, the choice and those nearest to it, through all stages (cut, checked, "
        "compensated, timed, scored) into one table, with the Pareto fronts marked."
    ),
]
FormOption = Annotated[
    str | None,
    typer.Option(
        "--with",
        help="What stands in for what a finalist skips, as in `compensate` (linear); or none.",
        callback=arguments.not_empty,
    ),
]
FinalistTasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help=f"Benchmarks that finalists are scored on ({TASKS}); or none.",
        callback=arguments.not_empty,
    ),
]


@dataclass(frozen=True, slots=True)
class FinalistOptions:
    """How finalists are compared.

    Attributes:
        number: how many.
        form: of what stands in for what they skip, or 'none'.
        tasks: benchmarks, with commas, or 'none'.
    """

    number: int
    form: str = "linear"
    tasks: str = TASKS

    def __post_init__(self) -> None:
        if self.number < 1:
            raise UserError(f"--finalists {self.number} is not at least 1")
        if self.form not in (NONE, "auto") and not is_compensation(self.form):
            raise UserError(
                f"--with {self.form!r:.40} names no compensation; choose linear, bias, matrix, rank16, fold, "
                f"fold+rank16, auto, or {NONE}"
            )

    @property
    def benchmarks(self) -> str | None:
        """Those of `tasks`; None without any."""
        return None if self.tasks == NONE else self.tasks

    @classmethod
    def asked(cls, number: int | None, form: str | None, tasks: str | None) -> FinalistOptions | None:
        """What the options ask for; None without --finalists.

        Raises:
            UserError: an option means nothing, or an extra is missing.
        """
        if number is None:
            if other := "--with" if form else "--tasks" if tasks else None:
                raise UserError(f"{other} is for --finalists N")
            return None
        comparison = cls(number, form or "linear", tasks or TASKS)
        if comparison.benchmarks:
            extras.needs("score", "pipeline select --finalists")
            arguments.without_bars()
            from pipeline.evals.score import benchmarks

            for name in benchmarks.check_names(comparison.benchmarks):
                benchmarks.find(name)
        return comparison


@dataclass(frozen=True, slots=True)
class Nomination:
    """A rule's choice, and what it rests on.

    Attributes:
        rule: its name.
        choice: what it chose.
        statistics: of the model, and the text that all is measured and fitted on.
        devices: that graphs and PyTorch run on.
        length: tokens of the prefill that is timed.
    """

    rule: str
    choice: Choice
    statistics: ModelStatistics
    devices: Devices
    length: int = LENGTH

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        assert self.statistics.folder is not None, "`select` names a model"
        return self.statistics.folder


def timed(chosen: TimedChoice, statistics: ModelStatistics, devices: Devices) -> Nomination:
    """What was chosen for a time, as a rule's choice.

    `evo` ranked sets that keep the time. Of the rounds of `cosine` only the last can have reached it: beside
    it stand swaps within a kind, which are predicted to take as long.
    """
    from pipeline.calib import finalists, latency_budget

    if not chosen.reached:
        arguments.say("the time was not reached; these are the nearest that was measured last, and its like")
    choice = chosen.search
    if choice is None:
        damage = latency_budget.candidates(chosen.kind, statistics.similarity)
        choice = finalists.timed_choice(chosen.rounds[-1].skip, damage)
    return Nomination(chosen.rule, choice, statistics, devices, chosen.length)


def show(nomination: Nomination, comparison: FinalistOptions, as_json: bool) -> None:
    """Compares the finalists, and prints the table, or with --json the record."""
    from pipeline.evals.finalists import table

    record = compare(nomination, comparison)
    if as_json:
        show_result(record.plain(), True)
    else:
        arguments.print_table(table.table(record))


def compare(nomination: Nomination, comparison: FinalistOptions) -> FinalistsRecord:
    """The finalists of a choice beside each other; what is known already is not measured again.

    Raises:
        UserError: there are fewer skip sets, too little text, or as of any of the stages.
    """
    from pipeline.calib import finalists, held_out
    from pipeline.evals.finalists import table
    from pipeline.graphs.export import num_layers
    from pipeline.models import checkpoint
    from pipeline.store.records import FinalistsRecord

    opened = checkpoint.open_checkpoint(nomination.folder)
    folder, choice, on = nomination.folder, nomination.choice, nomination.devices
    nominees, is_ranked = finalists.nominees(choice, num_layers(opened.config), comparison.number)
    text = held_out.unread(nomination.statistics, NOMINATED)
    judged = held_out.HeldOut(folder, text.behind(JUDGED), on.torch)  # too little text is refused here
    losses = {} if is_ranked else _losses(nomination, text, nominees)
    skips = nominees if is_ranked else finalists.finalists(choice.skip, losses, comparison.number)
    arguments.say(f"finalists: {', '.join(skip.name for skip in skips)}")
    graphs = _graphs(nomination, comparison, skips)
    times = timing.latencies(prerequisites.checked(graphs, False, on), nomination.length, on.graphs)
    scores = prerequisites.scored_together(list(times), comparison.benchmarks, on.graphs)
    base = next(path for path in times if path not in graphs)
    with arguments.busy(f"loss and KL on {JUDGED} held-out sequences"):
        measured = {base: judged.bare([BASE])[BASE]}
        for graph in graphs:
            variant, overlays = store.variant(graph), store.overlays(graph)
            measured[graph] = (
                judged.compensated(variant, overlays[0])
                if overlays
                else judged.bare([variant.skip])[variant.skip]
            )
    rows = [_row(path, times[path], measured[path], scores[path], (choice.skip, losses)) for path in times]
    return FinalistsRecord(
        model=opened.model,
        select=nomination.rule,
        form=comparison.form,
        length=nomination.length,
        device=on.graphs,
        torch_device=on.torch,
        texts=judged.request.texts,
        samples=JUDGED,
        sequence_length=held_out.LENGTH,
        nominees=len(nominees),
        rows=table.marked(rows),
    )


def _losses(nomination: Nomination, text: HeldOutText, nominees: list[SkipSet]) -> dict[SkipSet, float]:
    """Nats a token of skip sets, with nothing in the place of what they skip."""
    from pipeline.calib import held_out

    arguments.say(f"finalists: the losses of {len(nominees)} skip sets on {text.samples} sequences")
    measured = held_out.HeldOut(nomination.folder, text, nomination.devices.torch)
    with arguments.busy(f"measuring {len(nominees)} skip sets"):
        return {skip: held_out.mean(one.losses)[0] for skip, one in measured.bare(nominees).items()}


def _graphs(nomination: Nomination, comparison: FinalistOptions, skips: list[SkipSet]) -> list[Path]:
    """The graphs of skip sets, cut, and compensated where that is asked."""
    from pipeline.calib.compensation import compensate as stage
    from pipeline.cli import compensate
    from pipeline.graphs import export
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint
    from pipeline.store.records import CompensationSettings

    opened, on = checkpoint.open_checkpoint(nomination.folder), nomination.devices
    base = export.export_base(opened, "fp32")
    bare = [surgery.cut(base, skip) for skip in skips]
    if comparison.form == NONE:
        return bare
    settings = CompensationSettings(form=comparison.form)
    stage.gather(opened, skips, settings, nomination.statistics.text_input, on.torch)
    graphs = []
    for number, graph in enumerate(bare, 1):
        arguments.say(f"finalist {number} of {len(bare)}: {store.variant(graph).name}, {comparison.form}")
        make = partial(compensate.fitted, means=stage.Means(device=on.torch), provider=on.graphs)
        graphs.append(make(graph, opened, settings, nomination.statistics.text_input, force=False).path)
    return graphs


def _row(
    path: Path,
    time: Latency,
    measured: HeldOutLosses,
    scores: list[Score],
    nomination: tuple[SkipSet, dict[SkipSet, float]],
) -> FinalistRow:
    """One graph's row; its marks are set later.

    Args:
        path: of the graph.
        time: of a prefill.
        measured: on held-out text.
        scores: of the graph.
        nomination: the rule's choice, and the nominees' losses.
    """
    from pipeline.calib import held_out
    from pipeline.evals.finalists import table
    from pipeline.store.records import FinalistRow

    variant = store.variant(path)
    choice, losses = nomination
    loss, loss_stderr = held_out.mean(measured.losses)
    divergence, divergence_stderr = held_out.mean(measured.divergences)
    return FinalistRow(
        variant=variant.name,
        attention=variant.skip.attention,
        mlp=variant.skip.mlp,
        artefact=str(path),
        is_choice=variant.skip == choice,
        nominee_loss=losses.get(variant.skip),
        milliseconds=time.p50,
        speedup=timing.over_base(time),
        enough_clean=time.enough_clean,
        loss=loss,
        loss_stderr=loss_stderr,
        divergence=max(0.0, divergence),
        divergence_stderr=divergence_stderr,
        scores=tuple(scores),
        average=table.average(scores),
    )
