# SPDX-License-Identifier: Apache-2.0
"""Lookup counts against a model, and the race between a lookup and a forget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.fs import ROOT
from penstock.session.lookups import LookupCounts


def test_a_node_is_forgotten_once_when_its_count_ends() -> None:
    gone: list[int] = []
    counts = LookupCounts(gone.append)
    counts.enter()
    counts.leave([5, 5, 6])
    counts.subtract([(5, 1)])
    assert gone == []
    counts.subtract([(5, 1), (6, 1)])
    assert gone == [5, 6]
    counts.subtract([(5, 1)])
    assert gone == [5, 6]
    assert len(counts) == 0


def test_a_lookup_under_way_keeps_its_node() -> None:
    gone: list[int] = []
    counts = LookupCounts(gone.append)
    counts.enter()
    counts.leave([5])
    counts.enter()  # a second lookup has found node 5 and not answered yet
    counts.subtract([(5, 1)])
    assert gone == []
    counts.leave([5])
    assert gone == []
    counts.subtract([(5, 1)])
    assert gone == [5]


def test_too_many_forgets_and_strangers_do_no_harm() -> None:
    gone: list[int] = []
    counts = LookupCounts(gone.append)
    counts.enter()
    counts.leave([5, ROOT])
    counts.subtract([(5, 1 << 63), (77, 1), (ROOT, 1000)])
    assert gone == [5]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("enter"), st.just(0), st.just(0)),
            st.tuples(st.just("leave"), st.integers(2, 6), st.just(1)),
            st.tuples(st.just("forget"), st.integers(2, 6), st.integers(1, 3)),
        ),
        max_size=60,
    )
)
def test_model(steps: list[tuple[str, int, int]]) -> None:
    gone: list[int] = []
    counts = LookupCounts(gone.append)
    model: dict[int, int] = {}
    under_way = 0
    for what, node, count in steps:
        if what == "enter":
            counts.enter()
            under_way += 1
        elif what == "leave" and under_way:
            counts.leave([node])
            under_way -= 1
            model[node] = model.get(node, 0) + 1
            if node in gone:
                gone.remove(node)
        elif what == "forget":
            counts.subtract([(node, count)])
            if node in model:
                model[node] = max(0, model[node] - count)
                if not model[node]:
                    del model[node]
    while under_way:
        counts.leave()
        under_way -= 1
    assert len(counts) == len(model)
    assert not set(gone) & model.keys()
    assert len(gone) == len(set(gone))
