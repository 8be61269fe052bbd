# SPDX-License-Identifier: Apache-2.0
"""A seccomp filter carried out without a kernel."""

from __future__ import annotations

import struct

from penstock.abi.seccomp import AUDIT_ARCH, BPF_MAX_INSTRUCTIONS, SOCK_FILTER, Bpf

__all__ = ["instructions", "run", "verdict"]

_ARGUMENTS = 6


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """The program's instructions, checked as the kernel checks them."""
    found = list(SOCK_FILTER.iter_unpack(program))
    assert 0 < len(found) <= BPF_MAX_INSTRUCTIONS
    assert found[-1][0] == Bpf.RETURN
    for place, (code, yes, no, value) in enumerate(found):
        assert code in set(Bpf)
        if code in {Bpf.JEQ, Bpf.JGE}:
            assert place + 1 + max(yes, no) < len(found)
        if code == Bpf.LOAD:
            assert value % 4 == 0
            assert value <= 60
    return found


def verdict(program: bytes, machine: str, number: int, arguments: tuple[int, ...] = ()) -> int:
    """SECCOMP_RET_* for a call."""
    padded = (*arguments, *[0] * (_ARGUMENTS - len(arguments)))
    data = struct.pack("<IIQ6Q", number, AUDIT_ARCH[machine], 0x7FFF_DEAD_BEEF, *padded)
    return run(instructions(program), data)


def run(program: list[tuple[int, int, int, int]], data: bytes) -> int:
    """What the program answers to ``struct seccomp_data``."""
    accumulator = place = 0
    while True:
        code, yes, no, value = program[place]
        place += 1
        if code == Bpf.RETURN:
            return value
        if code == Bpf.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == Bpf.AND:
            accumulator &= value
        else:
            true = accumulator == value if code == Bpf.JEQ else accumulator >= value
            place += yes if true else no
