# SPDX-License-Identifier: Apache-2.0
"""Numbers of system calls, prctl, capabilities, Landlock and seccomp, as the kernel's headers
have them.

The table of aarch64 is compared with the header for all new architectures, seen as that one does.
"""

from __future__ import annotations

import enum
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping

import pytest

from penstock.abi import landlock, process, seccomp
from penstock.abi.capability import CAPABILITY_VERSION_3, Capability
from penstock.abi.seccomp import Bpf
from penstock.abi.syscalls import SYSCALLS

pytestmark = pytest.mark.requires("cc")

HEADERS = {
    "x86_64": "#include <asm/unistd_64.h>\n",
    "aarch64": (
        "#define __BITS_PER_LONG 64\n"
        "#define __ARCH_WANT_RENAMEAT\n"
        "#define __ARCH_WANT_NEW_STAT\n"
        "#define __ARCH_WANT_SET_GET_RLIMIT\n"
        "#define __ARCH_WANT_SYS_CLONE3\n"
        "#define __ARCH_WANT_MEMFD_SECRET\n"
        "#include <asm-generic/unistd.h>\n"
    ),
}
HERE = os.uname().machine
COMPARED = [machine for machine in HEADERS if machine in {"aarch64", HERE}]
"""The header of x86-64 is on machines of that kind only."""
NOT_CALLS = {"syscalls", "arch_specific_syscall"}


def compiler(*options: str, source: str) -> str:
    """What the compiler makes of a source."""
    done = subprocess.run(
        ["cc", *options, "-x", "c", "-"], input=source, capture_output=True, text=True, check=True
    )
    return done.stdout


def header(machine: str) -> dict[str, int]:
    """Names and numbers of the system calls in the kernel's header."""
    text = compiler("-E", "-dM", source=HEADERS[machine])
    macros = dict(re.findall(r"#define (__NR\w*) (\w+)", text))
    numbers = {}
    for name, value in macros.items():
        while value in macros:  # __NR_lseek is __NR3264_lseek is 62
            value = macros[value]
        if name.startswith("__NR_") and name[5:] not in NOT_CALLS:
            numbers[name[5:]] = int(value)
    return numbers


def differences(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, object]:
    """Names that one has and the other has not, or under another number.

    A header may be older than the table: a call beyond its last one is not missed there, nor is
    one that came into a gap (334 to 423 of x86-64 are given to calls of that architecture).
    """
    newest = max(theirs.values())
    late = {"uretprobe", "uprobe"}
    return {
        name: (ours.get(name), theirs.get(name))
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name)
        and not (name not in theirs and (ours[name] > newest or name in late))
    }


@pytest.mark.parametrize("machine", COMPARED)
def test_system_calls(machine: str) -> None:
    theirs = header(machine)
    assert len(theirs) > 300
    assert not differences(SYSCALLS[machine], theirs)


def test_a_wrong_number_is_noticed() -> None:
    theirs = header("aarch64")
    for name, number in (("openat", 57), ("new", 3)):
        assert differences({**SYSCALLS["aarch64"], name: number}, theirs)
    assert differences({}, theirs)


def test_no_number_is_given_twice() -> None:
    for numbers in SYSCALLS.values():
        assert len(set(numbers.values())) == len(numbers)


def members(prefix: str, kind: type[enum.IntEnum | enum.IntFlag]) -> dict[str, int]:
    return {prefix + member.name: member.value for member in kind if member.name}


CONSTANTS = {
    **members("CLONE_", process.CloneFlag),
    **members("PR_", process.Prctl),
    **members("SECBIT_", process.Securebits),
    **members("CAP_", Capability),
    **members("LANDLOCK_ACCESS_FS_", landlock.AccessFs),
    **members("LANDLOCK_ACCESS_NET_", landlock.AccessNet),
    **members("LANDLOCK_SCOPE_", landlock.Scope),
    **members("LANDLOCK_RESTRICT_SELF_", landlock.Restrict),
    **members("SECCOMP_RET_", seccomp.Action),
    **members("SECCOMP_", seccomp.Operation),
    **members("SECCOMP_FILTER_FLAG_", seccomp.FilterFlag),
    **{f"AUDIT_ARCH_{name.upper()}": value for name, value in seccomp.AUDIT_ARCH.items()},
    "_LINUX_CAPABILITY_VERSION_3": CAPABILITY_VERSION_3,
    "LANDLOCK_CREATE_RULESET_VERSION": landlock.CREATE_RULESET_VERSION,
    "BPF_MAXINSNS": seccomp.BPF_MAX_INSTRUCTIONS,
    **({"__X32_SYSCALL_BIT": seccomp.X32_BIT} if HERE == "x86_64" else {}),
    "sizeof(struct sock_filter)": seccomp.SOCK_FILTER.size,
    "offsetof(struct seccomp_data, nr)": seccomp.DATA_NR,
    "offsetof(struct seccomp_data, arch)": seccomp.DATA_ARCH,
    "offsetof(struct seccomp_data, args)": seccomp.DATA_ARGS,
    "CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|CLONE_SETTLS|"
    "CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID": process.PTHREAD_FLAGS,
    "BPF_LD|BPF_W|BPF_ABS": Bpf.LOAD,
    "BPF_ALU|BPF_AND|BPF_K": Bpf.AND,
    "BPF_JMP|BPF_JEQ|BPF_K": Bpf.JEQ,
    "BPF_JMP|BPF_JGE|BPF_K": Bpf.JGE,
    "BPF_RET|BPF_K": Bpf.RETURN,
}
INCLUDED = (
    "stddef.h", "stdio.h", "linux/audit.h", "linux/capability.h", "linux/filter.h",
    "linux/landlock.h", "linux/prctl.h", "linux/sched.h", "linux/seccomp.h", "linux/securebits.h",
    "asm/unistd.h",
)  # fmt: skip
NEWER = {
    name
    for name in CONSTANTS
    if re.match(r"LANDLOCK_(ACCESS_NET|SCOPE|RESTRICT)_|LANDLOCK_ACCESS_FS_(TRUNC|IOCTL)", name)
}
"""What a header may lack."""


def test_constants() -> None:
    lines = []
    for name in CONSTANTS:
        print_it = f'printf("%s %llu\\n", "{name}", (unsigned long long)({name}));'
        # What is only defined by newer headers is compared where it is there.
        lines.append(f"#ifdef {name}\n{print_it}\n#endif" if name in NEWER else print_it)
    source = "".join(f"#include <{name}>\n" for name in INCLUDED)
    source += "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    found = run(source)
    missing = CONSTANTS.keys() - found.keys()
    assert missing <= NEWER
    wrong = {name: value for name, value in found.items() if value != CONSTANTS[name]}
    assert not wrong


def run(source: str) -> dict[str, int]:
    """Compile a program and run it; the pairs that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/program"
        compiler("-o", program, source=source)
        done = subprocess.run([program], capture_output=True, text=True, check=True)
    pairs = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    return {name: int(value) for name, value in pairs}
