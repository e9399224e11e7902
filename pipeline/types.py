"""The words of the project as frozen dataclasses. Standard library only: every folder may import this file.

A *skip set* says which sublayers of a model are left out; a *variant* is a model with a skip set, at a
precision. Layers are indices 0 … L−1 of the original model and are never renumbered.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "fp16"]
Kind = Literal["attn", "mlp", "block"]
Head = Literal["gather", "all"]
Provider = Literal["cpu", "cuda"]
"""What computes: a provider of ONNX Runtime, or the type of a PyTorch device."""

KINDS: tuple[Kind, ...] = ("attn", "mlp", "block")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda")

SHOWN = 3
"""Of many names in a message, those that stand there."""
VARIANT_BYTES = 120
"""Of a variant's name that stands whole in file names. A file system takes names of 255 bytes."""
_SKIP_BYTES = 64
"""Of its skip set, where an adapter's name follows and both are too long together."""

Sublayer = tuple[int, Literal["attn", "mlp"]]
"""(layer, kind of sublayer)."""


def precision_name(precision: str, quantisation: str | None) -> str:
    """'fp32', None → 'fp32'; 'fp32', 'int4' → 'int4-fp32'."""
    return f"{quantisation}-{precision}" if quantisation else precision


class UserError(ValueError):
    """Wrong input: what is wrong, where, and the command that mends it, in one line. Exit code 2."""


class Failed(RuntimeError):
    """Something failed, and all else was done: what failed, in one line. The command exits with 1."""


def first_line(error: object, limit: int = 300) -> str:
    """The first line of an error's message, cut to `limit` characters; its type where there is none."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def shown(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are: for messages."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name:.200}" for name in names[:SHOWN]) + more


def file_name(name: str, limit: int) -> str:
    """The name where it has at most `limit` bytes, else its beginning and a digest, of limit + 1 bytes.

    So no two names become one: a shortened name is longer than any that stays as it is.
    """
    if len(encoded := os.fsencode(name)) <= limit:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    beginning = encoded[: limit - len(digest)].decode(errors="ignore")  # no half a letter
    return beginning + "-" * (limit + 1 - len(digest) - len(beginning.encode())) + digest


def variant_file(name: str) -> str:
    """A variant's name as a part of file names: itself up to 120 bytes, which leaves room for what is added.

    Of a longer one, skip set and adapter are shortened each for itself, so that the ~ stays. The whole name
    is in the artefact's sidecar: nothing reads a variant from a file's name.
    """
    if len(os.fsencode(name)) <= VARIANT_BYTES:
        return name
    skip, tilde, adapter = name.partition("~")
    if not tilde:
        return file_name(skip, VARIANT_BYTES)
    skip = file_name(skip, _SKIP_BYTES)
    left = VARIANT_BYTES - 1 - min(len(skip), _SKIP_BYTES)
    return f"{skip}~{file_name(adapter, left)}"


def count_of(frac: float, num_layers: int) -> int:
    """The one rule by which a fraction becomes a count, n = ceil(frac · L): 33 % of 32 layers is 11.

    The subtraction guards the float: 0.1 · 40 is 4.000000000000001 in binary, and must stay 4.
    """
    if not 0 <= frac <= 1:
        raise UserError(f"--frac {frac} is not between 0 and 1; 25 % is written --frac 0.25")
    return math.ceil(frac * num_layers - 1e-9)


def parse_layers(text: str) -> tuple[int, ...]:
    """'3,7,20-29' → (3, 7, 20, …, 29). Also takes '_' for ',', as in variant names.

    Raises:
        UserError: the text is not a list of layers and ascending ranges.
    """
    layers: list[int] = []
    for part in re.split(r"[,_]", text.strip()):
        if not (match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())):
            raise UserError(f"cannot read layers {text!r}; write them as 3,7,20-29")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 10_000:
            raise UserError(f"layers {part!r} is not an ascending range of layers")
        layers.extend(range(first, last + 1))
        if len(layers) > 10_000:
            raise UserError(f"layers {text[:40]!r}… are more than 10,000; no model has so many")
    return tuple(sorted(set(layers)))


def format_layers(layers: Iterable[int]) -> str:
    """(18, 20, 24, …, 29) → '18_20_24-29'; the inverse of `parse_layers`."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return "_".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


@dataclass(frozen=True, slots=True)
class SkipSet:
    """Which sublayers are left out: sorted layer indices of attention and of MLP sublayers."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("attention", "mlp"):
            layers = tuple(sorted(set(getattr(self, field))))
            if layers and layers[0] < 0:
                raise UserError(f"layer {layers[0]} is negative; layers are counted from 0")
            object.__setattr__(self, field, layers)

    def __or__(self, other: SkipSet) -> SkipSet:
        return SkipSet(self.attention + other.attention, self.mlp + other.mlp)

    def __sub__(self, other: SkipSet) -> SkipSet:
        """What this leaves out and the other does not."""
        attention = (layer for layer in self.attention if layer not in other.attention)
        return SkipSet(tuple(attention), tuple(layer for layer in self.mlp if layer not in other.mlp))

    def __bool__(self) -> bool:
        return bool(self.attention or self.mlp)

    def __contains__(self, sublayer: Sublayer) -> bool:
        layer, kind = sublayer
        return layer in (self.attention if kind == "attn" else self.mlp)

    @property
    def name(self) -> str:
        """'base', 'attn24-31', 'block21-31', 'attn20-28+mlp25-31': made of the content; `parse` reads it."""
        if not self:
            return "base"
        if self.attention == self.mlp:
            return f"block{format_layers(self.attention)}"
        kinds = (("attn", self.attention), ("mlp", self.mlp))
        return "+".join(f"{kind}{format_layers(layers)}" for kind, layers in kinds if layers)

    @classmethod
    def of(cls, kind: str, layers: Iterable[int]) -> SkipSet:
        """The skip set that leaves out `kind` (attn, mlp or block) of these layers."""
        layers = tuple(layers)
        if kind not in KINDS:
            raise UserError(f"{kind!r} is not a kind of sublayer; choose from {', '.join(KINDS)}")
        return cls(layers if kind != "mlp" else (), layers if kind != "attn" else ())

    @classmethod
    def parse(cls, name: str) -> SkipSet:
        """The inverse of `name`: 'attn20-28+mlp25-31' → SkipSet.

        Raises:
            UserError: the text is no variant name.
        """
        skip = cls()
        if name == "base":
            return skip
        for part in name.split("+"):
            if not (match := re.fullmatch(r"(attn|mlp|block)([\d_-]+)", part)):
                hint = "write it as attn24-31, block21-31 or attn20-28+mlp25-31"
                raise UserError(f"cannot read the skip set {name!r}; {hint}")
            skip |= cls.of(match[1], parse_layers(match[2]))
        return skip

    def within(self, num_layers: int) -> SkipSet:
        """Itself, after a check that every layer exists in a model of `num_layers` layers.

        Raises:
            UserError: a layer is out of range.
        """
        if beyond := [layer for layer in self.attention + self.mlp if layer >= num_layers]:
            raise UserError(f"layer {max(beyond)} does not exist: the model has layers 0-{num_layers - 1}")
        return self


BASE = SkipSet()
_COMPENSATION = re.compile(r"bias|linear|matrix|rank[1-9]\d{0,5}|fold(?:\+rank[1-9]\d{0,5})?")


def is_compensation(name: str) -> bool:
    """Whether a word names a compensation: bias, linear, matrix, rank16, fold, fold+rank16."""
    return _COMPENSATION.fullmatch(name) is not None


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """A variant's name → (name of the skip set, compensation, adapter); the inverse of `Variant.name`."""
    skip, _, rest = name.partition("~")
    first, _, adapter = rest.partition("~")
    return (skip, first, adapter or None) if is_compensation(first) else (skip, None, rest or None)


@dataclass(frozen=True, slots=True)
class Variant:
    """A model with sublayers left out, at a precision; its identity is its content.

    Attributes:
        precision: of activations and caches; of weights too, where they are not quantised.
        max_tokens: places of a static cache; None where the cache grows with the tokens.
        quantisation: of the weights: 'int4', 'int8-b32'; None where they are the checkpoint's.
    """

    model: str
    skip: SkipSet = BASE
    precision: Precision = "fp32"
    adapter: str | None = None
    head: Head = "gather"
    compensation: str | None = None
    max_tokens: int | None = None
    quantisation: str | None = None

    @property
    def name(self) -> str:
        """'attn24-31'; 'attn24-31~linear' with a compensation, 'attn24-31~linear~heal' also healed."""
        return "~".join(part for part in (self.skip.name, self.compensation, self.adapter) if part)

    @property
    def file(self) -> str:
        """Its name in file names: with a digest, where it is long."""
        return variant_file(self.name)

    @property
    def form(self) -> str:
        """What file names say of its graph's form, behind the precision: '', '.all', '.static512'."""
        return ".all" * (self.head == "all") + (f".static{self.max_tokens}" if self.max_tokens else "")

    @property
    def stem(self) -> str:
        """The file name of its graph without '.onnx': 'attn24-31.fp16', 'base.fp32.all'."""
        return f"{self.file}.{self.precision_name}{self.form}"

    @property
    def precision_name(self) -> str:
        """As --precision and file names have it: 'fp16', or weights and activations, 'int4-fp32'."""
        return precision_name(self.precision, self.quantisation)


@dataclass(frozen=True, slots=True)
class Devices:
    """What a stage computes on.

    Attributes:
        graphs: ONNX Runtime's provider; an engine runs on its GPU whatever this is.
        torch: of PyTorch, beside it.
    """

    graphs: Provider = "cpu"
    torch: Provider = "cpu"


CPU = Devices()


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Where one tensor of a checkpoint lies: a byte range of a safetensors file.

    Attributes:
        file: name of the file inside the checkpoint's folder.
        offset, nbytes: the byte range, counted from the start of the file.
        dtype: 'F32', 'F16' or 'BF16'.
        shape: as the checkpoint's authors stored it; linear weights are [out, in].
    """

    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
