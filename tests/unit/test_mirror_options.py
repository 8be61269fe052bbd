# SPDX-License-Identifier: Apache-2.0
"""The words of the mirror, what they make of its handshake, and the rights it asks for."""

from __future__ import annotations

import pytest

from penstock.abi.capability import Capability
from penstock.abi.fuse import InitFlag
from penstock.abi.syscalls import SYSCALLS
from penstock.negotiate import When, mirror_profile
from penstock.servers.mirror.options import OPTIONS, MirrorOptions, parse_options
from penstock.servers.mirror.rights import RIGHTS, SYSTEM_CALLS, capabilities


def test_no_words_are_the_defaults() -> None:
    assert parse_options({}) == MirrorOptions()
    assert parse_options({}, read_only=True).read_only


def test_each_word_is_understood() -> None:
    assert parse_options({"cache": "immutable"}).cache == "immutable"
    assert parse_options({"timeout": "0.25"}).timeout == 0.25
    assert not parse_options({"locks": "local"}).locks
    assert not parse_options({"noacl": ""}).acl
    assert parse_options({"idmap": ""}).idmap
    assert parse_options({"uid": "1000", "gid": "0"})[5:7] == (1000, 0)
    assert parse_options({"trusted": ""}).trusted
    assert {option.name for option in OPTIONS} == {
        "cache", "timeout", "locks", "noacl", "idmap", "uid", "gid", "trusted",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"partition": "1"}, "unknown option 'partition' for mirror"),
        ({"cache": "always"}, "cache=always: not one of mirror, immutable, none"),
        ({"locks": "yes"}, "locks=yes: not one of source, local"),
        ({"timeout": "soon"}, "timeout=soon: not a number of seconds"),
        ({"timeout": "-1"}, "timeout=-1: not a number of seconds"),
        ({"timeout": "nan"}, "timeout=nan: not a number of seconds"),
        ({"timeout": "1", "cache": "none"}, "cache=none has its own"),
        ({"uid": "root"}, "uid=root: not a number from 0 to 4294967294"),
        ({"gid": "4294967295"}, "gid=4294967295: not a number from 0 to 4294967294"),
        ({"noacl": "1"}, "noacl takes no value"),
    ],
)
def test_what_is_wrong_is_said(words: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_options(words)


def test_what_is_asked_of_the_kernel() -> None:
    mirror = mirror_profile()
    assert mirror.want & InitFlag.DONT_MASK
    assert mirror.want & InitFlag.HANDLE_KILLPRIV_V2
    assert mirror.want & InitFlag.AUTO_INVAL_DATA
    assert mirror.want & InitFlag.POSIX_ACL
    assert not mirror.want & (InitFlag.WRITEBACK_CACHE | InitFlag.ATOMIC_O_TRUNC)
    assert mirror.has == {When.READDIRPLUS, When.LOCKS}
    immutable = mirror_profile(cache="immutable")
    assert immutable.want & InitFlag.EXPLICIT_INVAL_DATA
    assert not immutable.want & InitFlag.AUTO_INVAL_DATA
    assert mirror_profile(cache="none").want & InitFlag.DIRECT_IO_ALLOW_MMAP
    assert not mirror_profile(acl=False).want & InitFlag.POSIX_ACL
    assert mirror_profile(idmap=True).want & InitFlag.ALLOW_IDMAP


def test_locks_that_the_kernel_keeps_are_refused() -> None:
    local = mirror_profile(locks=False)
    assert local.refuse == InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
    assert When.LOCKS not in local.has


def test_each_right_says_what_for() -> None:
    kept = [right.capability for right in RIGHTS]
    assert len(set(kept)) == len(kept)
    assert all(right.use and right.without for right in RIGHTS)
    assert Capability.SYS_ADMIN not in capabilities(MirrorOptions())
    assert Capability.SYS_RESOURCE not in capabilities(MirrorOptions(trusted=True))
    assert Capability.SYS_ADMIN in capabilities(MirrorOptions(trusted=True))


@pytest.mark.parametrize("machine", sorted(SYSCALLS))
def test_the_system_calls_exist(machine: str) -> None:
    assert set(SYSTEM_CALLS) <= set(SYSCALLS[machine])
