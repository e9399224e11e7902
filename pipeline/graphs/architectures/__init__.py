"""One Hugging Face model_type a file: the decoder as ONNX nodes. The file's name is the registry."""

from __future__ import annotations

import importlib
import pkgutil

from pipeline.graphs.architectures._decoder import Decoder
from pipeline.models import config
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import Precision, SkipSet, UserError


def supported() -> list[str]:
    """The model_types that are authored here."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def decoder(checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> Decoder:
    """The decoder of the checkpoint's architecture, ready to `author()`.

    Raises:
        UserError: the architecture is not authored here, or not as the config asks for it.
    """
    model_type = checkpoint.config.get("model_type")
    if model_type not in supported():
        raise UserError(
            f"{checkpoint.folder}: architecture {model_type!r} is not authored here "
            f"({', '.join(supported())} are); export it with "
            "`optimum-cli export onnx --task text-generation-with-past` "
            "and use `pipeline export --from-onnx FOLDER`"
        )
    config.refuse_foreign(checkpoint.config, checkpoint.folder / "config.json")
    module = importlib.import_module(f"{__name__}.{model_type}")
    authored: Decoder = module.Architecture(checkpoint, precision, skip)
    return authored
