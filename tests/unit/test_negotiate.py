# SPDX-License-Identifier: Apache-2.0
"""INIT: the two tables, and what is answered to an offer."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.abi.fuse import InitFlag, InitIn
from penstock.fs import FsError
from penstock.negotiate import REFUSED, SUPPORTED, Limits, Profile, When, negotiate

EVERYTHING = (1 << 64) - 1


def offer(flags: int = EVERYTHING, minor: int = 46, major: int = 7) -> InitIn:
    return InitIn(major, minor, 131072, flags & 0xFFFF_FFFF, flags >> 32, bytes(44))


def test_each_bit_is_in_exactly_one_table() -> None:
    assert not SUPPORTED.keys() & REFUSED.keys()
    every = {flag for flag in InitFlag if int(flag).bit_count() == 1}
    assert SUPPORTED.keys() | REFUSED.keys() == every
    assert all(len(reason) > 8 for reason in REFUSED.values())


@given(
    st.integers(0, EVERYTHING),
    st.integers(0, EVERYTHING),
    st.integers(0, EVERYTHING),
    st.booleans(),
)
def test_the_answer_is_a_subset_of_the_offer(
    offered: int, want: int, refuse: int, having: bool
) -> None:
    reply, connection = negotiate(
        offer(offered),
        Limits(request_timeout=30),
        Profile(want, refuse, frozenset(When) if having else frozenset()),
    )
    taken = reply.flags | reply.flags2 << 32
    assert taken & ~offered == 0
    assert taken & refuse == 0
    assert taken == connection.flags
    assert not taken & sum(REFUSED)
    if taken >> 32:
        assert taken & InitFlag.INIT_EXT
    if not taken & InitFlag.REQUEST_TIMEOUT:
        assert reply.request_timeout == 0


def test_conditions() -> None:
    def take(want: int = 0, **conditions: bool) -> int:
        has = frozenset(when for when in When if conditions.get(when.name))
        return negotiate(offer(), Limits(), Profile(want, 0, has))[1].flags

    assert not take() & InitFlag.POSIX_LOCKS
    assert take(LOCKS=True) & InitFlag.POSIX_LOCKS
    assert take(LOCKS=True) & InitFlag.FLOCK_LOCKS
    assert take(READDIRPLUS=True) & InitFlag.DO_READDIRPLUS
    assert not take() & InitFlag.WRITEBACK_CACHE
    assert take(want=InitFlag.WRITEBACK_CACHE) & InitFlag.WRITEBACK_CACHE
    assert take() & InitFlag.MAX_PAGES
    assert When.ALWAYS in SUPPORTED.values()


def test_passthrough_excludes_the_writeback_cache() -> None:
    want = InitFlag.WRITEBACK_CACHE
    reply, connection = negotiate(offer(), Limits(), Profile(want, 0, frozenset(When)))
    assert connection.flags & InitFlag.PASSTHROUGH
    assert not connection.flags & InitFlag.WRITEBACK_CACHE
    assert reply.max_stack_depth == 1
    assert negotiate(offer(), Limits(), Profile(want))[0].max_stack_depth == 0


def test_max_pages_needs_its_bit() -> None:
    without = negotiate(offer(EVERYTHING & ~InitFlag.MAX_PAGES), Limits(), Profile(0))
    assert without[1].max_pages == 32


def test_the_lower_minor_is_in_force() -> None:
    for theirs, ours in ((31, 31), (45, 45), (46, 46), (99, 46)):
        reply, connection = negotiate(offer(minor=theirs), Limits(), Profile(0))
        assert reply.minor == connection.minor == ours


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 40), (8, 0)])
def test_a_protocol_that_is_too_old_or_new_is_refused(major: int, minor: int) -> None:
    with pytest.raises(FsError, match=f"{major}.{minor}") as caught:
        negotiate(offer(major=major, minor=minor), Limits(), Profile(0, 0, frozenset(When)))
    assert caught.value.errno == errno.EPROTO
