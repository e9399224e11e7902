"""The device that PyTorch computes on: the CPU, or CUDA where this PyTorch and this machine have it."""

from __future__ import annotations

from pipeline.types import Provider, UserError, first_line

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
    """What is left of a GPU's memory.

    Args:
        provider: 'cuda'; the CPU's memory is not asked for here, and counts as none.
    """
    if provider == "cpu":
        return 0
    import torch

    return torch.cuda.mem_get_info()[0]


def require(provider: Provider) -> None:
    """Refuses a device that PyTorch has not.

    Raises:
        UserError: says why, and what mends it.
    """
    if reason := refusal(provider):
        raise UserError(reason)
