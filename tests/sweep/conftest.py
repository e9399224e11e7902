from __future__ import annotations

from tests.grids import project

__all__ = ["project"]
