# SPDX-License-Identifier: Apache-2.0
"""Listings that go on where they stopped, prepared ahead or not: always the same records."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.fs import Attributes, DirEntry, Entry, FsError
from penstock.session.listings import KEPT, Listings
from penstock.wire import decode_direntplus

COUNT = 300


class Directory:
    def __init__(self, fails_at: int = COUNT + 1) -> None:
        self.starts = 0
        self.fails_at = fails_at

    def __call__(self, offset: int) -> Iterator[tuple[DirEntry, Entry | None]]:
        self.starts += 1
        for number in range(offset, COUNT):
            if number == self.fails_at:
                raise FsError(errno.EUCLEAN, "a bad block")
            name = b"n%d" % number
            attr = Attributes.make(number + 10, 0o100644)
            yield DirEntry(name, number + 10, number + 1, 8), Entry.make(number + 10, attr)


def ask(listings: Listings, directory: Directory, offset: int, size: int) -> list[int]:
    data = listings.read(7, offset, size, lambda: directory(offset))
    assert len(data) <= size
    return [record.dirent.ino - 10 for record in decode_direntplus(data)]


@given(st.lists(st.tuples(st.integers(200, 9000), st.integers(0, 30)), min_size=5, max_size=40))
def test_every_record_once_whatever_is_prepared(steps: list[tuple[int, int]]) -> None:
    listings = Listings()
    directory = Directory()
    seen: list[int] = []
    for size, idle in steps:
        seen += ask(listings, directory, len(seen), size)
        for _ in range(idle):
            listings.prepare()
    assert seen == list(range(len(seen)))
    if len(seen) < COUNT:
        assert directory.starts == 1


def test_preparing_stops_when_a_reply_is_full() -> None:
    listings = Listings()
    ask(listings, Directory(), 0, 4096)
    steps = 0
    while listings.prepare():
        steps += 1
    assert 0 < steps < 10
    assert not listings.prepare()


def test_going_back_starts_again() -> None:
    listings = Listings()
    directory = Directory()
    first = ask(listings, directory, 0, 4096)
    assert ask(listings, directory, 0, 4096) == first
    assert ask(listings, directory, 5, 4096)[0] == 5
    assert directory.starts == 3


def test_the_end_is_empty_and_kept_by_no_one() -> None:
    listings = Listings()
    directory = Directory()
    assert len(ask(listings, directory, 0, 1 << 20)) == COUNT
    assert ask(listings, directory, COUNT, 4096) == []
    assert ask(listings, directory, COUNT, 4096) == []


@pytest.mark.parametrize("idle", [0, 50])
def test_an_error_comes_after_what_is_good(idle: int) -> None:
    listings = Listings()
    directory = Directory(fails_at=100)
    seen: list[int] = []
    for _ in range(100):
        if len(seen) == 100:
            break
        seen += ask(listings, directory, len(seen), 4096)
        for _ in range(idle):
            listings.prepare()
    assert seen == list(range(100))
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            ask(listings, directory, 100, 4096)
        assert caught.value.errno == errno.EUCLEAN


def test_few_listings_are_kept() -> None:
    listings = Listings()
    directory = Directory()
    for node in range(100):
        listings.read(node, 0, 4096, lambda: directory(0))
    assert len(listings._kept) == KEPT
