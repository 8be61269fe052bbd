# SPDX-License-Identifier: Apache-2.0
"""What a process gives up for good, and what it says of itself: capset(2) and prctl(2).

Facts about credentials
    - Changing the user or group id, or losing capabilities on the way, clears the parent-death
      signal and makes the process not dumpable; so those two are set last.
    - The bounding set and the securebits take CAP_SETPCAP to change; so they come before the
      capabilities are dropped. Without it they are void once no_new_privs is set: what they limit
      is what execve(2) may grant.
    - A change of the id for files alone (setfsuid) clears that signal too; but each thread has its
      own, and only that of the thread which changes goes.
    - All of this is a matter of the calling thread, so it is done before there are others.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterable
from ctypes import c_ulong, create_string_buffer
from typing import Final

from penstock.abi.capability import CAP_AMBIENT_CLEAR_ALL, CAPABILITY_VERSION_3, Capability
from penstock.abi.process import Prctl, Securebits
from penstock.sys.libc import call

__all__ = [
    "bounding",
    "drop_all",
    "drop_bounding",
    "effective",
    "has_no_new_privs",
    "io_flusher",
    "is_dumpable",
    "keep_only",
    "lock_securebits",
    "no_new_privs",
    "permitted",
    "set_dumpable",
    "set_name",
    "set_parent_death_signal",
]

_HEADER: Final = struct.Struct("=Ii")
_DATA: Final = struct.Struct("=6I")
_MOST: Final = 64

_LOCKED: Final = (
    Securebits.NOROOT
    | Securebits.NOROOT_LOCKED
    | Securebits.NO_SETUID_FIXUP
    | Securebits.NO_SETUID_FIXUP_LOCKED
    | Securebits.KEEP_CAPS_LOCKED
    | Securebits.NO_CAP_AMBIENT_RAISE
    | Securebits.NO_CAP_AMBIENT_RAISE_LOCKED
)


def _prctl(what: Prctl, *values: int) -> int:
    words = [c_ulong(value) for value in (*values, *[0] * (4 - len(values)))]
    return call("prctl", int(what), *words)


def _bits(capabilities: Iterable[int]) -> int:
    bits = 0
    for number in capabilities:
        bits |= 1 << number
    return bits


def _numbers(bits: int) -> frozenset[int]:
    return frozenset(number for number in range(_MOST) if bits >> number & 1)


def _capset(effective: int, permitted: int, inheritable: int) -> None:
    halves = []
    for shift in (0, 32):
        halves += [bits >> shift & 0xFFFF_FFFF for bits in (effective, permitted, inheritable)]
    call("capset", _HEADER.pack(CAPABILITY_VERSION_3, 0), _DATA.pack(*halves))


def _capget() -> tuple[int, int, int]:
    """Bits of the effective, permitted and inheritable sets."""
    answer = create_string_buffer(_DATA.size)
    call("capget", _HEADER.pack(CAPABILITY_VERSION_3, 0), answer)
    words = _DATA.unpack(answer.raw)
    effective, permitted, inheritable = (words[i] | words[i + 3] << 32 for i in range(3))
    return effective, permitted, inheritable


def effective() -> frozenset[int]:
    """Numbers of the capabilities in effect."""
    return _numbers(_capget()[0])


def permitted() -> frozenset[int]:
    """Numbers of the capabilities that may be put in effect."""
    return _numbers(_capget()[1])


def bounding() -> frozenset[int]:
    """Numbers of the capabilities that execve(2) may still grant."""
    found = set()
    with contextlib.suppress(OSError):  # EINVAL: beyond this kernel's last one
        for number in range(_MOST):
            if _prctl(Prctl.CAPBSET_READ, number):
                found.add(number)
    return frozenset(found)


def drop_bounding() -> None:
    """Empty the bounding set: no program that is executed can grant a capability any more.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    for number in range(_MOST):
        try:
            _prctl(Prctl.CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL and number:
                return
            raise


def lock_securebits(*, fixup: bool = False) -> None:
    """Take from user 0 what it gets for being user 0, for ever.

    Args:
        fixup: leave the kernel's rule in force that a change of the user changes capabilities, and
            lock that: setfsuid(2) from 0 to another takes those over files out of effect, and back
            to 0 brings back the ones that are permitted. Without it they stay, whoever one is.

    Raises:
        OSError: EPERM without CAP_SETPCAP.
    """
    _prctl(Prctl.SET_SECUREBITS, _LOCKED & ~Securebits.NO_SETUID_FIXUP if fixup else _LOCKED)


def keep_only(capabilities: Iterable[Capability]) -> None:
    """Keep these as effective and permitted; drop all others, the inheritable and ambient ones.

    Raises:
        OSError: EPERM: one of them is not permitted.
    """
    with contextlib.suppress(OSError):  # EINVAL: a kernel without ambient capabilities
        _prctl(Prctl.CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL)
    bits = _bits(capabilities)
    _capset(bits, bits, 0)


def drop_all() -> None:
    """Drop every capability. Never refused."""
    keep_only(())


def no_new_privs() -> None:
    """Set-user-ID programs and file capabilities no longer mean anything to this process."""
    _prctl(Prctl.SET_NO_NEW_PRIVS, 1)


def has_no_new_privs() -> bool:
    """Whether :func:`no_new_privs` was called by this process or an ancestor."""
    return bool(_prctl(Prctl.GET_NO_NEW_PRIVS))


def set_dumpable(dumpable: bool) -> None:
    """Whether it may be traced by its own user, dump core, and owns its files in /proc."""
    _prctl(Prctl.SET_DUMPABLE, int(dumpable))


def is_dumpable() -> bool:
    """What :func:`set_dumpable` said last, or a change of credentials since."""
    return _prctl(Prctl.GET_DUMPABLE) == 1


def set_parent_death_signal(signal: int) -> None:
    """Have the kernel send ``signal`` when the thread that started this process ends."""
    _prctl(Prctl.SET_PDEATHSIG, signal)


def io_flusher(flusher: bool) -> None:
    """Whether allocating memory for this process may wait for a filesystem to write something
    back: not where it is that filesystem's server (Linux 5.6). Children inherit it.

    Raises:
        OSError: EPERM without CAP_SYS_RESOURCE, EINVAL.
    """
    _prctl(Prctl.SET_IO_FLUSHER, int(flusher))


def set_name(name: str) -> None:
    """What ps shows as this thread's name: at most 15 bytes."""
    call("prctl", int(Prctl.SET_NAME), name.encode()[:15], 0, 0, 0)
