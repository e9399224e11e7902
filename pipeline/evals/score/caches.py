"""Keys and values of token prefixes, kept while they fit; the least recently used one goes first."""

from __future__ import annotations

from collections import OrderedDict

from pipeline.evals.score.prefixes import Tokens
from pipeline.runtime.runner import Cache


class PrefixCache:
    """Token prefix → its cache (each tensor [1, G, P, D]), at most `limit` bytes of them.

    A prefix that was dropped costs its computation again and nothing else: whoever asks gets the longest one that is left.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.entries: OrderedDict[bytes, tuple[int, Cache]] = OrderedDict()
        self.lengths: dict[int, int] = {}

    def longest(self, tokens: Tokens, most: int) -> tuple[int, Cache | None]:
        """(P, cache) of the longest prefix of `tokens` with P ≤ most that is held; (0, None) where there is none."""
        for length in sorted((n for n in self.lengths if n <= most), reverse=True):
            key = tokens[:length].tobytes()
            if key in self.entries:
                self.entries.move_to_end(key)
                return length, self.entries[key][1]
        return 0, None

    def put(self, tokens: Tokens, cache: Cache) -> None:
        """Keeps the cache of these tokens; what was not used for longest makes room."""
        key, size = tokens.tobytes(), sum(array.nbytes for array in cache.values())
        if key in self.entries or size > self.limit:
            return
        while self.entries and self.held + size > self.limit:
            self._drop(next(iter(self.entries)))
        self.entries[key] = (size, cache)
        self.held += size
        self.lengths[len(tokens)] = self.lengths.get(len(tokens), 0) + 1

    def cool(self, tokens: Tokens) -> None:
        """Nothing waits for this prefix any more: it is the first to go when room is needed."""
        if (key := tokens.tobytes()) in self.entries:
            self.entries.move_to_end(key, last=False)

    def _drop(self, key: bytes) -> None:
        size, _ = self.entries.pop(key)
        self.held -= size
        length = len(key) // 4
        self.lengths[length] -= 1
        if not self.lengths[length]:
            del self.lengths[length]
