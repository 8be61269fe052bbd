# SPDX-License-Identifier: Apache-2.0
"""The language of seccomp filters: tables of system calls, and the program made of one.

Each entry names a call, what its arguments must be, what happens otherwise and the reason. The
assembler turns a table into a program for one architecture; the tables of docs/security.md are
printed from them by ``python -m penstock.contain.profile``. The tables themselves are
:mod:`penstock.contain.imagecalls` and :mod:`penstock.contain.mirrorcalls`.

What happens to a call
    - *allowed*: it is named so and its arguments are as the entry says.
    - *refused*, with EPERM: everything that is not named. The C library and Python try calls that
      they can do without, and a later version tries others; none of that may end a mount.
    - *absent*, with ENOSYS: calls that came after this table was written, and those that the C
      library replaces by older ones only if the kernel does not know them.
    - *killed*: calls that nothing in a server has ever a use for: whoever makes one has taken it
      over. Its process ends at once, and the broker sees by the signal (SIGSYS) what happened.

Calls of another architecture, which have other numbers, are killed too.

Facts about what a filter sees
    - Arguments are registers, never memory. Of an ``int`` the kernel takes the lower half, and the
      upper half may be anything; of a ``long`` or pointer both halves count.
    - So a socket address inside a ``msghdr`` is unseen. It does no harm: every socket of a server
      is a connected one, where the kernel refuses addresses.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from penstock.abi.seccomp import (
    AUDIT_ARCH,
    DATA_ARCH,
    DATA_ARGS,
    DATA_NR,
    SOCK_FILTER,
    X32_BIT,
    Action,
    Bpf,
)
from penstock.abi.syscalls import SYSCALLS

__all__ = [
    "ENOSYS",
    "EPERM",
    "KILL",
    "LATER",
    "WORD",
    "Argument",
    "Entry",
    "Row",
    "assemble",
    "each",
    "markdown",
    "only",
    "rows",
]

WORD: Final = 0xFFFF_FFFF
"""All bits of an ``int``."""
_ALLOW: Final = int(Action.ALLOW)
KILL: Final = int(Action.KILL_PROCESS)
EPERM: Final = int(Action.ERRNO | errno.EPERM)
ENOSYS: Final = int(Action.ERRNO | errno.ENOSYS)


class Argument(NamedTuple):
    """What one argument must be: with only the bits of ``mask`` left, one of ``values``."""

    number: int
    values: tuple[int, ...]
    words: str
    """The same for people."""
    mask: int = WORD
    wide: bool = False
    """A ``long`` or a pointer, whose upper half must be 0."""


class Entry(NamedTuple):
    """A system call, and what becomes of it."""

    name: str
    why: str
    arguments: tuple[tuple[Argument, ...], ...] = ()
    """Alternatives; in each, all arguments must be as described. None: whatever they are."""
    action: int = _ALLOW
    """SECCOMP_RET_*, if the arguments are right."""
    otherwise: int = EPERM
    """SECCOMP_RET_*, if they are not."""


def only(index: int, bits: int, words: str, *, wide: bool = False) -> Argument:
    """No bits but these."""
    return Argument(index, (0,), words, ~bits & WORD, wide)


def each(names: str, why: str, action: int = _ALLOW) -> tuple[Entry, ...]:
    """An entry for each name, whatever the arguments."""
    return tuple(Entry(name, why, action=action) for name in names.split())


LATER: Final = (
    Entry("clone", "all threads run", action=EPERM),
    Entry("seccomp", "all filters are in place", action=EPERM),
)
"""What is taken away by the second filter. Nothing else: the first one stays in force."""


Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""

_FARTHEST: Final = 250
_FAIL: Final = -1


def _check(argument: Argument) -> list[Instruction]:
    """Falls through to its end if the argument is right; a jump to ``_FAIL`` if not."""
    low = DATA_ARGS + 8 * argument.number
    code: list[Instruction] = []
    if argument.wide:
        code += [(Bpf.LOAD, 0, 0, low + 4), (Bpf.JEQ, 0, _FAIL, 0)]
    code.append((Bpf.LOAD, 0, 0, low))
    if argument.mask != WORD:
        code.append((Bpf.AND, 0, 0, argument.mask))
    *others, last = argument.values
    code += [(Bpf.JEQ, len(others) - place, 0, value) for place, value in enumerate(others)]
    code.append((Bpf.JEQ, 0, _FAIL, last))
    return code


def _alternative(arguments: Iterable[Argument], action: int) -> list[Instruction]:
    code = [instruction for argument in arguments for instruction in _check(argument)]
    code.append((Bpf.RETURN, 0, 0, action))
    end = len(code)
    return [
        (operation, yes, end - place - 1 if no == _FAIL else no, value)
        for place, (operation, yes, no, value) in enumerate(code)
    ]


def _conditional(number: int, entry: Entry) -> list[Instruction]:
    body = [i for way in entry.arguments for i in _alternative(way, entry.action)]
    body.append((Bpf.RETURN, 0, 0, entry.otherwise))
    return [(Bpf.JEQ, 0, len(body), number), *body]


def _unconditional(numbers: Sequence[int], action: int) -> Iterator[Instruction]:
    for start in range(0, len(numbers), _FARTHEST):
        group = numbers[start : start + _FARTHEST]
        *others, last = group
        for place, number in enumerate(others):
            yield Bpf.JEQ, len(others) - place, 0, number
        yield Bpf.JEQ, 0, 1, last
        yield Bpf.RETURN, 0, 0, action


def _unknown(machine: str, default: int) -> Iterator[Instruction]:
    """Numbers of no call: another ABI's, and those of calls that came later."""
    if machine == "x86_64":
        yield from ((Bpf.JGE, 0, 1, X32_BIT), (Bpf.RETURN, 0, 0, KILL))
    if default != _ALLOW:
        first = max(SYSCALLS[machine].values()) + 1
        yield from ((Bpf.JGE, 0, 1, first), (Bpf.RETURN, 0, 0, ENOSYS))


def assemble(entries: Iterable[Entry], machine: str, *, default: int = EPERM) -> bytes:
    """The program for an architecture.

    Args:
        entries: what becomes of calls; those that the architecture does not have are left out.
        machine: as uname(2) calls it.
        default: SECCOMP_RET_* for all other calls. ALLOW is for a filter that takes something away
            from what an earlier one left.

    Raises:
        KeyError: no table for this architecture.
    """
    numbers = SYSCALLS[machine]
    entries = [entry for entry in entries if entry.name in numbers]
    code: list[Instruction] = [
        (Bpf.LOAD, 0, 0, DATA_ARCH),
        (Bpf.JEQ, 1, 0, AUDIT_ARCH[machine]),
        (Bpf.RETURN, 0, 0, KILL),
        (Bpf.LOAD, 0, 0, DATA_NR),
    ]
    plain: dict[int, list[int]] = {}
    for entry in entries:
        if not entry.arguments and entry.action != default:
            plain.setdefault(entry.action, []).append(numbers[entry.name])
    for action in sorted(plain, key=lambda action: action != _ALLOW):
        code += _unconditional(plain[action], action)
    for entry in entries:
        if entry.arguments:
            code += _conditional(numbers[entry.name], entry)
    code += _unknown(machine, default)
    code.append((Bpf.RETURN, 0, 0, default))
    return b"".join(SOCK_FILTER.pack(*instruction) for instruction in code)


class Row(NamedTuple):
    """A line of the tables in docs/security.md."""

    calls: tuple[str, ...]
    verdict: str
    rule: str
    why: str


_VERDICTS: Final = {_ALLOW: "allowed", KILL: "killed", EPERM: "EPERM", ENOSYS: "ENOSYS"}


def _row(entry: Entry) -> Row:
    verdict = _VERDICTS[entry.action]
    if entry.arguments:
        verdict += f", else {_VERDICTS[entry.otherwise]}"
    if entry.name in {later.name for later in LATER} and entry.action == _ALLOW:
        verdict += "; EPERM once all threads run"
    ways = ["; ".join(argument.words for argument in way) for way in entry.arguments]
    return Row((entry.name,), verdict, " — or — ".join(ways), entry.why)


def rows(entries: Iterable[Entry]) -> Iterator[Row]:
    """What a table says, neighbours with the same reason in one row."""
    last: Row | None = None
    for row in map(_row, entries):
        if last is not None and last[1:] == row[1:]:
            last = last._replace(calls=last.calls + row.calls)
            continue
        if last is not None:
            yield last
        last = row
    if last is not None:
        yield last


def markdown(entries: Iterable[Entry]) -> Iterator[str]:
    """The table for docs/security.md, line by line."""
    yield "| System calls | What happens | Arguments | Why |\n"
    yield "|---|---|---|---|\n"
    for calls, verdict, rule, why in rows(entries):
        names = ", ".join(f"`{name}`" for name in calls)
        yield f"| {names} | {verdict} | {rule or 'any'} | {why} |\n"
