"""Kernel launches of transformers' own code, counted on a tiny model.

`python -m tests.launching` prints launches.toml. An operation that torch's dispatcher hands to a backend, and
that gives no view of its input, starts a kernel on a GPU: what is composite has been resolved above, and what
a backend does inside is its own. `torch.profiler` has each of these as often; a test compares them.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from pipeline.models import caches, pretrained, sublayers
from pipeline.models.config import known
from pipeline.models.sizes import rules_of
from pipeline.types import BASE
from tests import tiny

TOKENS = 10
"""Of a prefill. No sliding window is shorter."""
NO_KERNEL = {"aten::_unsafe_view", "aten::empty.memory_format"}
"""Give no view by their schema, and start no kernel all the same."""
CHANGES: dict[str, dict[str, Any]] = {
    name: {"sliding_window": 64} for name in ("mistral", "phi3", "gemma2", "gemma3_text")
}
"""A window that the text does not fill, as that of a real model is not filled by 100 tokens."""


class Launches(TorchDispatchMode):
    """Counts the operations that start a kernel, by the part of the model that they are called in.

    Attributes:
        counts: part → how many.
        operations: name, as the profiler has it → how many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.parts = ["rest"]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not is_view(func) and func.name() not in NO_KERNEL:
            self.counts[self.parts[-1]] += 1
            self.operations[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    def tag(self, module: nn.Module, part: str) -> None:
        """Counts what happens inside a module as that part."""
        module.register_forward_pre_hook(lambda *_: self.parts.append(part))
        module.register_forward_hook(lambda *_: self.parts.pop() and None)


def is_view(func: Any) -> bool:
    """Whether an operation's results lie in its arguments' memory."""
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)


@contextmanager
def model_of(model_type: str, layers: int = 2) -> Iterator[Any]:
    """A tiny model in float16, which transformers itself loads as it does by default."""
    with tempfile.TemporaryDirectory() as folder:
        changes = CHANGES.get(model_type, {})
        tiny.checkpoint(Path(folder), model_type, num_hidden_layers=layers, **changes)
        yield pretrained.load(Path(folder), BASE, dtype=torch.float16)


def passes(model: Any) -> dict[str, Callable[[], object]]:
    """'prefill' and 'decode' → runs that pass; the cache of a decoding step is there before."""
    ids, name = torch.arange(TOKENS)[None], caches.argument(model)
    filled = DynamicCache()
    with torch.no_grad():
        model(ids, **{name: filled})
    return {
        "prefill": lambda: model(ids, **{name: DynamicCache()}, use_cache=True),
        "decode": lambda: model(ids[:, :1], **{name: filled}, use_cache=True),
    }


def tagged(model: Any, model_type: str, launches: Launches) -> None:
    """Tells apart the attention, the MLP and their norms of each layer, and what joins them to the stream."""
    rules, folder = rules_of(model_type), Path(model.name_or_path)
    for i, layer in enumerate(sublayers.decoder_layers(model, folder)):
        launches.tag(layer, f"{i} join")
        for (_, kind), names in sublayers.of_layer(i):
            launches.tag(getattr(layer, sublayers.module_name(layer, names, folder)), f"{i} {kind}")
            for norm in filter(None, rules.norms(kind)):
                launches.tag(layer.get_submodule(norm), f"{i} {kind} norm")


def counted(model_type: str) -> dict[str, Any]:
    """One architecture's entry of launches.toml, as numbers. Joins are halved between the two sublayers."""
    entry: dict[str, Any] = {}
    with model_of(model_type) as model:
        launches = Launches()
        tagged(model, model_type, launches)
        norms = sum(name is not None for kind in ("attn", "mlp") for name in rules_of(model_type).norms(kind))
        for name, run in passes(model).items():
            launches.counts.clear()
            with torch.no_grad(), launches:
                run()
            n = launches.counts
            entry["norm"] = (n["0 attn norm"] + n["0 mlp norm"]) // norms
            if n["0 attn"] != n["1 attn"]:  # layer 1 has no rope: SmolLM3
                entry["rope"] = n["0 attn"] - n["1 attn"]
            entry[name] = {
                "attention": n["0 attn"] + n["0 attn norm"] + n["0 join"] // 2,
                "mlp": n["0 mlp"] + n["0 mlp norm"] + n["0 join"] // 2,
                "rest": n["rest"],
            }
    return entry


def toml(entries: dict[str, dict[str, Any]]) -> str:
    """launches.toml below its first comment."""
    versions = f'torch = "{torch.__version__.partition("+")[0]}"\ntransformers = "{transformers.__version__}"'
    lines = ["[versions]", versions]
    for model_type, entry in entries.items():
        lines += ["", f"[architectures.{model_type}]"]
        for key in ("norm", "rope"):
            lines += [f"{key} = {entry[key]}"] if key in entry else []
        for name in ("prefill", "decode"):
            numbers = ", ".join(f"{part} = {count}" for part, count in entry[name].items())
            lines.append(f"{name} = {{ {numbers} }}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(toml({model_type: counted(model_type) for model_type in known()}))
