# SPDX-License-Identifier: Apache-2.0
"""Listings that go on where they stopped, prepared ahead or not: always the same records."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.fs import (
    Attributes,
    Context,
    DirEntry,
    Entry,
    FileHandle,
    FsError,
    NodeId,
    Operations,
    Unique,
)
from penstock.session.descent import MOST, PATIENCE, Descent
from penstock.session.listings import KEPT, Listings
from penstock.wire import decode_direntplus

COUNT = 300


CONTEXT = Context(Unique(2), 0, 0, 0)


class Directory(Operations):
    """Every node lists ``COUNT`` files, or the subdirectories that ``tree`` gives it."""

    def __init__(
        self, fails_at: int = COUNT + 1, tree: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        self.starts = 0
        self.started: list[int] = []
        self.fails_at = fails_at
        self.tree = tree

    def readdirplus(
        self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
    ) -> Iterator[tuple[DirEntry, Entry | None]]:
        self.starts += 1
        self.started.append(nodeid)
        names = range(10, 10 + COUNT) if self.tree is None else self.tree.get(nodeid, ())
        for number, node in list(enumerate(names))[offset:]:
            if number == self.fails_at:
                raise FsError(errno.EUCLEAN, "a bad block")
            mode = 0o100644 if self.tree is None else 0o040755
            entry = Entry.make(node, Attributes.make(node, mode))
            yield DirEntry(b"n%d" % number, node, number + 1, mode >> 12), entry


def ask(listings: Listings, offset: int, size: int, node: int = 7) -> list[int]:
    data = listings.read(CONTEXT, NodeId(node), FileHandle(0), offset, size)
    assert len(data) <= size
    return [record.dirent.ino - 10 for record in decode_direntplus(data)]


@given(st.lists(st.tuples(st.integers(200, 9000), st.integers(0, 30)), min_size=5, max_size=40))
def test_every_record_once_whatever_is_prepared(steps: list[tuple[int, int]]) -> None:
    directory = Directory()
    listings = Listings(directory)
    seen: list[int] = []
    for size, idle in steps:
        seen += ask(listings, len(seen), size)
        for _ in range(idle):
            listings.prepare()
    assert seen == list(range(len(seen)))
    if len(seen) < COUNT:
        assert directory.starts == 1


def test_preparing_stops_when_a_reply_is_full() -> None:
    listings = Listings(Directory())
    ask(listings, 0, 4096)
    steps = 0
    while listings.prepare():
        steps += 1
    assert 0 < steps < 10
    assert not listings.prepare()


def test_going_back_starts_again() -> None:
    directory = Directory()
    listings = Listings(directory)
    first = ask(listings, 0, 4096)
    assert ask(listings, 0, 4096) == first
    assert ask(listings, 5, 4096)[0] == 5
    assert directory.starts == 3


def test_the_end_is_empty_and_kept_by_no_one() -> None:
    listings = Listings(Directory())
    assert len(ask(listings, 0, 1 << 20)) == COUNT
    assert ask(listings, COUNT, 4096) == []
    assert ask(listings, COUNT, 4096) == []


@pytest.mark.parametrize("idle", [0, 50])
def test_an_error_comes_after_what_is_good(idle: int) -> None:
    listings = Listings(Directory(fails_at=100))
    seen: list[int] = []
    for _ in range(100):
        if len(seen) == 100:
            break
        seen += ask(listings, len(seen), 4096)
        for _ in range(idle):
            listings.prepare()
    assert seen == list(range(100))
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            ask(listings, 100, 4096)
        assert caught.value.errno == errno.EUCLEAN


def test_few_listings_are_kept() -> None:
    listings = Listings(Directory())
    for node in range(100):
        ask(listings, 0, 4096, node)
    assert len(listings._kept) == KEPT


TREE: dict[int, list[int]] = {1: [2, 3, 4], 2: [5, 6], 3: [], 4: [7], 6: [8, 9]}


def walk(tree: Mapping[int, Sequence[int]], *, forward: bool) -> list[int]:
    """The order in which a depth-first walk reads directories."""
    order = []
    stack = [1]
    while stack:
        node = stack.pop()
        order.append(node)
        below = list(tree.get(node, ()))
        stack += reversed(below) if forward else below
    return order


@pytest.mark.parametrize("forward", [True, False])
def test_a_walk_is_followed(forward: bool) -> None:
    descent = Descent()
    guesses = []
    for node in walk(TREE, forward=forward):
        guesses.append(descent.expected())
        descent.entered(node)
        descent.listed(TREE.get(node, ()))
    wrong = [
        (guess, node)
        for guess, node in zip(guesses, walk(TREE, forward=forward), strict=True)
        if guess != node
    ]
    assert len(wrong) <= (1 if forward else 2), wrong


def test_bad_guesses_end_and_a_good_one_resumes_them() -> None:
    descent = Descent()
    descent.listed(list(range(100, 200)))
    for node in range(150, 150 + PATIENCE):
        assert descent.expected() == 100
        descent.entered(node)
    assert descent.expected() is None
    descent.entered(100)
    assert descent.expected() == 101


def test_memory_of_a_walk_is_bounded() -> None:
    descent = Descent()
    for first in range(0, 10 * MOST, MOST // 2):
        descent.listed(range(first, first + MOST // 2))
    assert len(descent._ahead) <= MOST


def test_the_next_directory_is_listed_ahead() -> None:
    operations = Directory(tree=TREE)
    listings = Listings(operations)
    for node in walk(TREE, forward=True):
        data = ask(listings, 0, 4096, node)
        assert [ino + 10 for ino in data] == TREE.get(node, [])
        while listings.prepare():
            pass
    assert sorted(operations.started) == list(range(1, 10)), "a directory was listed twice"


def test_a_directory_that_cannot_be_listed_ahead_is_an_error_only_when_asked_for() -> None:
    class Failing(Directory):
        def readdirplus(
            self, ctx: Context, nodeid: NodeId, fh: FileHandle, offset: int
        ) -> Iterator[tuple[DirEntry, Entry | None]]:
            if nodeid == 2:
                raise FsError(errno.EIO)
            return super().readdirplus(ctx, nodeid, fh, offset)

    listings = Listings(Failing(tree=TREE))
    assert ask(listings, 0, 4096, 1) == [-8, -7, -6]
    for _ in range(10):
        listings.prepare()
    with pytest.raises(FsError):
        ask(listings, 0, 4096, 2)
