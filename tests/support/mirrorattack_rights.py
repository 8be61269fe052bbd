# SPDX-License-Identifier: Apache-2.0
"""What a taken-over mirror would try against processes, rights, the network and the kernel."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import struct
import threading
from typing import Final

from penstock.sys.libc import call, syscall
from tests.support.mirrorattacks import STRANGER, Target, attempt, expect

__all__: list[str] = []

_EMPTY_PATH: Final = 0x1000


# Other processes


@attempt("namespaces landlock seccomp")
def kill_another_process(target: Target) -> None:
    """Kills a process of the same user."""
    os.kill(target.victim, signal.SIGKILL)


@attempt("namespaces landlock seccomp")
def trace_another_process(target: Target) -> None:
    """Attaches to a process of the same user."""
    call("ptrace", 16, target.victim, None, None)


@attempt("namespaces seccomp")
def get_hold_of_another_process(target: Target) -> None:
    """Opens a process of the same user."""
    os.pidfd_open(target.victim)


@attempt("namespaces seccomp")
def limit_another_process(target: Target) -> None:
    """Sets a limit of a process of the same user."""
    resource.prlimit(target.victim, resource.RLIMIT_CORE, (0, 0))


@attempt("seccomp")
def fork_a_process(target: Target) -> None:
    """Makes another process."""
    if os.fork() == 0:
        os._exit(0)


@attempt("", later=True)
def start_a_thread(target: Target) -> None:
    """Starts a thread, once all threads run."""
    try:
        threading.Thread(target=len, args=("",)).start()
    except RuntimeError as error:
        raise OSError(errno.EPERM, str(error)) from error


# Identity and rights


@attempt("seccomp")
def become_another_user_for_good(target: Target) -> None:
    """Sets all of its user ids."""
    os.setresuid(STRANGER, STRANGER, STRANGER)


@attempt("capabilities")
def get_a_capability_back(target: Target) -> None:
    """Puts CAP_SYS_ADMIN in effect."""
    header = struct.pack("=Ii", 0x2008_0522, 0)
    low = 1 << 21
    call("capset", header, struct.pack("=6I", low, low, 0, 0, 0, 0))


@attempt("seccomp")
def keep_capabilities_across_users(target: Target) -> None:
    """Has capabilities stay when the user changes."""
    call("prctl", 8, *(ctypes.c_ulong(n) for n in (1, 0, 0, 0)))


@attempt("capabilities seccomp")
def change_the_root(target: Target) -> None:
    """Makes the directory its root."""
    os.fchdir(target.tree)
    os.chroot(".")


@attempt("capabilities seccomp")
def make_namespaces(target: Target) -> None:
    """Makes a mount namespace of its own."""
    call("unshare", 0x0002_0000)


@attempt("landlock capabilities seccomp")
def mount_something(target: Target) -> None:
    """Mounts a tmpfs on its root."""
    call("mount", b"none", b"/", b"tmpfs", ctypes.c_ulong(0), b"size=4k")


@attempt("capabilities seccomp")
def copy_a_mount(target: Target) -> None:
    """Makes another mount of the directory."""
    syscall("open_tree", target.tree, b"", _EMPTY_PATH | 1)


@attempt("capabilities seccomp")
def begin_a_mount(target: Target) -> None:
    """Makes a context for a new filesystem."""
    syscall("fsopen", b"tmpfs", 0)


@attempt("seccomp")
def write_quotas_back(target: Target) -> None:
    """Has all quotas written back."""
    call("quotactl", 0x8000_0100, None, 0, None)


@attempt("capabilities seccomp")
def rename_the_host(target: Target) -> None:
    """Sets the host's name."""
    socket.sethostname("attacked")


@attempt("capabilities seccomp")
def become_a_realtime_process(target: Target) -> None:
    """Becomes a process before which all others wait."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@attempt("seccomp")
def outlive_the_broker(target: Target) -> None:
    """Has the kernel not kill it when the broker dies."""
    call("prctl", 1, *(ctypes.c_ulong(n) for n in (0, 0, 0, 0)))


# The network


@attempt("namespaces landlock seccomp")
def connect_to_a_port(target: Target) -> None:
    """Connects to a TCP port of the host."""
    with socket.socket(socket.AF_INET) as sock:
        sock.connect(("127.0.0.1", target.port))


@attempt("namespaces landlock seccomp")
def connect_to_an_abstract_socket(target: Target) -> None:
    """Connects to a socket in the abstract namespace."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + target.abstract)


@attempt("seccomp")
def connect_to_a_socket_of_the_directory(target: Target) -> None:
    """Connects to a socket that somebody listens on in the directory."""
    os.fchdir(target.tree)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("listener")


@attempt("seccomp")
def make_a_netlink_socket(target: Target) -> None:
    """Talks to the kernel's network."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


# The kernel


@attempt("seccomp")
def make_an_io_uring(target: Target) -> None:
    """Makes a ring, through which calls go past every filter."""
    try:
        syscall("io_uring_setup", 4, ctypes.create_string_buffer(120))
    except OSError as error:
        if error.errno != errno.EPERM or not _uring_is_off():
            raise


def _uring_is_off() -> bool:
    """Whether the kernel refuses it to everybody: the attempt then counts as one that got there.
    Inside the sandbox this cannot be asked."""
    with open("/proc/sys/kernel/io_uring_disabled", encoding="ascii") as file:
        return file.read().strip() != "0"


@attempt("capabilities seccomp")
def load_a_kernel_program(target: Target) -> None:
    """Loads a BPF program."""
    code = ctypes.create_string_buffer(
        struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    )
    words = ctypes.create_string_buffer(b"GPL")
    data = struct.pack("<IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(words))
    syscall("bpf", 5, data.ljust(128, b"\0"), 128)


@attempt("seccomp")
def handle_page_faults(target: Target) -> None:
    """Has page faults, also the kernel's, wait for itself."""
    syscall("userfaultfd", os.O_CLOEXEC)


@attempt("capabilities seccomp")
def watch_a_processor(target: Target) -> None:
    """Counts what all processes do on a CPU."""
    syscall("perf_event_open", struct.pack("<IIQ", 1, 128, 0).ljust(128, b"\0"), -1, 0, -1, 0)


@attempt("capabilities seccomp")
def judge_accesses(target: Target) -> None:
    """Has opens of files by others wait for its permission."""
    call("fanotify_init", 4, os.O_RDONLY)


@attempt("seccomp")
def keep_a_key(target: Target) -> None:
    """Keeps bytes in a keyring of the kernel."""
    syscall("add_key", b"user", b"attack", b"x", 1, -2)


@attempt("seccomp")
def make_an_anonymous_file(target: Target) -> None:
    """Makes a file that has no name, and that no limit counts."""
    os.memfd_create("attack")


@attempt("seccomp")
def map_a_file(target: Target) -> None:
    """Maps a file of the directory, so that it dies when somebody shortens that."""
    fd = os.open("file", os.O_RDWR, dir_fd=target.tree)
    mmap.mmap(fd, 4, mmap.MAP_SHARED)


@attempt("seccomp")
def make_code(target: Target) -> None:
    """Makes memory that can be written and executed."""
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


@attempt("limits")
def take_much_memory(target: Target) -> None:
    """Maps 16 GiB."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    expect([mmap.mmap(-1, 1 << 30, flags) for _ in range(16)])


@attempt("seccomp")
def raise_a_limit(target: Target) -> None:
    """Sets a limit of its own."""
    resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
