"""The proof: which commands are run on which artefacts, in the order in which they tell most.

Graphs and engines lie in a project of the proof's own, whose checkpoint has random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.models import costs
from pipeline.models.config import normalised
from pipeline.types import Precision, SkipSet
from runs.gpu import groups
from runs.gpu.groups import Group, Room
from runs.gpu.machine import Machine
from runs.gpu.shapes import ModelShape
from runs.gpu.stages import Conductor, Outcome, Stage

PROMPT = "The capital of France is"
TOKENS, DEMO_TOKENS = 128, 32
"""That are decoded with the cache on the device: of random weights, and of the demo model."""
PLACES = 256
"""Of a static cache: for the prompt and what is decoded."""
LENGTHS, CACHED = "50,100", "100"
"""Tokens of a prefill, and of the cache of a decoding step."""
INT4 = "int4-fp16"
"""Of the engines whose weights have 4 bits."""
DEMO = "graphs/SmolLM2-135M-Instruct/base.fp32.onnx"
ENGINE_SHAPES = ("--batch", "1,1,4", "--length", "1,100,128", "--past", "0,100,256")
"""What checks and measurements need, and no more: a plan's memory grows with its longest shapes."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A graph or an engine that a stage writes.

    Attributes:
        variant: its name.
        runtime: that runs it.
        path: from the project; '' of an engine that was not built.
        stage: that writes it; check: that compares it with PyTorch.
        lack: why it cannot run here; None where it can.
    """

    variant: str
    runtime: str
    path: str
    stage: str
    check: str
    lack: str | None


@dataclass(slots=True)
class Proof:
    """One run of everything.

    Attributes:
        shape: of the model.
        machine: that it runs on.
        conductor: of the stages.
        sequences: that are timed of each length.
        artefacts: graphs and engines so far.
        benches: names of the stages that timed them.
        texts: of the stages that continued a text → by which artefact.
        with_int4: engines with weights of 4 bits are built too.
        is_finished: all stages were gone through.
    """

    shape: ModelShape
    machine: Machine
    conductor: Conductor
    sequences: int
    artefacts: list[Artefact] = field(default_factory=list)
    benches: list[str] = field(default_factory=list)
    texts: dict[str, Artefact] = field(default_factory=dict)
    with_int4: bool = True
    is_finished: bool = False

    def run(self) -> None:
        """Runs all stages."""
        device = "cpu" if self.machine.torch_lack else self.machine.provider
        self._run("checkpoint", (self.shape.key, self._folder, device), module="runs.gpu.checkpoint")
        self._predict()
        graphs = [self._graph(name) for name in ("base", *self.shape.variants)]
        self._examine("graphs", graphs)
        for graph in graphs[::2]:  # the base, and of each kind what leaves out most
            self._generate(graph, f"{TOKENS} tokens {graph.variant}")
        self._demo()
        engines = [self._engine(graph) for graph in graphs]
        self._examine("engines", engines)
        self._generate(engines[0], f"{TOKENS} tokens engine")
        static = self._static(graphs[0])
        self._check([static])
        self._generate(static, f"{TOKENS} tokens static engine")
        if self.with_int4:
            self._int4(graphs[:3:2], engines[0])
        self.is_finished = True

    @property
    def precision(self) -> Precision:
        """Of the graphs: what the device computes best."""
        return "fp32" if self.machine.is_rehearsal else "fp16"

    @property
    def _folder(self) -> str:
        return f"graphs/{self.shape.name}"

    @property
    def _room(self) -> Room:
        return Room(self.machine.device_bytes, self.machine.host_bytes)

    def _run(
        self,
        name: str,
        command: Sequence[str],
        needs: Sequence[str] = (),
        lack: str | None = None,
        module: str = "pipeline.cli",
    ) -> Outcome:
        as_json = ("--json",) if module == "pipeline.cli" else ()
        return self.conductor.run(Stage(name, (*command, *as_json), tuple(needs), lack, module))

    def _predict(self) -> None:
        skips = [part for name in self.shape.variants for part in ("--skip", name)]
        gpu, config = self.machine.known_as, f"{self._folder}/config.json"
        lack = None if gpu else f"pipeline/evals/gpus.toml has no {self.machine.gpu}"
        command = ("predict", config, "--gpu", gpu or "?", "--lengths", LENGTHS, *skips)
        self._run("predict", command, ["checkpoint"], lack)

    def _graph(self, variant: str) -> Artefact:
        path, stage = f"{self._folder}/{variant}.{self.precision}.onnx", f"export {variant}"
        command = ("export", self._folder, "--in-place", "--precision", self.precision, "--skip", variant)
        self._run(stage, command, ["checkpoint"])
        return self._added(
            Artefact(variant, "onnxruntime", path, stage, f"check {variant}", self.machine.graphs_lack)
        )

    def _static(self, graph: Artefact) -> Artefact:
        """The engine of a graph's twin, whose cache is written in place."""
        form = (self.precision, "--cache", "static", "--max-tokens", str(PLACES))
        return self._twin(graph, f"{self.precision}.static{PLACES}", form, "static", "static cache")

    def _int4(self, graphs: Sequence[Artefact], base: Artefact) -> None:
        """Engines of graphs whose weights have 4 bits, beside the base's in fp16.

        They come last: rounding the weights is work for the processors alone, and of a 7B for minutes.
        """
        engines = [self._twin(graph, INT4, (INT4,), "int4", "int4") for graph in graphs]
        self._check(engines)
        members = [base, *engines]
        sizes = [self._size(base, "fp16"), *(self._size(one, INT4) for one in engines)]
        lack = base.lack or (None if self._room.fits(sizes, False) else groups.lack(sizes, self._room))
        self._time("int4 engines", members, False, lack, [one.stage for one in members])

    def _twin(self, graph: Artefact, suffix: str, form: tuple[str, ...], name: str, runtime: str) -> Artefact:
        """The engine of a graph in another form.

        Args:
            graph: whose variant it is.
            suffix: of the twin's file, in the place of the graph's precision.
            form: what `export --precision` takes for it.
            name: by which stages tell it from others.
            runtime: by which the page does.
        """
        variant = graph.variant
        path, stage = f"{self._folder}/{variant}.{suffix}.onnx", f"export {variant} {name}"
        command = ("export", self._folder, "--in-place", "--skip", variant, "--precision", *form)
        self._run(stage, command, [graph.stage])
        return self._engine(replace(graph, path=path, stage=stage), f"{variant} {name}", runtime)

    def _engine(self, graph: Artefact, name: str = "", form: str = "") -> Artefact:
        """The engine of a graph; `name` and `form` tell it from that of its twin."""
        machine, name = self.machine, name or graph.variant
        backend, stage = machine.backend or "tensorrt", f"build {name}"
        target = ("--target", machine.target) if machine.target else ()
        command = ("build-engine", graph.path, "--backend", backend, *target, *ENGINE_SHAPES)
        outcome = self._run(stage, command, [graph.stage], None if machine.backend else machine.engines_lack)
        path = outcome.output[0]["path"] if outcome.status == "done" else ""
        check, runtime = f"check engine {name}", ", ".join(filter(None, (backend, form)))
        return self._added(Artefact(graph.variant, runtime, path, stage, check, machine.engines_lack))

    def _added(self, artefact: Artefact) -> Artefact:
        self.artefacts.append(artefact)
        return artefact

    def _check(self, everything: Sequence[Artefact]) -> None:
        # Where PyTorch has no CUDA, `auto` lets it compute beside CUDA's graphs on the CPU.
        is_mixed = self.machine.graphs_on == "cuda" and self.machine.torch_lack is not None
        provider = "auto" if is_mixed else self.machine.graphs_on
        for one in everything:
            self._run(one.check, ("check", one.path, "--provider", provider), [one.stage], one.lack)

    def _examine(self, what: str, everything: Sequence[Artefact]) -> None:
        """Checks artefacts, and times as many at once as there is memory for."""
        self._check(everything)
        ready = [one for one in everything if self.conductor.done([one.stage])]
        lack = everything[0].lack
        if not lack and everything[0] not in ready:
            lack = "needs the base, which every variant is timed beside"
        for number, group in enumerate(self._groups(ready) if not lack else [Group((), False, lack)], 1):
            words = what if number == 1 else f"{what} {number}"
            self._time(words, [ready[k] for k in group.members], group.with_torch, group.lack)

    def _groups(self, ready: Sequence[Artefact]) -> list[Group]:
        sizes = [self._size(one, self.precision) for one in ready]
        return groups.groups(sizes, self._room, with_torch=self.machine.torch_lack is None)

    def _size(self, one: Artefact, precision: str) -> float:
        """Bytes of its weights."""
        config = normalised(self.shape.config, Path("config.json"))
        return float(costs.weight_bytes(config, SkipSet.parse(one.variant), precision))

    def _time(
        self,
        what: str,
        members: Sequence[Artefact],
        with_torch: bool,
        lack: str | None,
        needs: Sequence[str] = (),
    ) -> None:
        """Times artefacts in one process: of prompts, and of a further token."""
        # What has not passed its check is timed too; its result says so.
        is_checked = self.conductor.done([one.check for one in members])
        options = (
            *("--sequences", str(self.sequences), "--provider", self.machine.graphs_on),
            *(("--compare", "torch") if with_torch else ()),
            *(() if is_checked else ("--unchecked",)),
        )
        for name, form in (("bench", ("--lengths", LENGTHS)), ("decode", ("--lengths", CACHED, "--decode"))):
            command = ("bench", *(one.path for one in members), *form, *options)
            self._run(f"{name} {what}", command, needs, lack)
            self.benches.append(f"{name} {what}")

    def _generate(self, one: Artefact, name: str) -> None:
        command = ("generate", one.path, PROMPT, "--max-tokens", str(TOKENS))
        self._run(name, (*command, "--provider", self.machine.graphs_on), [one.stage], one.lack)
        self.texts[name] = one

    def _demo(self) -> None:
        lack = self.machine.demo_lack or self.machine.graphs_lack
        self._run("export demo", ("export", "demo", "--precision", "fp32"), (), lack)
        for provider in dict.fromkeys((self.machine.graphs_on, "cpu")):
            command = ("generate", DEMO, PROMPT, "--max-tokens", str(DEMO_TOKENS), "--provider", provider)
            self._run(f"demo {provider}", command, ["export demo"])
