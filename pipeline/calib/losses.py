"""The losses that healing lowers.

Legend: B batch, T tokens, K positions of them, V vocabulary, C hidden size.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def cross_entropy(
    logits: torch.Tensor, ids: torch.Tensor, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """Next-token cross-entropy in nats: the columns' share of the mean over all B · (T − 1) positions.

    Args:
        logits: [B, K, V], at the columns.
        ids: [B, T].
        columns: [K], ascending; all T by default. The last of the T has no next token.
    """
    known = torch.arange(ids.shape[1]) if columns is None else columns
    known = known[known + 1 < ids.shape[1]].to(ids.device)
    scores, wanted = logits[:, : len(known)].flatten(0, 1).float(), ids[:, known + 1].flatten()
    return functional.cross_entropy(scores, wanted, reduction="sum") / ids[:, 1:].numel()


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) in nats, mean over positions; both [B, K, V]."""
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
