"""What runners of all backends share: one interface to a graph or an engine that is ready to run.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary,
G key/value heads, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.runtime.cache import Array as Array
from pipeline.runtime.cache import Cache, HostCache, resized
from pipeline.types import UserError

LOGIT_NUMBERS = 1024 * 49152
"""Logits held at a time: 200 MB in fp32, 1024 rows of SmolLM2's 49,152 words, 192 of Gemma's."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output; a symbolic dimension is a string, an unknown one None."""

    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest B, S, P and K that a runner takes in one pass; an engine's come from its ranges."""

    batch: int = 1 << 30
    new: int = 1 << 30
    past: int = 1 << 30
    wanted: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass, ready to run.

    Attributes:
        feeds: the inputs that come from the host: all but the cache.
        cache: P tokens of keys and values, where the runner keeps them.
        wanted: [B, K] int64, what `logits_positions` holds; logits of every position are read there.
    """

    feeds: dict[str, Array]
    cache: Cache
    wanted: Array

    @property
    def rows(self) -> int:
        """B."""
        return int(self.feeds["input_ids"].shape[0])

    @property
    def tokens(self) -> int:
        """T, of the cache after it."""
        return int(self.cache.tokens + self.feeds["input_ids"].shape[1])


class Runner(ABC):
    """A graph or an engine that is ready to run. A backend adds `infer`; the rest follows from the contract.

    A backend that keeps the cache elsewhere than in numpy arrays adds `cache_of` and `_run`, too.

    Attributes:
        path: the artefact.
        inputs, outputs: name → TensorInfo, in the artefact's order.
        limits: sizes that one pass takes at most.
        piece: tokens of a long text that a pass should take; None for as many as it can.
        embedding_rows: tokens that the embedding knows; None where whoever opened it could not tell.
    """

    path: Path
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    limits: Limits = Limits()
    piece: int | None = None
    embedding_rows: int | None = None

    @property
    def width(self) -> int | None:
        """V, the logits of one position; None where the artefact does not fix it."""
        shapes = [info.shape for name, info in self.outputs.items() if name.split(".")[0] == "logits"]
        size = shapes[0][-1] if shapes and shapes[0] else None
        return size if isinstance(size, int) else None

    @property
    def vocabulary(self) -> int | None:
        """Token ids that it takes are below this: rows of the embedding, else the width of the logits."""
        return self.embedding_rows or self.width

    def unknown(self, tokens: Iterable[int]) -> int | None:
        """The first token id that the embedding has no row for; None where it has all.

        A backend may read another row, or memory that is not the embedding's, without a word: ONNX Runtime
        takes -1 for the last row, TensorRT checks nothing.
        """
        most = self.vocabulary or 1 << 31
        return next((token for token in tokens if not 0 <= token < most), None)

    @property
    def heads(self) -> list[str]:
        """The variants whose logits come out of a merged graph; [''] where there is one."""
        return [
            name.removeprefix("logits").removeprefix(".")
            for name in self.outputs
            if name.split(".")[0] == "logits"
        ]

    @property
    def gathers(self) -> bool:
        """Whether logits are computed only at the wanted positions."""
        return "logits_positions" in self.inputs

    @property
    def has_cache(self) -> bool:
        """Whether it keeps keys and values of earlier tokens."""
        return any(name.startswith("past_key_values.") for name in self.inputs)

    @property
    def max_tokens(self) -> int | None:
        """N, the places of a static cache, which past and present both have; None where the cache grows."""
        shapes = (info.shape for name, info in self.inputs.items() if name.startswith("past_key_values."))
        size = next(shapes)[2] if "write_indices" in self.inputs else None
        return size if isinstance(size, int) else None

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values per token."""
        return sum(heads * dim * dtype.itemsize for heads, dim, dtype in self.cache_shapes().values())

    def cache_shapes(self) -> dict[str, tuple[int, int, np.dtype[Any]]]:
        """Cache tensor → (G, D, its type), for the layers whose attention is there.

        Raises:
            UserError: the artefact does not fix them.
        """
        shapes = {}
        for name, info in self.inputs.items():
            if name.startswith("past_key_values."):
                heads, dim = info.shape[1], info.shape[3]
                if not isinstance(heads, int) or not isinstance(dim, int):
                    raise UserError(f"{self.path}: {name} has no fixed number of heads and head dimension")
                shapes[name] = (heads, dim, info.dtype)
        return shapes

    @abstractmethod
    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        """Runs the artefact.

        Args:
            feeds: its inputs, all of them and no others.
            wanted: names of outputs; all by default.
        """

    def close(self) -> None:
        """Frees what the runner holds."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cache_of(self, arrays: Mapping[str, Array], rows: int, tokens: int) -> Cache:
        """A cache of this runner with the numbers of arrays, which must not change afterwards.

        Args:
            arrays: past_key_values.{i}.key|value → [B, G, P, D], for every cached layer of this variant.
            rows: B.
            tokens: P.
        """
        return HostCache(arrays, rows, tokens)

    def empty_cache(self, batch: int) -> Cache:
        """A cache of P = 0 tokens for B rows."""
        shapes = self.cache_shapes().items()
        arrays = {name: np.zeros((batch, heads, 0, dim), dtype) for name, (heads, dim, dtype) in shapes}
        return self.cache_of(arrays, batch, 0)

    def prepared(
        self,
        input_ids: Array,
        cache: Cache | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        logits_positions: Array | None = None,
    ) -> Pass:
        """One forward pass, defaults filled in.

        Args:
            input_ids: [B, S] int64.
            cache: P tokens of keys and values; None is the empty cache.
            attention_mask: [B, T], 0 = padding; all ones by default.
            position_ids: [B, S]; by default each row counts its unmasked tokens.
            logits_positions: [B, K], indices into S; the last token by default.

        Raises:
            UserError: a static cache has no places left.
        """
        batch, new = input_ids.shape
        cache = self.empty_cache(batch) if cache is None else cache
        self._refuse_beyond(cache.tokens + new)
        mask = np.ones((batch, cache.tokens + new), np.int64) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -new:]
        wanted = np.full((batch, 1), new - 1, np.int64) if logits_positions is None else logits_positions
        arrays = {
            "input_ids": input_ids,
            "attention_mask": resized(mask, 1, self.max_tokens),
            "write_indices": np.full(batch, cache.tokens),
            "position_ids": position_ids,
            "logits_positions": wanted,
        }
        feeds = {
            name: np.ascontiguousarray(arrays[name], info.dtype)
            for name, info in self.inputs.items()
            if not name.startswith("past_key_values.")
        }
        return Pass(feeds, cache, wanted)

    def _refuse_beyond(self, tokens: int) -> None:
        """Refuses more tokens than a static cache has places: they would be written nowhere."""
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise UserError(
                f"{self.path}: its cache holds {self.max_tokens} tokens, and there are {tokens}; "
                "export it with more --max-tokens"
            )

    def feeds(self, input_ids: Array, cache: Cache | None = None, **rest: Array | None) -> dict[str, Array]:
        """All inputs of one forward pass as arrays, for `infer`: arguments as `prepared`, cache and all."""
        one = self.prepared(input_ids, cache, **rest)
        arrays = {**one.feeds, **self._pasts(one.cache)}
        return {name: np.ascontiguousarray(arrays[name], info.dtype) for name, info in self.inputs.items()}

    def forward(
        self, input_ids: Array, cache: Cache | None = None, **rest: Array | None
    ) -> tuple[Array, Cache]:
        """One forward pass (arguments as `prepared`) → (logits [B, K, V], the cache with T tokens)."""
        logits, after = self.step(self.prepared(input_ids, cache, **rest))
        assert after is not None, "it was asked for"
        return logits[""], after

    def step(self, one: Pass, keep_cache: bool = True) -> tuple[dict[str, Array], Cache | None]:
        """One forward pass. Of its outputs the logits alone come to the host.

        Args:
            one: it.
            keep_cache: give the cache back.

        Returns:
            Head → logits [B, K, V], and the cache with T tokens (None where it is not kept).
        """
        outputs, cache = self._run(one, keep_cache)
        logits = {head: outputs[f"logits.{head}" if head else "logits"] for head in self.heads}
        if not self.gathers:  # `--head all` and optimum's graphs give [B, S, V]
            logits = {
                head: np.take_along_axis(values, one.wanted[:, :, None], axis=1)
                for head, values in logits.items()
            }
        return logits, cache

    def _run(self, one: Pass, keep_cache: bool) -> tuple[dict[str, Array], Cache | None]:
        """As `step`: the outputs `logits…` by their names, and the cache."""
        presents = self._presents() if keep_cache else {}
        names = [name for name in self.outputs if name.split(".")[0] == "logits"]
        outputs = self.infer({**one.feeds, **self._pasts(one.cache)}, [*names, *presents])
        tokens = None if self.max_tokens is None else one.tokens
        arrays = {past: resized(outputs.pop(name), 2, tokens) for name, past in presents.items()}
        return outputs, self.cache_of(arrays, one.rows, one.tokens) if keep_cache else None

    def _pasts(self, cache: Cache) -> dict[str, Array]:
        """The cache as the artefact takes it: a static one is widened by places that hold nothing."""
        return {name: resized(array, 2, self.max_tokens) for name, array in cache.arrays().items()}

    def _presents(self) -> dict[str, str]:
        """Output present.{i}.key|value → the input that takes it in the next step."""
        pasts = {name: name.replace("present.", "past_key_values.", 1) for name in self.outputs}
        return {name: past for name, past in pasts.items() if name != past and past in self.inputs}
