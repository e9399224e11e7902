"""The file that Triton opens. The code beside it, in `pipeline/`, is what `pipeline generate` runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pipeline.ship.triton.in_triton.generate_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
