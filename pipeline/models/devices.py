"""The device that PyTorch computes on: the CPU, or CUDA where this PyTorch and this machine have it."""

from __future__ import annotations

from pathlib import Path

from pipeline.models import costs
from pipeline.models.config import read_config
from pipeline.runtime import device_memory
from pipeline.types import Provider, SkipSet, UserError, first_line

_MEND = "take --provider cpu, or install one with it: https://pytorch.org/get-started/locally"


def refusal(provider: Provider) -> str | None:
    """Why PyTorch cannot compute there; None where it can.

    Args:
        provider: 'cpu' or 'cuda'.
    """
    if provider == "cpu":
        return None
    import torch

    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; {_MEND}"
    if not torch.cuda.is_available():
        return (
            f"PyTorch {torch.__version__} sees no NVIDIA GPU that CUDA {torch.version.cuda} can use; "
            "`nvidia-smi` must show one, and a driver of that version"
        )
    try:
        torch.zeros(1, device=provider)
    except RuntimeError as error:
        return f"PyTorch cannot use the GPU: {first_line(error)}"
    return None


def free_bytes(provider: Provider) -> int:
    """What is left of a GPU's memory, and of what --device-memory gives.

    Args:
        provider: 'cuda'; the CPU's memory is not asked for here, and counts as none.
    """
    if provider == "cpu":
        return 0
    import torch

    free, bound = torch.cuda.mem_get_info()[0], device_memory.bound()
    return free if bound is None else max(0, min(free, bound - torch.cuda.memory_reserved()))


def require(provider: Provider) -> None:
    """Refuses a device that PyTorch has not, and bounds what it may take of a GPU's memory.

    Raises:
        UserError: says why, and what mends it.
    """
    if reason := refusal(provider):
        raise UserError(reason)
    bound = device_memory.bound() if provider == "cuda" else None
    if bound is not None:
        import torch

        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, bound / total))


def require_room(provider: Provider, folder: Path, skip: SkipSet, dtype: str | None) -> None:
    """As `require`; and refuses a model whose weights alone are more than --device-memory gives.

    Args:
        provider: that it would be loaded on.
        folder: of the checkpoint.
        skip: what is left out.
        dtype: of its weights: fp32, fp16 or bf16; None where they are quantised, and their size is not known.

    Raises:
        UserError: as `require`; or it does not fit.
    """
    require(provider)
    if provider == "cpu" or dtype is None or device_memory.bound() is None:
        return
    try:
        needed = costs.weight_bytes(read_config(folder), skip, "fp32" if dtype == "fp32" else "fp16")
    except UserError:  # a config whose sizes are not known: PyTorch's own bound holds
        return
    device_memory.require_room(f"the weights of {folder} in {dtype}", needed)
