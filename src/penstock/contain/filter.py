# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter of a contained server: which system calls it may make, and why.

The tables below are all there is: each entry names a call, what its arguments must be, what happens
otherwise and the reason. The assembler turns them into a program for one architecture; the tables
of docs/security.md are printed from them by ``python -m penstock.contain.filter``.

What happens to a call
    - *allowed*: it is in ``ALLOWED`` and its arguments are as the entry says.
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
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from penstock.abi.process import PTHREAD_FLAGS
from penstock.abi.seccomp import (
    AUDIT_ARCH,
    DATA_ARCH,
    DATA_ARGS,
    DATA_NR,
    SOCK_FILTER,
    X32_BIT,
    Action,
    Bpf,
    FilterFlag,
    Operation,
)
from penstock.abi.syscalls import SYSCALLS

__all__ = [
    "ALLOWED",
    "KILLED",
    "LATER",
    "REFUSED",
    "Argument",
    "Entry",
    "Row",
    "assemble",
    "markdown",
    "rows",
]

_WORD: Final = 0xFFFF_FFFF
_ALLOW: Final = int(Action.ALLOW)
_KILL: Final = int(Action.KILL_PROCESS)


def _fail(number: int) -> int:
    return Action.ERRNO | number


_EPERM: Final = _fail(errno.EPERM)
_ENOSYS: Final = _fail(errno.ENOSYS)


class Argument(NamedTuple):
    """What one argument must be: with only the bits of ``mask`` left, one of ``values``."""

    number: int
    values: tuple[int, ...]
    words: str
    """The same for people."""
    mask: int = _WORD
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
    otherwise: int = _EPERM
    """SECCOMP_RET_*, if they are not."""


def _only(index: int, bits: int, words: str, *, wide: bool = False) -> Argument:
    """No bits but these."""
    return Argument(index, (0,), words, ~bits & _WORD, wide)


_MSG_TRUNC, _MSG_DONTWAIT, _MSG_EOR, _MSG_WAITALL = 0x20, 0x40, 0x80, 0x100
_MSG_NOSIGNAL, _MSG_CMSG_CLOEXEC = 0x4000, 0x4000_0000
_SEND: Final = _MSG_DONTWAIT | _MSG_EOR | _MSG_NOSIGNAL
_RECEIVE: Final = _MSG_TRUNC | _MSG_DONTWAIT | _MSG_WAITALL | _MSG_NOSIGNAL | _MSG_CMSG_CLOEXEC
_SEND_WORDS: Final = "flags: DONTWAIT, EOR, NOSIGNAL (not OOB, ZEROCOPY)"
_RECEIVE_WORDS: Final = "flags: DONTWAIT, WAITALL, TRUNC, NOSIGNAL, CMSG_CLOEXEC (not OOB, PEEK)"

_RWF_NOWAIT: Final = 8
_PROT_READ_WRITE: Final = 1 | 2
_MAP_PRIVATE_ANONYMOUS: Final = 0x02 | 0x20
_MAP_HARMLESS: Final = 0x10 | 0x4000 | 0x2_0000 | 0x10_0000
"""MAP_FIXED, NORESERVE, STACK, FIXED_NOREPLACE."""
_MREMAP_MAYMOVE: Final = 1
_MADVISE: Final = (0, 3, 4, 8, 14, 15, 102, 103)
"""MADV_NORMAL, WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, GUARD_INSTALL, GUARD_REMOVE."""
_CLONE_DETACHED: Final = 0x0040_0000
_FUTEX: Final = (0, 1, 3, 9, 10)
"""FUTEX_WAIT, WAKE, REQUEUE, WAIT_BITSET, WAKE_BITSET."""
_FUTEX_FLAGS: Final = 128 | 256
_F_GETFD, _F_GETFL, _F_SETFL, _F_GETPIPE_SZ = 1, 3, 4, 1032
_O_ASYNC: Final = 0x2000

_NO_CODE: Final = _only(2, _PROT_READ_WRITE, "protection: READ, WRITE (not EXEC)", wide=True)

ALLOWED: Final = (
    # The image, the device, pipes
    Entry("read", "requests from /dev/fuse; the rest of a pipe"),
    Entry("readv", "requests into several buffers"),
    Entry("pread64", "the image"),
    Entry("preadv", "the image, straight into a reply's buffer"),
    Entry(
        "preadv2",
        "the image, if it need not be waited for",
        ((_only(5, _RWF_NOWAIT, "flags: NOWAIT"),),),
    ),
    Entry("write", "replies; wake-ups of other threads through pipes"),
    Entry("writev", "replies: head and body at once"),
    Entry("splice", "replies: from the image to the device, in the kernel"),
    Entry("lseek", "the size of the image; where its holes are"),
    Entry("close", "descriptors that are no longer needed"),
    Entry(
        "fcntl",
        "how a descriptor is open, whether it waits, how much a pipe holds",
        (
            (
                Argument(
                    1, (_F_GETFD, _F_GETFL, _F_GETPIPE_SZ), "command: GETFD, GETFL, GETPIPE_SZ"
                ),
            ),
            (
                Argument(1, (_F_SETFL,), "command: SETFL"),
                Argument(2, (0,), "flags: not ASYNC", mask=_O_ASYNC),
            ),
        ),
    ),
    # Sockets that others made
    Entry("recvmsg", "messages and descriptors", ((_only(2, _RECEIVE, _RECEIVE_WORDS),),)),
    Entry("recvfrom", "messages (recv)", ((_only(3, _RECEIVE, _RECEIVE_WORDS),),)),
    Entry("sendmsg", "messages and descriptors", ((_only(2, _SEND, _SEND_WORDS),),)),
    Entry(
        "sendto",
        "messages (send)",
        (
            (
                _only(3, _SEND, _SEND_WORDS),
                Argument(4, (0,), "no address", wide=True),
            ),
        ),
    ),
    # Waiting
    Entry("poll", "requests, messages, ends"),
    Entry("ppoll", "requests, messages, ends"),
    Entry(
        "futex",
        "locks and conditions of Python and the C library",
        (
            (
                Argument(
                    1,
                    _FUTEX,
                    "operation: WAIT, WAKE, REQUEUE, WAIT_BITSET, WAKE_BITSET (not PI)",
                    mask=~_FUTEX_FLAGS & _WORD,
                ),
            ),
        ),
    ),
    Entry("nanosleep", "time.sleep"),
    Entry("clock_nanosleep", "time.sleep"),
    Entry("sched_yield", "locks that spin"),
    Entry("restart_syscall", "the kernel's own, after a signal or a stop"),
    # Memory
    Entry("brk", "malloc"),
    Entry(
        "mmap",
        "malloc, Python's arenas, stacks of threads",
        (
            (
                _NO_CODE,
                Argument(
                    3,
                    (_MAP_PRIVATE_ANONYMOUS,),
                    "flags: PRIVATE and ANONYMOUS, so no file and nothing that RLIMIT_DATA does "
                    "not count; besides FIXED, NORESERVE, STACK",
                    mask=~_MAP_HARMLESS & _WORD,
                    wide=True,
                ),
            ),
        ),
    ),
    Entry("munmap", "free"),
    Entry(
        "mremap",
        "realloc",
        ((_only(3, _MREMAP_MAYMOVE, "flags: MAYMOVE", wide=True),),),
    ),
    Entry("mprotect", "malloc's arenas, guard pages of stacks", ((_NO_CODE,),)),
    Entry(
        "madvise",
        "malloc and threads give memory back",
        (
            (
                Argument(
                    2,
                    _MADVISE,
                    "advice: NORMAL, WILLNEED, DONTNEED, FREE, (NO)HUGEPAGE, guards",
                ),
            ),
        ),
    ),
    # Threads
    Entry(
        "clone",
        "threads, until all of them run",
        (
            (
                Argument(
                    0,
                    (PTHREAD_FLAGS,),
                    "flags: exactly those of pthread_create",
                    mask=~_CLONE_DETACHED & _WORD,
                    wide=True,
                ),
            ),
        ),
        otherwise=_KILL,
    ),
    Entry(
        "clone3",
        "its arguments are in memory, unseen; the C library then uses clone",
        action=_ENOSYS,
    ),
    Entry("set_robust_list", "the C library, in each new thread"),
    Entry("rseq", "the C library, in each new thread"),
    Entry(
        "seccomp",
        "the filter that comes when all threads run; it can only take more away",
        (
            (
                Argument(0, (Operation.SET_MODE_FILTER,), "operation: SET_MODE_FILTER"),
                Argument(1, (FilterFlag.TSYNC,), "flags: TSYNC"),
            ),
        ),
    ),
    Entry("exit", "the end of a thread"),
    Entry("exit_group", "the end"),
    # Signals
    Entry("rt_sigaction", "handlers that Python sets"),
    Entry("rt_sigprocmask", "the C library, around the start of a thread and abort"),
    Entry("rt_sigreturn", "the end of every handler"),
    Entry("sigaltstack", "Python's reports of crashes"),
    # Itself and the time
    Entry("getpid", "log records"),
    Entry("gettid", "log records"),
    Entry("getppid", "cannot fail, says the C library: callers take any answer"),
    Entry("getuid", "cannot fail, says the C library: callers take any answer"),
    Entry("geteuid", "cannot fail, says the C library: callers take any answer"),
    Entry("getgid", "cannot fail, says the C library: callers take any answer"),
    Entry("getegid", "cannot fail, says the C library: callers take any answer"),
    Entry("sched_getaffinity", "how many CPUs there are: workers, malloc's arenas"),
    Entry("getrandom", "seeds"),
    Entry("clock_gettime", "time, where it cannot be read without the kernel"),
    Entry("clock_getres", "time, where it cannot be read without the kernel"),
    Entry("gettimeofday", "time, where it cannot be read without the kernel"),
    Entry("time", "time, where it cannot be read without the kernel"),
)
"""What a server of images makes use of."""


def _each(names: str, why: str, action: int) -> tuple[Entry, ...]:
    return tuple(Entry(name, why, action=action) for name in names.split())


REFUSED: Final = (
    *_each(
        "open openat openat2 creat",
        "Python looks for source lines, modules, time zones; the C library for locales",
        _EPERM,
    ),
    *_each(
        "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd "
        "getdents64",
        "Python looks at paths before it opens them, and at whatever it makes a file object of",
        _EPERM,
    ),
    *_each(
        "ioctl",
        "isatty, and non-blocking mode as Python sets it; every driver is behind this call",
        _EPERM,
    ),
    *_each(
        "socket socketpair connect bind listen accept accept4 getsockname getpeername getsockopt "
        "setsockopt shutdown",
        "the C library asks name services; Python asks what kind of socket it is given",
        _EPERM,
    ),
    *_each(
        "dup dup2 dup3 pipe pipe2 eventfd2 epoll_create1 timerfd_create signalfd4 memfd_create "
        "inotify_init1",
        "descriptors come from the broker and are counted there",
        _EPERM,
    ),
    *_each("pwrite64 pwritev pwritev2 ftruncate fallocate fsync", "images are not written", _EPERM),
    *_each(
        "prctl prlimit64 getrlimit setrlimit sysinfo uname getrusage times",
        "Python names its threads and asks for limits and sizes",
        _EPERM,
    ),
    *_each(
        "tgkill",
        "abort() signals its own thread; refused, it ends the process by other means",
        _EPERM,
    ),
    *_each("msync mlock mincore", "only files and secrets would need them", _EPERM),
    *_each(
        "sched_setaffinity sched_setscheduler setpriority ioprio_set",
        "its share of the CPU is for others to set",
        _EPERM,
    ),
)
"""Calls that are tried without harm, or that a careless line may lead to. The answer is the one for
everything that is not named; they are named to say why it is not the harder one."""

KILLED: Final = (
    *_each("execve execveat", "another program", _KILL),
    *_each("fork vfork", "another process", _KILL),
    *_each(
        "kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal",
        "signals to other processes",
        _KILL,
    ),
    *_each(
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp "
        "pidfd_open pidfd_getfd",
        "the memory and the descriptors of other processes",
        _KILL,
    ),
    *_each("unshare setns chroot pivot_root", "other namespaces, another root", _KILL),
    *_each(
        "mount umount2 mount_setattr open_tree open_tree_attr move_mount fsopen fsconfig fsmount "
        "fspick swapon swapoff quotactl quotactl_fd",
        "mounts",
        _KILL,
    ),
    *_each(
        "name_to_handle_at open_by_handle_at fanotify_init",
        "files past all paths",
        _KILL,
    ),
    *_each("mknod mknodat", "device nodes", _KILL),
    *_each(
        "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset",
        "another identity",
        _KILL,
    ),
    *_each("keyctl add_key request_key", "keys, which no namespace keeps apart", _KILL),
    *_each(
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
        "io_setup io_submit memfd_secret vmsplice personality modify_ldt remap_file_pages",
        "large parts of the kernel that exploits begin with",
        _KILL,
    ),
    *_each(
        "init_module finit_module delete_module kexec_load kexec_file_load reboot iopl ioperm "
        "acct syslog settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname "
        "lookup_dcookie nfsservctl uselib vhangup",
        "the machine itself",
        _KILL,
    ),
)
"""Calls that only somebody makes who has taken the server over."""

LATER: Final = (
    Entry("clone", "all threads run", action=_EPERM),
    Entry("seccomp", "all filters are in place", action=_EPERM),
)
"""What is taken away by the second filter. Nothing else: the first one stays in force."""

IMAGE_CALLS: Final = (*ALLOWED, *REFUSED, *KILLED)


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
    if argument.mask != _WORD:
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
        yield from ((Bpf.JGE, 0, 1, X32_BIT), (Bpf.RETURN, 0, 0, _KILL))
    if default != _ALLOW:
        first = max(SYSCALLS[machine].values()) + 1
        yield from ((Bpf.JGE, 0, 1, first), (Bpf.RETURN, 0, 0, _ENOSYS))


def assemble(entries: Iterable[Entry], machine: str, *, default: int = _EPERM) -> bytes:
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
        (Bpf.RETURN, 0, 0, _KILL),
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


_VERDICTS: Final = {_ALLOW: "allowed", _KILL: "killed", _EPERM: "EPERM", _ENOSYS: "ENOSYS"}


def _row(entry: Entry) -> Row:
    verdict = _VERDICTS[entry.action]
    if entry.arguments:
        verdict += f", else {_VERDICTS[entry.otherwise]}"
    if entry.name in {later.name for later in LATER} and entry.action == _ALLOW:
        verdict += "; EPERM once all threads run"
    ways = ["; ".join(argument.words for argument in way) for way in entry.arguments]
    return Row((entry.name,), verdict, " — or — ".join(ways), entry.why)


def rows(entries: Iterable[Entry] = IMAGE_CALLS) -> Iterator[Row]:
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


def markdown(entries: Iterable[Entry] = IMAGE_CALLS) -> Iterator[str]:
    """The table for docs/security.md, line by line."""
    yield "| System calls | What happens | Arguments | Why |\n"
    yield "|---|---|---|---|\n"
    for calls, verdict, rule, why in rows(entries):
        names = ", ".join(f"`{name}`" for name in calls)
        yield f"| {names} | {verdict} | {rule or 'any'} | {why} |\n"


if __name__ == "__main__":
    sys.stdout.writelines(markdown())
