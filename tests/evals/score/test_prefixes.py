from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.evals.score.prefixes import PASS, Node, request, tree, walk

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)
PAIRS = st.lists(
    st.tuples(TOKENS, st.lists(st.integers(0, 3), min_size=1, max_size=6)), min_size=1, max_size=25
)


def path(node: Node) -> list[int]:
    """The tokens of a node and its parents, put together from their own pieces."""
    above = path(node.parent) if node.parent else []
    assert node.start == len(above)
    return above + node.tokens[node.start :].tolist()


@settings(max_examples=150, deadline=None, phases=[Phase.generate])
@given(PAIRS, st.integers(1, 50), st.integers(1, 8), st.booleans())
def test_every_target_is_read_once_where_it_is_predicted(pairs, longest, most_wanted, share) -> None:
    requests = [request(context, continuation, 32) for context, continuation in pairs]
    roots = tree(requests, longest, most_wanted, share)
    reads: dict[tuple[int, int], int] = {}
    for node in walk(roots):
        assert path(node) == node.tokens.tolist()
        assert 0 < node.end - node.start <= longest and len(node.wanted) <= most_wanted
        assert all(child.parent is node for child in node.children)
        for position, readers in node.wanted.items():
            assert node.start <= position < node.end
            for number, index in readers:
                assert number in node.requests
                one = requests[number]
                assert position == len(one.tokens) - len(one.targets) + index
                assert one.tokens[: position + 1].tolist() == node.tokens[: position + 1].tolist()
                reads[number, index] = reads.get((number, index), 0) + 1
    assert reads == {
        (number, index): 1 for number, one in enumerate(requests) for index in range(len(one.targets))
    }


def test_what_is_shared_is_in_the_tree_once() -> None:
    shots = list(range(100, 200))
    requests = [
        request([*shots, *range(k * 30, k * 30 + 30)], [choice], 4096)
        for k in range(8)
        for choice in (1, 2, 3, 4)
    ]
    nodes = walk(tree(requests, 1 << 20, 1 << 20))
    # One-token choices need no token of their own.
    assert sum(node.end - node.start for node in nodes) == 100 + 8 * 30
    short = [request([1, 2, k], [5], 4096) for k in range(3)]
    # Two shared tokens are not worth a pass of PASS.
    assert all(node.parent is None for node in walk(tree(short, 1 << 20, 1 << 20)))
    assert PASS > 4


def test_long_nodes_become_chains_of_about_a_piece() -> None:
    nodes = walk(tree([request(list(range(100)), [1], 4096)], 64, 8, piece=30))
    assert sorted(node.end - node.start for node in nodes) == [32, 34, 34]
    assert [node.wanted for node in nodes if node.wanted] == [{99: [(0, 0)]}]


def test_requests_are_cut_as_the_hf_backend_cuts_them() -> None:
    cut = request(list(range(10)), [20, 21], 6)
    assert cut.tokens.tolist() == [5, 6, 7, 8, 9, 20] and cut.targets.tolist() == [20, 21]
    whole = request([1], [2, 3, 4], 3)
    assert whole.tokens.tolist() == [1, 2, 3]
    for context, continuation, words in (
        ([1], [], "no token"),
        ([], [1], "no token"),
        ([1], [2] * 7, "window holds 6"),
    ):
        with pytest.raises(ValueError, match=words):
            request(context, continuation, 6)
