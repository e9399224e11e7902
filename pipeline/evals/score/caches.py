"""Keys and values of token prefixes, kept while they fit; the least recently used prefix is dropped first.

Legend: P cached tokens.
"""

from __future__ import annotations

from collections import Counter

from cachetools import LRUCache

from pipeline.evals.score.prefixes import Tokens
from pipeline.runtime.cache import Cache

TOKEN_BYTES = 4
"""Of an int32."""


class PrefixCache(LRUCache[bytes, Cache]):
    """Token prefix (as bytes) → its keys and values, one row of P tokens.

    A dropped prefix only costs its computation again: `longest` gives the longest one that is left.

    Args:
        limit: bytes of all caches at most, where they lie.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit, getsizeof=lambda cache: cache.nbytes)
        self._cooled: dict[bytes, None] = {}
        self._lengths = Counter[int]()

    def longest(self, tokens: Tokens, most: int) -> tuple[int, Cache | None]:
        """The longest cached prefix of some tokens.

        Args:
            tokens: [n].
            most: P at most.

        Returns:
            (P, its cache), or (0, None) where no prefix is cached.
        """
        for length in sorted((n for n in self._lengths if n <= most), reverse=True):
            key = tokens[:length].tobytes()
            if key in self:
                self._cooled.pop(key, None)
                return length, self[key]
        return 0, None

    def put(self, tokens: Tokens, cache: Cache) -> None:
        """Keeps the cache of these tokens, unless it is larger than the limit."""
        key = tokens.tobytes()
        if key not in self and cache.nbytes <= self.maxsize:
            self[key] = cache
            self._lengths[len(tokens)] += 1

    def cool(self, tokens: Tokens) -> None:
        """Marks a prefix that nothing waits for: it is dropped before all others, the last marked first."""
        if (key := tokens.tobytes()) in self:
            self._cooled[key] = None

    def popitem(self) -> tuple[bytes, Cache]:
        """Drops a prefix to make room; `LRUCache` calls it."""
        if not self._cooled:
            return super().popitem()
        key = next(reversed(self._cooled))
        return key, self.pop(key)

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        self._cooled.pop(key, None)
        length = len(key) // TOKEN_BYTES
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]
