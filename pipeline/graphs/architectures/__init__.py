"""One Hugging Face model_type a file: the decoder as ONNX nodes. The file's name is the registry."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import shlex

from pipeline.graphs.architectures._decoder import Decoder
from pipeline.models import config, drop_lists, tensor_names, tensor_use, unusable
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import Precision, SkipSet, UserError, first_line

log = logging.getLogger(__name__)


def supported() -> list[str]:
    """The model_types that are authored here."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def decoder(checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> Decoder:
    """The decoder of the checkpoint's architecture, ready to `author()`.

    Raises:
        UserError: the architecture is not authored here, or not as the config asks for it.
    """
    unusable.refuse_other_architecture(checkpoint.config, checkpoint.folder)
    model_type = checkpoint.config["model_type"]
    config.refuse_foreign(checkpoint.config, checkpoint.folder / "config.json")
    tensor_use.refuse_quantised(checkpoint)
    _refuse_gone(checkpoint, skip)
    tensor_use.refuse_other_layers(checkpoint, skip)
    _refuse_other_sizes(checkpoint)
    module = importlib.import_module(f"{__name__}.{model_type}")
    authored: Decoder = module.Architecture(checkpoint, precision, skip)
    return authored


def warn_of_code(checkpoint: Checkpoint) -> None:
    """Says that a checkpoint's own code is not run, where it has some."""
    if code := checkpoint.config.get("auto_map"):
        log.warning(
            "warning: %s: its own code (auto_map: %s) is not run; the graph is that of %s as it is published",
            checkpoint.folder / "config.json",
            first_line(", ".join(_classes(code)), 200),
            checkpoint.config["model_type"],
        )


def _refuse_other_sizes(checkpoint: Checkpoint) -> None:
    """Holds the sizes that tables are computed from against the tensors, before they are computed.

    Raises:
        UserError: a size is larger than any dimension of any tensor.
    """
    largest = max((size for tensor in checkpoint.tensors.values() for size in tensor.shape), default=0)
    for key in ("hidden_size", "vocab_size", "head_dim"):
        if (size := checkpoint.config[key]) > largest:
            raise UserError(
                f"{checkpoint.folder}: config.json says {key} {size}, but no tensor has a dimension of more "
                f"than {largest}"
            )


def _classes(auto_map: object) -> list[str]:
    """The classes of an `auto_map`."""
    return [str(name) for name in auto_map.values()] if isinstance(auto_map, dict) else [str(auto_map)]


def _refuse_gone(checkpoint: Checkpoint, skip: SkipSet) -> None:
    """Refuses a variant that needs sublayers which config.json drops and whose weights are gone.

    Raises:
        UserError: it does; says which, and what can be written.
    """
    dropped = drop_lists.of(checkpoint)
    gone = tensor_names.gone(checkpoint.tensors, checkpoint.config["num_hidden_layers"])
    needed = SkipSet(
        tuple(set(gone.attention) & set(dropped.attention) - set(skip.attention)),
        tuple(set(gone.mlp) & set(dropped.mlp) - set(skip.mlp)),
    )
    if needed:
        raise UserError(
            f"{checkpoint.folder}: the weights of {needed.name} are gone from its files, and {skip.name} "
            f"needs them; `pipeline export {shlex.quote(str(checkpoint.folder))} "
            f"--skip {(gone | skip).name}` leaves them out"
        )
