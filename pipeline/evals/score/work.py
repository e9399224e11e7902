"""What went through the model for answers; kept beside them, so that a resumed run counts all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Self

DIGITS = 6
"""Of a share in a journal: the shares of a million answers add up to whole numbers again."""


@dataclass(slots=True)
class Work:
    """What went through the model, or one answer's share of it.

    Attributes:
        tokens: input tokens, without padding.
        padding: padded ones.
        passes: forward passes; not counted where text is generated.
        asked: tokens that one forward pass per request would take.
        seconds: of the clock.
    """

    tokens: float = 0
    padding: float = 0
    passes: float = 0
    asked: float = 0
    seconds: float = 0

    @classmethod
    def of(cls, numbers: object) -> Self:
        """From a journal's list; nothing where it is of another form (0.1 kept none)."""
        if not isinstance(numbers, list) or len(numbers) != len(fields(cls)):
            return cls()
        is_of_form = all(isinstance(number, int | float) and 0 <= number < 1e15 for number in numbers)
        return cls(*numbers) if is_of_form else cls()

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """The sum."""
        rows = [astuple(part) for part in parts]
        return cls(*(sum(column) for column in zip(*rows, strict=True)))

    def since(self, earlier: Work) -> Work:
        """What came after an earlier count."""
        return Work(*(a - b for a, b in zip(astuple(self), astuple(earlier), strict=True)))

    def share(self, answers: int) -> Work:
        """An answer's equal part."""
        return Work(*(round(number / answers, DIGITS) for number in astuple(self)))

    def numbers(self) -> list[float]:
        """As a journal keeps it."""
        return list(astuple(self))

    def counts(self) -> dict[str, int]:
        """As a result has it: whole numbers."""
        return {field.name: round(getattr(self, field.name)) for field in fields(self)}
