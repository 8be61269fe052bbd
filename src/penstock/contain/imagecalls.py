# SPDX-License-Identifier: Apache-2.0
"""The system calls of a server of images: which it may make, and why (see
:mod:`penstock.contain.filter`).

Other kinds of servers begin with this table and say what is different.
"""

from __future__ import annotations

from typing import Final

from penstock.abi.process import PTHREAD_FLAGS
from penstock.abi.seccomp import FilterFlag, Operation
from penstock.contain.filter import ENOSYS, EPERM, KILL, WORD, Argument, Entry, each, only

__all__ = ["ALLOWED", "IMAGE_CALLS", "KILLED", "REFUSED"]

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

_NO_CODE: Final = only(2, _PROT_READ_WRITE, "protection: READ, WRITE (not EXEC)", wide=True)

ALLOWED: Final = (
    # The image, the device, pipes
    Entry("read", "requests from /dev/fuse; the rest of a pipe"),
    Entry("readv", "requests into several buffers"),
    Entry("pread64", "the image"),
    Entry("preadv", "the image, straight into a reply's buffer"),
    Entry(
        "preadv2",
        "the image, if it need not be waited for",
        ((only(5, _RWF_NOWAIT, "flags: NOWAIT"),),),
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
    Entry("recvmsg", "messages and descriptors", ((only(2, _RECEIVE, _RECEIVE_WORDS),),)),
    Entry("recvfrom", "messages (recv)", ((only(3, _RECEIVE, _RECEIVE_WORDS),),)),
    Entry("sendmsg", "messages and descriptors", ((only(2, _SEND, _SEND_WORDS),),)),
    Entry(
        "sendto",
        "messages (send)",
        (
            (
                only(3, _SEND, _SEND_WORDS),
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
                    mask=~_FUTEX_FLAGS & WORD,
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
                    mask=~_MAP_HARMLESS & WORD,
                    wide=True,
                ),
            ),
        ),
    ),
    Entry("munmap", "free"),
    Entry(
        "mremap",
        "realloc",
        ((only(3, _MREMAP_MAYMOVE, "flags: MAYMOVE", wide=True),),),
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
                    mask=~_CLONE_DETACHED & WORD,
                    wide=True,
                ),
            ),
        ),
        otherwise=KILL,
    ),
    Entry(
        "clone3",
        "its arguments are in memory, unseen; the C library then uses clone",
        action=ENOSYS,
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


REFUSED: Final = (
    *each(
        "open openat openat2 creat",
        "Python looks for source lines, modules, time zones; the C library for locales",
        EPERM,
    ),
    *each(
        "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd "
        "getdents64",
        "Python looks at paths before it opens them, and at whatever it makes a file object of",
        EPERM,
    ),
    *each(
        "ioctl",
        "isatty, and non-blocking mode as Python sets it; every driver is behind this call",
        EPERM,
    ),
    *each(
        "socket socketpair connect bind listen accept accept4 getsockname getpeername getsockopt "
        "setsockopt shutdown",
        "the C library asks name services; Python asks what kind of socket it is given",
        EPERM,
    ),
    *each(
        "dup dup2 dup3 pipe pipe2 eventfd2 epoll_create1 timerfd_create signalfd4 memfd_create "
        "inotify_init1",
        "descriptors come from the broker and are counted there",
        EPERM,
    ),
    *each("pwrite64 pwritev pwritev2 ftruncate fallocate fsync", "images are not written", EPERM),
    *each(
        "prctl prlimit64 getrlimit setrlimit sysinfo uname getrusage times",
        "Python names its threads and asks for limits and sizes",
        EPERM,
    ),
    *each(
        "tgkill",
        "abort() signals its own thread; refused, it ends the process by other means",
        EPERM,
    ),
    *each("msync mlock mincore", "only files and secrets would need them", EPERM),
    *each(
        "sched_setaffinity sched_setscheduler setpriority ioprio_set",
        "its share of the CPU is for others to set",
        EPERM,
    ),
)
"""Calls that are tried without harm, or that a careless line may lead to. The answer is the one for
everything that is not named; they are named to say why it is not the harder one."""

KILLED: Final = (
    *each("execve execveat", "another program", KILL),
    *each("fork vfork", "another process", KILL),
    *each(
        "kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal",
        "signals to other processes",
        KILL,
    ),
    *each(
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp "
        "pidfd_open pidfd_getfd",
        "the memory and the descriptors of other processes",
        KILL,
    ),
    *each("unshare setns chroot pivot_root", "other namespaces, another root", KILL),
    *each(
        "mount umount2 mount_setattr open_tree open_tree_attr move_mount fsopen fsconfig fsmount "
        "fspick swapon swapoff quotactl quotactl_fd",
        "mounts",
        KILL,
    ),
    *each(
        "name_to_handle_at open_by_handle_at fanotify_init",
        "files past all paths",
        KILL,
    ),
    *each("mknod mknodat", "device nodes", KILL),
    *each(
        "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset",
        "another identity",
        KILL,
    ),
    *each("keyctl add_key request_key", "keys, which no namespace keeps apart", KILL),
    *each(
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
        "io_setup io_submit memfd_secret vmsplice personality modify_ldt remap_file_pages",
        "large parts of the kernel that exploits begin with",
        KILL,
    ),
    *each(
        "init_module finit_module delete_module kexec_load kexec_file_load reboot iopl ioperm "
        "acct syslog settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname "
        "lookup_dcookie nfsservctl uselib vhangup",
        "the machine itself",
        KILL,
    ),
)
"""Calls that only somebody makes who has taken the server over."""

IMAGE_CALLS: Final = (*ALLOWED, *REFUSED, *KILLED)
"""The whole table."""
