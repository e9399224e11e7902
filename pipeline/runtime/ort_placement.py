"""Where ONNX Runtime runs a graph's nodes, and on which kernel its CUDA provider runs attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime as ort

RECORD = ("session.record_ep_graph_assignment_info", "1")
"""The session's option that `nodes_on` needs."""
HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "Gelu",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "RMSNormalization",
        "RotaryEmbedding",
        "Sigmoid",
        "Softmax",
        "Tanh",
    }
)
"""Operators that compute with weights or the stream. Shapes, masks and indices are best kept on the CPU."""
_WARNING = 2
"""onnxruntime's own level."""


def nodes_on(session: ort.InferenceSession, provider: str) -> dict[str, int]:
    """Operator → how many of its nodes a provider runs, before those are fused that can be.

    Args:
        session: opened with `RECORD`.
        provider: as onnxruntime names it.
    """
    parts = session.get_provider_graph_assignment_info()
    operators = (node.op_type for part in parts if part.ep_name == provider for node in part.get_nodes())
    return dict(Counter(operators).most_common())


@contextmanager
def telling_attention(provider: str) -> Iterator[None]:
    """Lets CUDA's `Attention` write on stderr, in every run, which kernel it takes.

    That is its only word on the choice: profiles have no kernels. The level is the process's own.

    Args:
        provider: 'cpu', whose attention has one kernel, or 'cuda'.
    """
    if provider == "cuda":
        ort.set_default_logger_severity(0)
    try:
        yield
    finally:
        if provider == "cuda":
            ort.set_default_logger_severity(_WARNING)
