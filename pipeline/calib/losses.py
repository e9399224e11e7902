"""The losses that healing lowers.

Legend: B batch, T tokens, V vocabulary, C hidden size.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy in nats, mean over positions; logits [B, T, V], ids [B, T]."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) in nats, mean over positions; both [B, T, V]."""
    student, wanted = (functional.log_softmax(x.float().flatten(0, 1), dim=-1) for x in (logits, teacher))
    return functional.kl_div(student, wanted, reduction="batchmean", log_target=True)


def mismatch(stream: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Distance of two residual streams: |x − y|² / |y|² (Gromov et al. 2024, equation 8), mean over tokens.

    The equation has no denominator. In Llama-style models the first token's stream is a thousand times as
    large as the others'; relative to its own size it counts as one token among others.

    Args:
        stream: [B, T, C], of the student.
        teacher: [B, T, C], of the whole model.
    """
    apart = (stream.float() - teacher.float()).pow(2).sum(dim=-1)
    return (apart / teacher.float().pow(2).sum(dim=-1).clamp_min(1e-12)).mean()
