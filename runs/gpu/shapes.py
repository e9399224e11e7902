"""Models of random weights in the shape of known ones: times and rounding are the shape's, words say nothing.

Legend: C hidden size, F intermediate size, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.types import SkipSet, UserError, count_of

KINDS = ("attn", "mlp")
FRACTIONS = (0.25, 0.33)
"""What is left out: the last layers' attention or MLPs, as in Tyukin et al. 2024."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Llama.

    Attributes:
        key: on the command line.
        name: of the model's folder.
        title: in words.
        width: C.
        inner: F.
        layers: L.
        heads: of queries, and as many of keys and values.
        vocabulary: V.
        paper: what Tyukin et al. call the model of this shape; None where they timed none.
        minutes: for everything; seconds: for one stage.
        sequences: that are timed of each length.
    """

    key: str
    name: str
    title: str
    width: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    paper: str | None
    minutes: int
    seconds: int
    sequences: int

    @property
    def config(self) -> dict[str, Any]:
        """config.json. No token ends a text, so that all are as long as is asked."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": None,
            "dtype": "float16",
        }

    @property
    def variants(self) -> tuple[str, ...]:
        """What is left out of each variant, by its name."""
        counts = [count_of(fraction, self.layers) for fraction in FRACTIONS]
        skips = [
            SkipSet.of(kind, range(self.layers - count, self.layers)) for kind in KINDS for count in counts
        ]
        return tuple(skip.name for skip in skips)

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint."""
        layer = 4 * self.width**2 + 3 * self.width * self.inner + 2 * self.width
        return self.layers * layer + 2 * self.vocabulary * self.width + self.width


_SHAPES = (
    ModelShape("tiny", "tiny-shape", "a tiny Llama", 128, 384, 8, 4, 512, None, 30, 400, 10),
    ModelShape("7b", "llama-2-7b-shape", "Llama-2-7B", 4096, 11008, 32, 32, 32000, "7B", 120, 1200, 200),
    ModelShape("13b", "llama-2-13b-shape", "Llama-2-13B", 5120, 13824, 40, 40, 32000, None, 180, 2400, 200),
)
SHAPES = {shape.key: shape for shape in _SHAPES}
"""Name on the command line → shape."""


def find(name: str) -> ModelShape:
    """The shape of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    if name not in SHAPES:
        raise UserError(f"no shape {name!r:.40}; SHAPE is one of {', '.join(SHAPES)}")
    return SHAPES[name]
