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
        is_finished: all stages were gone through.
    """

    shape: ModelShape
    machine: Machine
    conductor: Conductor
    sequences: int
    artefacts: list[Artefact] = field(default_factory=list)
    benches: list[str] = field(default_factory=list)
    texts: dict[str, Artefact] = field(default_factory=dict)
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
        self._run(static.check, ("check", static.path), [static.stage], static.lack)
        self._generate(static, f"{TOKENS} tokens static engine")
        self.is_finished = True

    @property
    def precision(self) -> Precision:
        """Of the graphs: what the device computes best."""
        return "fp32" if self.machine.is_rehearsal else "fp16"

    @property
    def _folder(self) -> str:
        return f"graphs/{self.shape.name}"

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
        twin = replace(
            graph,
            path=f"{graph.path.removesuffix('.onnx')}.static{PLACES}.onnx",
            stage=f"export {graph.variant} static",
        )
        form = ("--skip", graph.variant, "--cache", "static", "--max-tokens", str(PLACES))
        command = ("export", self._folder, "--in-place", "--precision", self.precision, *form)
        self._run(twin.stage, command, [graph.stage])
        return self._engine(twin, f"{graph.variant} static", "static cache")

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

    def _examine(self, what: str, everything: Sequence[Artefact]) -> None:
        """Checks artefacts, and times as many at once as there is memory for."""
        # Where PyTorch has no CUDA, `auto` lets it compute beside CUDA's graphs on the CPU.
        is_mixed = self.machine.graphs_on == "cuda" and self.machine.torch_lack is not None
        provider = "auto" if is_mixed else self.machine.graphs_on
        for one in everything:
            self._run(one.check, ("check", one.path, "--provider", provider), [one.stage], one.lack)
        ready = [one for one in everything if self.conductor.done([one.stage])]
        lack = everything[0].lack
        if not lack and everything[0] not in ready:
            lack = "needs the base, which every variant is timed beside"
        for number, group in enumerate(self._groups(ready) if not lack else [Group((), False, lack)], 1):
            words, members = what if number == 1 else f"{what} {number}", [ready[k] for k in group.members]
            self._bench(f"bench {words}", members, group, ("--lengths", LENGTHS))
            self._bench(f"decode {words}", members, group, ("--lengths", CACHED, "--decode"))

    def _groups(self, ready: Sequence[Artefact]) -> list[Group]:
        config = normalised(self.shape.config, Path("config.json"))
        room = Room(self.machine.device_bytes, self.machine.host_bytes)
        sizes = [
            float(costs.weight_bytes(config, SkipSet.parse(one.variant), self.precision)) for one in ready
        ]
        return groups.groups(sizes, room, with_torch=self.machine.torch_lack is None)

    def _bench(self, name: str, members: Sequence[Artefact], group: Group, what: tuple[str, ...]) -> None:
        # What has not passed its check is timed too; its result says so.
        is_checked = self.conductor.done([one.check for one in members])
        options = (
            *("--sequences", str(self.sequences), "--provider", self.machine.graphs_on),
            *(("--compare", "torch") if group.with_torch else ()),
            *(() if is_checked else ("--unchecked",)),
        )
        self._run(name, ("bench", *(one.path for one in members), *what, *options), (), group.lack)
        self.benches.append(name)

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
