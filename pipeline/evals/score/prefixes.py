"""Which tokens must go through the model: the requests of a window as a radix tree.

Requests that begin alike share a path. Each node's tokens are computed once, and its keys and values serve
every node below it. A request's log-likelihood is the sum of log p(target | tokens before it) over its last
positions, each of which lies on exactly one node of its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

PASS = 12
"""Tokens that a forward pass costs beside its own: the weights are read for one token as for a hundred.

Measured on SmolLM2 (2 cores): 24 ms for 1 token, 98 for 50, 179 for 100. A branching node must save as many,
and so must padding.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A question to the model: log p of each target at the last m positions of the tokens.

    Attributes:
        tokens: [n], what the model reads.
        targets: [m], m ≤ n: the token that should follow each of the last m positions.
    """

    tokens: Tokens
    targets: Tokens


@dataclass(slots=True, eq=False)
class Node:
    """Tokens `tokens[start:]`, computed after those of the parents; a root starts at 0.

    Attributes:
        tokens: all tokens from the beginning to this node's end.
        start: how many of them belong to the parents.
        parent: None for a root.
        children: nodes that go on where this one ends.
        wanted: position → [(request, index of its target)]: the log-likelihoods that are read there.
        requests: every request at or below this node; they fail with it.
    """

    tokens: Tokens
    start: int
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    wanted: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Tokens from the beginning to this node's end."""
        return len(self.tokens)


def request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
    """A pair as lm-eval's `hf` backend feeds it: a text that is too long loses tokens on its left.

    Args:
        context: tokens.
        continuation: tokens.
        max_length: tokens of the model's window.

    Raises:
        ValueError: nothing to predict, nothing to predict it from, or a continuation longer than the window.
    """
    if not continuation:
        raise ValueError("the continuation has no token")
    if not context:
        raise ValueError("the context has no token")
    if len(continuation) > max_length:
        raise ValueError(
            f"the continuation has {len(continuation)} tokens, and the model's window holds {max_length}"
        )
    whole = np.asarray([*context, *continuation], np.int32)[-(max_length + 1) :]
    return Request(whole[:-1], whole[-len(continuation) :])


def tree(
    requests: Sequence[Request], longest: int, most_wanted: int, share: bool = True, piece: int | None = None
) -> list[Node]:
    """The roots of the radix tree over the requests.

    Args:
        requests: what is scored.
        longest: tokens that one forward pass takes at most; longer nodes become chains.
        most_wanted: positions whose logits one pass gives at most, per row.
        share: False computes every request on its own (for graphs without a cache, and for comparison).
        piece: tokens that one pass best takes: longer nodes become chains of about that length.
    """
    inputs, groups = _distinct_inputs(requests, share)
    roots: list[Node] = []
    if share:
        _grow(inputs, groups, roots)
    else:
        alone = zip(inputs, groups, strict=True)
        roots = [Node(tokens, 0, None, requests=list(numbers)) for tokens, numbers in alone]
    leaves = [(number, node) for node in walk(roots) for number in node.requests]
    for number, leaf in leaves:
        _mark_wanted(leaf, number, requests[number])
    for node in walk(roots):
        pieces = max(1, round((node.end - node.start) / (piece or longest)))
        _split(node, min(longest, -(-(node.end - node.start) // pieces)), most_wanted, roots)
    return roots


def _distinct_inputs(requests: Sequence[Request], share: bool) -> tuple[list[Tokens], list[list[int]]]:
    """(distinct inputs in order, the requests that have each); without sharing, every request is distinct."""
    by_input: dict[bytes, list[int]] = {}
    for number, one in enumerate(requests):
        # Big-endian bytes sort as the token sequences do.
        key = one.tokens.astype(">i4").tobytes() + (b"" if share else number.to_bytes(4, "big"))
        by_input.setdefault(key, []).append(number)
    groups = [by_input[key] for key in sorted(by_input)]
    return [requests[group[0]].tokens for group in groups], groups


def _grow(inputs: list[Tokens], groups: list[list[int]], roots: list[Node]) -> None:
    """Adds the nodes over sorted, distinct inputs; the requests `groups[k]` have the input `inputs[k]`."""
    shared = np.array([0, *(_common(one, other) for one, other in pairwise(inputs))])
    # (first input, behind the last, tokens that the parents have, parent)
    stack: list[tuple[int, int, int, Node | None]] = [(0, len(inputs), 0, None)]
    while stack:
        low, high, start, parent = stack.pop()
        if low == high:
            continue
        siblings = roots if parent is None else parent.children
        if high - low == 1:
            siblings.append(Node(inputs[low], start, parent, requests=list(groups[low])))
            continue
        common = int(shared[low + 1 : high].min())
        cuts = [low, *(low + 1 + int(k) for k in np.flatnonzero(shared[low + 1 : high] == common)), high]
        if common > start and (len(cuts) - 2) * (common - start) > PASS:
            node = Node(inputs[low][:common], start, parent)
            siblings.append(node)
            if len(inputs[low]) == common:  # this input ends here, and the others go on
                node.requests, cuts = list(groups[low]), cuts[1:]
            stack += [(first, last, common, node) for first, last in pairwise(cuts)]
        else:
            stack += [(first, last, start, parent) for first, last in pairwise(cuts)]


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences share at their beginning."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def walk(nodes: Sequence[Node]) -> list[Node]:
    """The nodes and all below them."""
    nodes_below, stack = list[Node](), list(nodes)
    while stack:
        node = stack.pop()
        nodes_below.append(node)
        stack += node.children
    return nodes_below


def _mark_wanted(leaf: Node, number: int, one: Request) -> None:
    """Marks, on the path up from `leaf`, where the targets of a request are predicted."""
    first = len(one.tokens) - len(one.targets)
    node: Node | None = leaf
    while node is not None:
        if node is not leaf:
            node.requests.append(number)
        for position in range(max(node.start, first), node.end):
            node.wanted.setdefault(position, []).append((number, position - first))
        node = node.parent


def _split(node: Node, longest: int, most_wanted: int, roots: list[Node]) -> None:
    """Makes a chain of a node that is too long for one pass, or that wants too many logits of one."""
    while True:
        end = min(node.end, node.start + longest)
        positions = sorted(position for position in node.wanted if position < end)
        if len(positions) > most_wanted:
            end = positions[most_wanted]
        if end == node.end:
            return
        upper = Node(node.tokens[:end], node.start, node.parent, [node], requests=list(node.requests))
        early = [position for position in node.wanted if position < end]
        upper.wanted = {position: node.wanted.pop(position) for position in early}
        siblings = roots if node.parent is None else node.parent.children
        siblings[siblings.index(node)] = upper
        node.parent, node.start = upper, end
