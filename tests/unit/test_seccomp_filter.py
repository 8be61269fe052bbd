# SPDX-License-Identifier: Apache-2.0
"""What the filter of a contained server answers to each system call, on both architectures.

The filter is carried out by an interpreter (tests/support/bpf.py), so every call can be tried with
any argument, and aarch64 is tried on x86-64. What it must answer is written down here a second
time, in other words than the tables'.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys

import pytest

from penstock.abi.seccomp import AUDIT_ARCH, X32_BIT, Action
from penstock.abi.syscalls import SYSCALLS
from penstock.contain import imagecalls as tables
from penstock.contain.filter import Argument, Entry, assemble, markdown, rows
from penstock.contain.mirrorprofile import MIRROR_OF_A_USER as OF_A_USER
from penstock.contain.mirrorprofile import MIRROR_SERVER
from penstock.contain.profile import IMAGE_SERVER, different
from penstock.servers.mirror.rights import SYSTEM_CALLS
from tests.support import calltables
from tests.support.bpf import instructions, run, verdict

ALLOW = int(Action.ALLOW)
KILL = int(Action.KILL_PROCESS)
EPERM = Action.ERRNO | errno.EPERM
ENOSYS = Action.ERRNO | errno.ENOSYS
HIGH = 1 << 32
MACHINES = sorted(SYSCALLS)
STAGE_1 = {machine: assemble(IMAGE_SERVER.calls, machine) for machine in MACHINES}
STAGE_2 = {
    machine: assemble(IMAGE_SERVER.calls_later, machine, default=ALLOW) for machine in MACHINES
}

PTHREAD = 0x3D0F00
ANONYMOUS = 0x22
READ_WRITE = 3


def words(text: str) -> list[str]:
    return text.split()


ALWAYS = words("""
    read readv pread64 preadv write writev splice lseek close poll ppoll nanosleep clock_nanosleep
    sched_yield restart_syscall brk munmap set_robust_list rseq exit exit_group rt_sigaction
    rt_sigprocmask rt_sigreturn sigaltstack getpid gettid getppid getuid geteuid getgid getegid
    sched_getaffinity getrandom clock_gettime clock_getres gettimeofday time
""")

KILLED = words("""
    execve execveat fork vfork kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_open
    pidfd_getfd unshare setns chroot pivot_root mount umount2 mount_setattr open_tree
    open_tree_attr move_mount fsopen fsconfig fsmount fspick swapon swapoff quotactl quotactl_fd
    name_to_handle_at open_by_handle_at fanotify_init mknod mknodat setuid setgid setreuid
    setregid setresuid setresgid setfsuid setfsgid setgroups capset keyctl add_key request_key bpf
    perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register io_setup io_submit
    memfd_secret vmsplice personality modify_ldt remap_file_pages init_module finit_module
    delete_module kexec_load kexec_file_load reboot iopl ioperm acct syslog settimeofday
    clock_settime adjtimex clock_adjtime sethostname setdomainname lookup_dcookie nfsservctl uselib
    vhangup
""")

ABSENT = ["clone3"]

RIGHT: list[tuple[str, tuple[int, ...]]] = [
    ("preadv2", (3, 0x1000, 1, 0, 0, 0)),
    ("preadv2", (3, 0x1000, 1, 0, 0, os.RWF_NOWAIT)),
    ("fcntl", (3, 3)),  # F_GETFL
    ("fcntl", (3, 1)),  # F_GETFD
    ("fcntl", (3, 1032)),  # F_GETPIPE_SZ
    ("fcntl", (3, 4, os.O_NONBLOCK | os.O_RDWR)),
    ("recvmsg", (3, 0x1000, 0)),
    ("recvmsg", (3, 0x1000, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)),
    ("recvfrom", (3, 0x1000, 100, 0, 0, 0)),
    ("recvfrom", (3, 0x1000, 100, socket.MSG_WAITALL, 0, 0)),
    ("recvfrom", (3, 0x1000, 100, socket.MSG_TRUNC, 0, 0)),
    ("sendmsg", (3, 0x1000, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)),
    ("sendto", (3, 0x1000, 100, 0, 0, 0)),
    ("sendto", (3, 0x1000, 100, socket.MSG_NOSIGNAL, 0, 0)),
    ("futex", (0x1000, 0)),  # FUTEX_WAIT
    ("futex", (0x1000, 0x81)),  # WAKE | PRIVATE
    ("futex", (0x1000, 0x189)),  # WAIT_BITSET | PRIVATE | CLOCK_REALTIME
    ("futex", (0x1000, HIGH | 0x81)),  # the upper half of an int means nothing
    ("mmap", (0, 4096, READ_WRITE, ANONYMOUS, 0xFFFFFFFF, 0)),
    ("mmap", (0, 4096, 0, ANONYMOUS | 0x4000, 0xFFFFFFFF, 0)),  # malloc's arenas: NORESERVE
    ("mmap", (0, 4096, 0, ANONYMOUS | 0x20000, 0xFFFFFFFF, 0)),  # threads: STACK
    ("mremap", (0x1000, 4096, 8192, 1)),
    ("mprotect", (0x1000, 4096, READ_WRITE)),
    ("mprotect", (0x1000, 4096, 0)),
    ("madvise", (0x1000, 4096, 4)),
    ("clone", (PTHREAD, 0x1000, 0x1000, 0x1000, 0x1000)),
    ("clone", (PTHREAD | 0x400000, 0x1000, 0x1000, 0x1000, 0x1000)),  # as musl does
    ("seccomp", (1, 1, 0x1000)),
]

WRONG: list[tuple[str, tuple[int, ...], int]] = [
    ("preadv2", (3, 0x1000, 1, 0, 0, os.RWF_HIPRI), EPERM),
    ("fcntl", (3, 0), EPERM),  # F_DUPFD
    ("fcntl", (3, 1030), EPERM),  # F_DUPFD_CLOEXEC
    ("fcntl", (3, 2, 0), EPERM),  # F_SETFD
    ("fcntl", (3, 4, 0x2000), EPERM),  # F_SETFL: O_ASYNC
    ("fcntl", (3, 4, 0x2000 | os.O_NONBLOCK), EPERM),
    ("fcntl", (3, 6), EPERM),  # F_SETLK
    ("fcntl", (3, 8, 1), EPERM),  # F_SETOWN
    ("fcntl", (3, 1024), EPERM),  # F_SETLEASE
    ("fcntl", (3, 1026), EPERM),  # F_NOTIFY
    ("fcntl", (3, 1031, 1 << 20), EPERM),  # F_SETPIPE_SZ
    ("fcntl", (3, 1033), EPERM),  # F_ADD_SEALS
    ("recvmsg", (3, 0x1000, socket.MSG_OOB), EPERM),
    ("recvmsg", (3, 0x1000, socket.MSG_PEEK), EPERM),
    ("recvmsg", (3, 0x1000, 0x2000), EPERM),  # MSG_ERRQUEUE
    ("recvfrom", (3, 0x1000, 100, socket.MSG_OOB), EPERM),
    ("sendmsg", (3, 0x1000, socket.MSG_OOB), EPERM),
    ("sendmsg", (3, 0x1000, 0x4000000), EPERM),  # MSG_ZEROCOPY
    ("sendmsg", (3, 0x1000, 0x20000000), EPERM),  # MSG_FASTOPEN
    ("sendto", (3, 0x1000, 100, socket.MSG_OOB), EPERM),
    ("sendto", (3, 0x1000, 100, 0, 0x1000, 16), EPERM),
    ("sendto", (3, 0x1000, 100, 0, HIGH, 16), EPERM),
    ("futex", (0x1000, 6), EPERM),  # FUTEX_LOCK_PI
    ("futex", (0x1000, 0x80 | 11), EPERM),  # WAIT_REQUEUE_PI
    ("futex", (0x1000, 2), EPERM),  # FUTEX_FD
    ("futex", (0x1000, 0x200), EPERM),
    ("mmap", (0, 4096, 5, ANONYMOUS), EPERM),  # READ and EXEC
    ("mmap", (0, 4096, READ_WRITE | HIGH, ANONYMOUS), EPERM),
    ("mmap", (0, 4096, READ_WRITE, 0x02), EPERM),  # a file, PRIVATE
    ("mmap", (0, 4096, 1, 0x01), EPERM),  # a file, SHARED
    ("mmap", (0, 4096, READ_WRITE, 0x21), EPERM),  # SHARED and ANONYMOUS
    ("mmap", (0, 4096, READ_WRITE, ANONYMOUS | 0x40000), EPERM),  # HUGETLB
    ("mmap", (0, 4096, READ_WRITE, ANONYMOUS | 0x2000), EPERM),  # LOCKED
    ("mmap", (0, 4096, READ_WRITE, ANONYMOUS | 0x100), EPERM),  # GROWSDOWN
    ("mmap", (0, 4096, READ_WRITE, ANONYMOUS | HIGH), EPERM),
    ("mremap", (0x1000, 4096, 8192, 3, 0x2000), EPERM),  # FIXED
    ("mprotect", (0x1000, 4096, 5), EPERM),
    ("mprotect", (0x1000, 4096, 4), EPERM),
    ("mprotect", (0x1000, 4096, 0x1000003), EPERM),  # GROWSDOWN
    ("madvise", (0x1000, 4096, 12), EPERM),  # MERGEABLE
    ("madvise", (0x1000, 4096, 100), EPERM),  # HWPOISON
    ("clone", (17,), KILL),  # SIGCHLD: fork
    ("clone", (0x4111,), KILL),  # VFORK, VM, SIGCHLD: posix_spawn
    ("clone", (PTHREAD | 0x10000000,), KILL),  # NEWUSER
    ("clone", (PTHREAD | 0x80,), KILL),  # NEWTIME
    ("clone", (PTHREAD & ~0x10000,), KILL),  # not THREAD
    ("clone", (PTHREAD | HIGH,), KILL),
    ("clone", (0,), KILL),
    ("seccomp", (1, 0, 0x1000), EPERM),
    ("seccomp", (1, 8, 0x1000), EPERM),  # NEW_LISTENER
    ("seccomp", (0, 0, 0), EPERM),  # strict mode
    ("seccomp", (2, 0, 0x1000), EPERM),
]


def answers(machine: str, name: str, arguments: tuple[int, ...] = ()) -> int | None:
    """The first filter's answer; None if the architecture has no such call."""
    number = SYSCALLS[machine].get(name)
    return None if number is None else verdict(STAGE_1[machine], machine, number, arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_are_always_allowed(machine: str) -> None:
    found = {name: answers(machine, name, (0xDEAD << 40, *[2**64 - 1] * 5)) for name in ALWAYS}
    assert {name for name, answer in found.items() if answer is not None} == {
        name for name, answer in found.items() if answer == ALLOW
    }
    assert found["read"] == ALLOW
    assert found["poll"] == (ALLOW if machine == "x86_64" else None)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_kill(machine: str) -> None:
    found = {name: answers(machine, name) for name in KILLED}
    assert set(found.values()) <= {KILL, None}
    assert found["execve"] == KILL
    assert sum(answer == KILL for answer in found.values()) > 75


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments"), RIGHT)
def test_right_arguments(machine: str, name: str, arguments: tuple[int, ...]) -> None:
    assert answers(machine, name, arguments) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "answer"), WRONG)
def test_wrong_arguments(machine: str, name: str, arguments: tuple[int, ...], answer: int) -> None:
    assert answers(machine, name, arguments) == answer


@pytest.mark.parametrize("machine", MACHINES)
def test_everything_else_is_refused(machine: str) -> None:
    """No call but those named in this file gets through, and none of them is forgotten here."""
    judged = {*ALWAYS, *KILLED, *ABSENT, *(name for name, *_ in RIGHT)}
    others = SYSCALLS[machine].keys() - judged
    assert {answers(machine, name) for name in others} == {EPERM}
    for name in (
        "open", "openat", "openat2", "stat", "newfstatat", "statx", "ioctl", "socket", "connect",
        "pipe2", "memfd_create", "prctl", "prlimit64", "tgkill", "dup", "pwrite64", "setrlimit",
        "landlock_create_ruleset", "shmget", "msgget", "mq_open", "timer_create", "epoll_create1",
    ):  # fmt: skip
        assert answers(machine, name) in {EPERM, None}
    assert answers(machine, "clone3") == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_of_no_call(machine: str) -> None:
    program, last = STAGE_1[machine], max(SYSCALLS[machine].values())
    for number in (last + 1, last + 1000, X32_BIT - 1):
        assert verdict(program, machine, number) == ENOSYS
    gap = next(n for n in range(last) if n not in set(SYSCALLS[machine].values()))
    assert verdict(program, machine, gap) == EPERM
    expected = KILL if machine == "x86_64" else ENOSYS
    for number in (X32_BIT, X32_BIT | SYSCALLS["x86_64"]["read"], 0xFFFF_FFFF):
        assert verdict(program, machine, number) == expected


@pytest.mark.parametrize("program", [STAGE_1, STAGE_2])
@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill(machine: str, program: dict[str, bytes]) -> None:
    i386 = 0x4000_0003
    (other,) = set(MACHINES) - {machine}
    for arch in (i386, AUDIT_ARCH[other], 0):
        for number in (0, 1, 3, 63, SYSCALLS[machine]["read"]):
            data = struct.pack("<IIQ6Q", number, arch, 0, *[0] * 6)
            assert run(instructions(program[machine]), data) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_second_filter(machine: str) -> None:
    """It takes away clone and seccomp, and leaves the rest to the first."""
    taken = {
        name
        for name, number in SYSCALLS[machine].items()
        if verdict(STAGE_2[machine], machine, number, (PTHREAD,)) != ALLOW
    }
    assert taken == {"clone", "seccomp"}
    for name in taken:
        assert verdict(STAGE_2[machine], machine, SYSCALLS[machine][name], (1, 1)) == EPERM
    assert verdict(STAGE_2[machine], machine, 1000) == ALLOW


def test_tables_name_each_call_once() -> None:
    names = [entry.name for entry in IMAGE_SERVER.calls]
    assert len(set(names)) == len(names)
    known = SYSCALLS["x86_64"].keys() | SYSCALLS["aarch64"].keys()
    assert set(names) <= known
    assert all(entry.why for entry in IMAGE_SERVER.calls)
    assert {entry.action for entry in tables.KILLED} == {KILL}
    assert {entry.action for entry in tables.REFUSED} == {EPERM}
    assert {entry.action for entry in tables.ALLOWED} == {ALLOW, ENOSYS}


# The assembler


def test_alternatives_and_several_values() -> None:
    either = (
        (Argument(0, (1, 2, 3), "one of three"), Argument(1, (0,), "null", wide=True)),
        (Argument(0, (4,), "four"), Argument(2, (0x10,), "that bit", mask=0x30)),
    )
    program = assemble([Entry("read", "", either, otherwise=KILL)], "aarch64")
    number = SYSCALLS["aarch64"]["read"]

    def answer(*arguments: int) -> int:
        return verdict(program, "aarch64", number, arguments)

    for right in ((1, 0), (2, 0), (3, 0), (4, 7, 0x10), (4, 0, 0x5F), (HIGH | 2, 0)):
        assert answer(*right) == ALLOW
    for wrong in ((0, 0), (5, 0), (1, 1), (3, HIGH), (4, 0, 0x20), (4, 0, 0), (4, 0, 0x30)):
        assert answer(*wrong) == KILL
    assert verdict(program, "aarch64", number + 1) == EPERM


def test_more_calls_than_a_jump_can_pass() -> None:
    """A jump passes 255 instructions at most."""
    names = list(SYSCALLS["x86_64"])
    entries = [Entry(name, "") for name in names] + [Entry("close_range", "")]
    program = assemble(entries, "x86_64")
    instructions(program)
    for name in names:
        assert verdict(program, "x86_64", SYSCALLS["x86_64"][name]) == ALLOW
    assert verdict(program, "x86_64", 350) == EPERM


def test_unknown_architecture() -> None:
    with pytest.raises(KeyError):
        assemble(IMAGE_SERVER.calls, "riscv64")


# The table for people


def test_table_for_documents() -> None:
    found = list(rows(IMAGE_SERVER.calls))
    named = [name for row in found for name in row.calls]
    assert named == [entry.name for entry in IMAGE_SERVER.calls]
    by_name = {name: row for row in found for name in row.calls}
    assert by_name["execve"].verdict == "killed"
    assert by_name["openat"].verdict == "EPERM"
    assert by_name["clone"].verdict == "allowed, else killed; EPERM once all threads run"
    assert " — or — " in by_name["fcntl"].rule
    assert by_name["mprotect"].rule == "protection: READ, WRITE (not EXEC)"


@pytest.mark.parametrize("name", ["image", "mirror", "user-mirror"])
def test_table_is_printed_by_the_module(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.contain.profile", name],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert all(line.count("|") == 5 for line in lines)
    assert len(lines) > 2
    if name == "image":
        assert done.stdout == "".join(markdown(IMAGE_SERVER.calls))
    assert calltables.filled(name, done.stdout) == calltables.PAGE.read_text(encoding="utf-8")


def test_documented_capabilities_are_the_mirrors() -> None:
    assert calltables.capabilities() == calltables.PAGE.read_text(encoding="utf-8")


def test_tables_of_mirrors_differ_where_they_say() -> None:
    """A call that is in no table of differences is answered as in the table below it."""
    image, mirror, user = (profile.calls for profile in (IMAGE_SERVER, MIRROR_SERVER, OF_A_USER))
    assert {entry.name for entry in different(mirror, image)} <= {entry.name for entry in mirror}
    for calls in (mirror, user):
        names = [entry.name for entry in calls]
        assert len(names) == len(set(names))
        assert set(names) >= {entry.name for entry in image}
    identity = {"setfsuid", "setfsgid", "setgroups", "capset"}
    assert {entry.name for entry in different(user, mirror)} == identity


def test_a_mirror_may_call_what_it_calls() -> None:
    allowed = {entry.name for entry in MIRROR_SERVER.calls if entry.action == ALLOW}
    assert set(SYSTEM_CALLS) <= allowed
    assert "open_by_handle_at" not in allowed
