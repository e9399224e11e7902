"""A cache in ONNX Runtime's own tensors: on the CPU, or on the GPU that its session runs on.

Outputs of one step are bound as inputs of the next, so that nothing of the cache is copied between them.
Rows are taken out and joined by small graphs in sessions on the same device, on the CPU too.

Legend: B rows, P cached tokens, G key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from pipeline.runtime import cache_graphs
from pipeline.runtime.cache import Array, Cache
from pipeline.types import first_line

Values = dict[str, Any]
"""Name → onnxruntime.OrtValue, which has no types."""

_END = np.iinfo(np.int64).max


def run_bound(
    session: ort.InferenceSession,
    arrays: Mapping[str, Array],
    values: Mapping[str, Any],
    outputs: Mapping[str, str],
) -> Values:
    """One run of a session whose tensors stay where they are.

    Args:
        session: it.
        arrays: inputs on the host, contiguous and of the right type.
        values: inputs that lie where the session runs.
        outputs: name → the device on which it is wanted: 'cpu' or 'cuda'.

    Returns:
        Output name → its value.
    """
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, device in outputs.items():
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    return dict(zip(outputs, binding.get_outputs(), strict=True))


def uploaded(array: Array, device: str) -> Any:
    """A value on a device with an array's numbers; on the CPU it is the array's own memory."""
    if not array.size:  # a copy of nothing is refused on some devices
        return ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, device, 0)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)


class CacheSurgeon:
    """Cuts and joins the caches of one runner, on its device.

    Args:
        dtypes: cache tensor → its type.
        token_bytes: of one token of one row, all tensors together.
        device: 'cpu' or 'cuda'.
        open_graph: a session on that device for a serialised graph.
    """

    def __init__(
        self,
        dtypes: Mapping[str, np.dtype[Any]],
        token_bytes: int,
        device: str,
        open_graph: Callable[[bytes], ort.InferenceSession],
    ) -> None:
        self.dtypes, self.token_bytes, self.device = dict(dtypes), token_bytes, device
        self._open, self._sessions = open_graph, dict[str, ort.InferenceSession]()

    def rows(self, values: Values, rows: Sequence[int]) -> Values:
        """Rows of every tensor."""
        return self._run("rows", {"rows": rows}, {"x": values})

    def tokens(self, values: Values, first: int, end: int) -> Values:
        """Of every row the tokens first … end − 1."""
        return self._run("tokens", {"starts": [0, 0, first], "ends": [_END, _END, end]}, {"x": values})

    def padded(self, values: Values, zeros: int) -> Values:
        """The tensors with so many tokens of zeros before their own."""
        return self._run("pad", {"pads": [0, 0, zeros, 0, 0, 0, 0, 0]}, {"x": values}) if zeros else values

    def joined(self, left: Values, right: Values) -> Values:
        """The rows of both, which have as many tokens."""
        return self._run("join", {}, {"a": left, "b": right})

    def _run(self, form: str, numbers: Mapping[str, Sequence[int]], sides: Mapping[str, Values]) -> Values:
        if not self.dtypes:  # a model without any attention: there is nothing to run
            return {}
        if form not in self._sessions:
            self._sessions[form] = self._open(cache_graphs.graph(form, list(self.dtypes.values())))
        arrays = {name: np.array(values, np.int64) for name, values in numbers.items()}
        inputs = {
            f"{side}{i}": values[name] for side, values in sides.items() for i, name in enumerate(self.dtypes)
        }
        outputs = {f"y{i}": self.device for i in range(len(self.dtypes))}
        try:
            results = run_bound(self._sessions[form], arrays, inputs, outputs)
        except Exception as error:  # ONNX Runtime's exceptions share no other base class
            # The tensors fit the graph, so that there is one thing that can be missing.
            raise MemoryError(first_line(error)) from error
        return dict(zip(self.dtypes, results.values(), strict=True))


class OrtCache(Cache):
    """A cache in OrtValues, made by a runner's step.

    Args:
        values: past_key_values.{i}.key|value → its value [B, G, P, D].
        rows: B.
        tokens: P.
        surgeon: of the runner.
    """

    def __init__(self, values: Values, rows: int, tokens: int, surgeon: CacheSurgeon) -> None:
        self.values, self.rows, self.tokens, self.surgeon = values, rows, tokens, surgeon

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.rows * self.tokens * self.surgeon.token_bytes

    def arrays(self) -> dict[str, Array]:
        """Copies on the host."""
        return {name: value.numpy() for name, value in self.values.items()}

    def beside(self, others: Sequence[Self]) -> Self:
        """Joins neighbours two by two, so that each row is copied as often as the number of rows has bits."""
        caches = [self, *others]
        while len(caches) > 1:
            pairs = [caches[k]._with(caches[k + 1]) for k in range(0, len(caches) - 1, 2)]
            caches = [*pairs, *caches[2 * len(pairs) :]]
        return caches[0]

    def _with(self, other: Self) -> Self:
        tokens, surgeon = max(self.tokens, other.tokens), self.surgeon
        sides = [surgeon.padded(one.values, tokens - one.tokens) for one in (self, other)]
        return type(self)(surgeon.joined(*sides), self.rows + other.rows, tokens, surgeon)

    def _cut(self, rows: Sequence[int], first: int, end: int) -> Self:
        """What makes it smaller comes first, and nothing is done that changes nothing."""
        values = self.values
        if len(rows) > self.rows and (first, end) != (0, self.tokens):
            values, first, end = self.surgeon.tokens(values, first, end), 0, end - first
            return type(self)(values, self.rows, end, self.surgeon).part(rows)
        if list(rows) != list(range(self.rows)):
            values = self.surgeon.rows(values, rows)
        if (first, end) != (0, self.tokens):
            values = self.surgeon.tokens(values, first, end)
        return type(self)(values, len(rows), end - first, self.surgeon)
