"""What `--type` means for one model."""

from __future__ import annotations

from pipeline.models.gguf.origins import Origin
from pipeline.ship.gguf import kinds
from pipeline.ship.gguf.kinds import SOURCE, FileKind
from pipeline.ship.pruned import PrunedModel
from pipeline.types import UserError

_OTHERS = ", ".join(kinds.TYPES)


def chosen(name: str | None, model: PrunedModel, origin: Origin | str | None) -> FileKind:
    """The type of a file.

    By default a model that came from a GGUF keeps the GGUF's own tensors; from safetensors, bfloat16 stays
    bfloat16, and everything else is float16, as llama.cpp's converter has it. The GGUF's own type is what is
    copied too.

    Args:
        name: what `--type` says, in lower case.
        model: the variant.
        origin: the GGUF that the model came from, or why it cannot be used; None: it came from none.

    Raises:
        UserError: a type that is not written here, or that the GGUF does not have.
    """
    name = name and name.lower()
    if name is None:
        name = SOURCE if origin is not None else "bf16" if _is_bfloat(model) else "f16"
    own = kinds.type_name(origin.fields) if isinstance(origin, Origin) else None
    if name in (SOURCE, own):
        return _of_source(model, origin)
    if name in kinds.TYPES:
        return FileKind(name)
    if name not in kinds.known():
        raise UserError(f"--type {name!r:.40} is no type of llama.cpp's; choose {SOURCE}, {_OTHERS}")
    has = f", and {origin.file} has {own or 'another'}" if isinstance(origin, Origin) else ""
    raise UserError(
        f"--type {name} is not made here{has}: ship with --type f16 as OUT.f16.gguf, then "
        f"`llama-quantize OUT.f16.gguf OUT.gguf {name.upper()}`"
    )


def _of_source(model: PrunedModel, origin: Origin | str | None) -> FileKind:
    if isinstance(origin, Origin):
        return FileKind(SOURCE)
    reason = origin or f"{model.checkpoint.folder} came from no GGUF whose tensors could be copied"
    raise UserError(f"{reason}; choose another --type: {_OTHERS}")


def _is_bfloat(model: PrunedModel) -> bool:
    return any(one.slice.dtype == "BF16" for one in model.tensors.values() if len(one.shape) > 1)
