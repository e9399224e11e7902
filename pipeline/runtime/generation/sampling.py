"""How the next token is picked from its logits: greedy, or drawn with temperature, top-k and top-p.

Legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.runtime.runner import Array
from pipeline.types import UserError

NOT_FINITE = (
    "the model's logits are not finite (NaN or infinity): a number in it overflows, most likely float16's "
    "range of 65504; use its fp32 graph"
)
MOST_STOPS, LONGEST_STOP = 16, 256
"""Stop strings, and characters in one: each is looked for at every token."""

MOST_ALTERNATIVES = 20
"""Of a token, with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are picked; names as in TensorRT-LLM's Triton backend and OpenAI's API.

    Attributes:
        max_tokens: at most so many new tokens.
        temperature: 0 is greedy.
        top_k: draw from the k likeliest tokens only; 0 is all.
        top_p: draw from the fewest likeliest tokens that together have this probability.
        seed: of the draw; the same seed gives the same text. None is another one each time.
        repetition_penalty: divides the logits of earlier tokens (Keskar et al. 2019, eq. 2); 1 is none.
        presence_penalty: subtracted from the logits of tokens that are in the text.
        frequency_penalty: subtracted as often as the token is in the text.
        stop: strings that end the text and do not appear in it; 16 of 256 characters at most.
        ignore_eos: go on after the model's end-of-text token (for measuring).
        logprobs: log-probabilities of the tokens and of so many alternatives are wanted; None is neither.

    Raises:
        UserError: a value is out of range or no number.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_tokens", 1, 1 << 31),
            ("temperature", 0, 100),
            ("top_k", 0, 1 << 31),
            ("repetition_penalty", 1e-3, 1e3),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
        ):
            value = getattr(self, name)
            if name in ("max_tokens", "top_k") and not isinstance(value, int):
                raise UserError(f"{name} {value} is no whole number")
            if not (math.isfinite(value) and low <= value <= high):
                raise UserError(f"{name} {value} is not between {low} and {high}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is not above 0 and at most 1")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed {self.seed} is negative")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_ALTERNATIVES:
            raise UserError(f"logprobs {self.logprobs} is not between 0 and {MOST_ALTERNATIVES}")
        if not all(self.stop):
            raise UserError("a stop string is empty")
        longest = max(map(len, self.stop), default=0)
        if len(self.stop) > MOST_STOPS or longest > LONGEST_STOP:
            raise UserError(
                f"there are {len(self.stop)} stop strings of up to {longest} characters; {MOST_STOPS} of "
                f"{LONGEST_STOP} are taken at most"
            )


class Sampler:
    """Picks the tokens of one text.

    Args:
        sampling: how.
        prompt: the tokens before the text.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.earlier = set(prompt)
        self.written: Counter[int] = Counter()
        self.random = np.random.default_rng(sampling.seed)

    def pick(self, logits: Array) -> int:
        """The next token, from its logits [V].

        Raises:
            UserError: the logits hold NaN or infinity: the model overflowed its precision.
        """
        scores = self._penalised(finite(logits).astype(np.float32))
        best = scores.max()
        token = int(scores.argmax()) if self.sampling.temperature == 0 else self._draw(scores - best)
        self.earlier.add(token)
        self.written[token] += 1
        return token

    def _penalised(self, scores: Array) -> Array:
        sampling = self.sampling
        if sampling.repetition_penalty != 1:
            ids = np.fromiter(self.earlier, np.int64, len(self.earlier))
            part = scores[ids]
            penalty = sampling.repetition_penalty
            scores[ids] = np.where(part < 0, part * penalty, part / penalty)
        if self.written and (sampling.presence_penalty or sampling.frequency_penalty):
            ids = np.fromiter(self.written, np.int64, len(self.written))
            counts = np.fromiter(self.written.values(), np.float32, len(self.written))
            scores[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        return scores

    def _draw(self, scores: Array) -> int:
        """Draws by scores of at most 0: divided by a tiny temperature they give 0 and -inf, and no NaN."""
        with np.errstate(over="ignore"):
            ids, chances = kept(
                scores.astype(np.float64) / self.sampling.temperature,
                self.sampling.top_k,
                self.sampling.top_p,
            )
        place = np.searchsorted(np.cumsum(chances), self.random.random() * chances.sum(), side="right")
        return int(ids[min(place, len(ids) - 1)])


def finite(logits: Array) -> Array:
    """The logits, if they are all numbers.

    The likeliest of others means nothing: argmax gives the first NaN, and a text of token 0 would be scored.

    Raises:
        UserError: some are NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise UserError(NOT_FINITE)
    return logits


def kept(scores: Array, top_k: int, top_p: float) -> tuple[Array, Array]:
    """The tokens that may be drawn: top-k, then top-p of what that leaves.

    Args:
        scores: [V].
        top_k: 0 is all.
        top_p: probability that must be reached.

    Returns:
        Their ids, likeliest first, and their probabilities.
    """
    count = min(top_k or len(scores), len(scores))
    ids = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    chances = np.exp((scores[ids] - scores[ids[0]]).astype(np.float64))
    chances /= chances.sum()
    if top_p < 1:
        enough = int(np.searchsorted(np.cumsum(chances), top_p)) + 1
        ids, chances = ids[:enough], chances[:enough] / chances[:enough].sum()
    return ids, chances
