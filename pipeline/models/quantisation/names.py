"""What quantisations there are, and what each is called on the command line, in records and in file names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.types import PRECISIONS, Precision, UserError, precision_name

BITS = (4, 8)
BLOCK_SIZES = (32, 64, 128)
"""Inputs that share a scale."""
BLOCK_SIZE = 64
METHODS = ("rtn", "gptq")
"""How weights are rounded: to nearest, with the clip of least squared error; or each with what it does to the
layer's outputs on text (`gptq.py`)."""
METHOD = METHODS[0]
HEAD_BITS = 8
"""Of the head's weights, whatever the others have."""
VALUE_BITS = 8
"""Likewise of the projection of values, where it has a weight of its own and the method measures: 3 % of the
weights, whose error every later token reads from the first (docs/notes.md)."""
SCALE_BYTES = 2
_NAME = re.compile(r"int(?P<bits>\d+)(?:-b(?P<block>\d{1,5}))?(?:-(?P<method>[a-z]+))?")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the weights of a model's linear layers are kept.

    Attributes:
        bits: 4 or 8, signed and symmetric.
        block_size: so many inputs of one output share a scale.
        method: how they are rounded.

    Raises:
        UserError: there is none such.
    """

    bits: int
    block_size: int = BLOCK_SIZE
    method: str = METHOD

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"weights of {self.bits} bits are not written; take int4 or int8")
        if self.block_size not in BLOCK_SIZES:
            raise UserError(
                f"--block-size {self.block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}"
            )
        if self.method not in METHODS:
            raise UserError(f"--method {self.method!r:.40} is not known; choose from {', '.join(METHODS)}")

    @property
    def name(self) -> str:
        """'int4'; what is not as usual follows: 'int4-b32', 'int8-b128-gptq'."""
        block = f"-b{self.block_size}" if self.block_size != BLOCK_SIZE else ""
        return f"int{self.bits}{block}" + (f"-{self.method}" if self.method != METHOD else "")

    @property
    def file(self) -> str:
        """The file of a model's weights in this form: 'quantised.int4-b64-rtn.safetensors'."""
        return f"quantised.int{self.bits}-b{self.block_size}-{self.method}.safetensors"

    @property
    def head_bits(self) -> int:
        """Bits of the head's weights in the file; graphs in fp16 may read it elsewhere (`is_in_blocks`)."""
        return max(self.bits, HEAD_BITS)

    @property
    def value_bits(self) -> int:
        """Bits of the weights that make values, where they are a matrix of their own."""
        return self.bits if self.method == METHOD else max(self.bits, VALUE_BITS)

    @property
    def reads_text(self) -> bool:
        """Whether the method measures something on a text."""
        return self.method != METHOD

    def nbytes(self, numbers: int, bits: int) -> int:
        """Bytes of so many weights of so many bits, and of their scales."""
        return numbers * bits // 8 + numbers // self.block_size * SCALE_BYTES

    @classmethod
    def parse(cls, name: str) -> Quantisation:
        """The inverse of `name`.

        Raises:
            UserError: it names none.
        """
        if not (match := _NAME.fullmatch(name)):
            raise UserError(f"{name!r:.40} names no quantisation; write it as int4, int8 or int4-b32")
        return cls(int(match["bits"]), int(match["block"] or BLOCK_SIZE), match["method"] or METHOD)


def is_in_blocks(bits: int, form_bits: int, activations: str) -> bool:
    """Whether a graph reads a weight from the file of quantised ones, and not as the checkpoint has it.

    An int4 graph in fp16 is for engines, whose products read 4 bits in blocks and no other number: what has 8
    bits beside them, the head, would be written out in fp16 in every pass by TensorRT-RTX, and refused by
    TensorRT (docs/notes.md). It stays the checkpoint's own.

    Args:
        bits: of the weight, in the file.
        form_bits: of the quantisation.
        activations: the graph's precision.
    """
    return bits == form_bits or activations == "fp32"


@dataclass(frozen=True, slots=True)
class GraphPrecision:
    """What a graph computes with.

    Attributes:
        activations: precision of activations, caches, and weights that are not quantised.
        weights: how linear layers' weights are kept; None for the checkpoint's own.
    """

    activations: Precision
    weights: Quantisation | None = None

    @property
    def name(self) -> str:
        """'fp16', 'int4-fp32', as `Variant.precision_name`."""
        return precision_name(self.activations, self.weights.name if self.weights else None)


def requested(
    text: str, block_size: int | None = None, method: str | None = None, usual: int = BLOCK_SIZE
) -> list[GraphPrecision]:
    """What --precision, --block-size and --method ask for: 'int4' alone for activations of both precisions.

    Args:
        text: 'fp32', 'int4-fp16', 'int4-b32-fp32', 'int8'.
        block_size: beside it; of what the text does not say.
        method: beside it, likewise.
        usual: the block size where neither says one.

    Raises:
        UserError: there is no such precision, or two of them contradict each other.
    """
    if text in PRECISIONS:
        if block_size is not None or method is not None:
            raise UserError(
                f"--block-size and --method are of quantised weights, and --precision {text} has none; "
                f"take --precision int4-{text}"
            )
        return [GraphPrecision(text)]  # type: ignore[arg-type]
    weights, _, activations = text.rpartition("-")
    if activations not in PRECISIONS:
        weights, activations = text, ""
    if not (match := _NAME.fullmatch(weights)):
        raise UserError(
            f"--precision {text!r:.40} is not known; choose fp32 (CPU), fp16 (engines), or with quantised "
            "weights int4-fp32, int4-fp16, int8-fp32, int8-fp16; int4 and int8 alone write both"
        )
    _refuse_two("--block-size", block_size, match["block"], text)
    _refuse_two("--method", method, match["method"], text)
    asked = Quantisation(
        int(match["bits"]),
        block_size if block_size is not None else int(match["block"] or usual),
        method if method is not None else match["method"] or METHOD,
    )
    wanted = [activations] if activations else PRECISIONS
    return [GraphPrecision(one, asked) for one in wanted]  # type: ignore[arg-type]


def _refuse_two(option: str, value: object, said: str | None, text: str) -> None:
    """Refuses an option that says otherwise than the precision's name."""
    if value is not None and said is not None and str(value) != said:
        raise UserError(f"--precision {text} and {option} {value} contradict each other; leave one out")
