# SPDX-License-Identifier: Apache-2.0
"""What a mirror's server that was taken over would try: the table of attempts.

As in :mod:`tests.support.attacks`, an attempt returns when it has succeeded and raises OSError (or
dies of a signal) when it was stopped; beside it stand the layers of which each alone must stop it.
``broker`` is no layer but what the broker hands out: the directory through a mount of its own, and
devices whose nodes cannot be changed. What attempts reach belongs to the test
(:mod:`tests.support.mirrorattacking`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from penstock.sys.libc import call, syscall

__all__ = ["ATTEMPTS", "STRANGER", "Attempt", "Target"]

STRANGER: Final = 12345
_EMPTY_PATH: Final = 0x1000
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_FIONREAD, _FIONBIO = 0x541B, 0x5421
_UP: Final = "../outside"


class Target(NamedTuple):
    """What the attacker holds and knows."""

    tree: int
    """The directory that it serves."""
    device: int
    """A device that it was given, of which the node is ``null`` of :attr:`devices`."""
    fuse: int
    """A descriptor of /dev/fuse."""
    pipe: tuple[int, int]
    channel: int
    """A socket to the broker."""
    outside: str
    """A directory beside the one it serves, with ``secret`` (0600), ``public`` and ``folder``."""
    devices: str
    """A directory with device nodes."""
    plain: bytes
    """The handle (u32 bytes, s32 type, bytes) of ``secret`` without its parent."""
    connectable: bytes
    """The same with its parent."""
    folder: bytes
    """The handle of ``outside``."""
    victim: int
    """A process of the same user."""
    abstract: str
    """Name of an abstract socket that somebody listens on."""
    port: int
    """TCP, on 127.0.0.1."""


class Attempt(NamedTuple):
    """One row."""

    name: str
    run: Callable[[Target], None]
    by: frozenset[str]
    cold: bool
    """Nothing of the filesystem is cached when it begins."""
    later: bool
    """It is stopped once all threads run."""
    kernel: bool
    """The kernel refuses it by itself, with no layer at all."""


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    by: str, *, cold: bool = False, later: bool = False, kernel: bool = False
) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
    """Enter a function into the table."""

    def enter(function: Callable[[Target], None]) -> Callable[[Target], None]:
        name = function.__name__
        assert function.__doc__
        assert name not in ATTEMPTS
        ATTEMPTS[name] = Attempt(name, function, frozenset(by.split()), cold, later, kernel)
        return function

    return enter


def _expect(good: object) -> None:
    if not good:
        raise OSError(errno.EPERM, "it had no effect")


def _read(fd: int) -> None:
    _expect(os.read(fd, 6) == b"secret")


def _by_handle(target: Target, handle: bytes, flags: int) -> int:
    return syscall("open_by_handle_at", target.tree, handle, flags)


# Out of the directory by a path


@attempt("root landlock")
def read_by_an_absolute_path(target: Target) -> None:
    """Opens a file by its whole path."""
    _read(os.open(f"{target.outside}/secret", os.O_RDONLY))


@attempt("root landlock")
def write_by_an_absolute_path(target: Target) -> None:
    """Truncates and writes a file by its whole path."""
    os.write(os.open(f"{target.outside}/public", os.O_WRONLY | os.O_TRUNC), b"x")


@attempt("landlock broker")
def read_through_the_parent(target: Target) -> None:
    """Goes up from the directory, and down elsewhere."""
    _read(os.open(f"{_UP}/secret", os.O_RDONLY, dir_fd=target.tree))


@attempt("landlock broker")
def read_with_openat2(target: Target) -> None:
    """The same with the newer call, whose flags no filter sees."""
    how = struct.pack("<QQQ", os.O_RDONLY, 0, 0)
    _read(syscall("openat2", target.tree, f"{_UP}/secret".encode(), how, len(how)))


@attempt("landlock broker")
def create_outside(target: Target) -> None:
    """Makes a file beside the directory."""
    os.open(f"{_UP}/made", _CREATE, 0o666, dir_fd=target.tree)


@attempt("landlock broker")
def make_a_folder_outside(target: Target) -> None:
    """Makes a directory beside the directory."""
    os.mkdir(f"{_UP}/made", dir_fd=target.tree)


@attempt("landlock broker")
def make_a_device_outside(target: Target) -> None:
    """Makes a node of a disk beside the directory."""
    os.mknod(f"{_UP}/disk", stat.S_IFBLK | 0o666, os.makedev(7, 0), dir_fd=target.tree)


@attempt("landlock broker")
def make_a_link_outside(target: Target) -> None:
    """Makes a symbolic link beside the directory."""
    os.symlink("/", f"{_UP}/link", dir_fd=target.tree)


@attempt("landlock broker")
def remove_outside(target: Target) -> None:
    """Removes a file beside the directory."""
    os.unlink(f"{_UP}/public", dir_fd=target.tree)


@attempt("landlock broker")
def move_out(target: Target) -> None:
    """Moves a file of the directory out of it."""
    os.rename("file", f"{_UP}/moved", src_dir_fd=target.tree, dst_dir_fd=target.tree)


@attempt("landlock broker")
def move_in(target: Target) -> None:
    """Moves somebody's file into the directory."""
    os.rename(f"{_UP}/secret", "moved", src_dir_fd=target.tree, dst_dir_fd=target.tree)


@attempt("landlock broker")
def link_in(target: Target) -> None:
    """Gives somebody's file a name in the directory."""
    os.link(f"{_UP}/secret", "linked", src_dir_fd=target.tree, dst_dir_fd=target.tree)


@attempt("landlock broker")
def list_outside(target: Target) -> None:
    """Reads the names beside the directory."""
    fd = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=target.tree)
    _expect("outside" in os.listdir(fd))


@attempt("broker")
def stat_outside(target: Target) -> None:
    """Asks for the attributes of somebody's file."""
    os.stat(f"{_UP}/secret", dir_fd=target.tree)


@attempt("broker")
def open_to_all_outside(target: Target) -> None:
    """Changes the mode of somebody's file."""
    syscall("fchmodat2", target.tree, f"{_UP}/secret".encode(), 0o666, 0)


@attempt("root")
def take_a_file_outside(target: Target) -> None:
    """Changes the owner of somebody's file."""
    os.chown(f"{target.outside}/secret", STRANGER, STRANGER, dir_fd=target.tree)


@attempt("root")
def change_times_outside(target: Target) -> None:
    """Changes the times of somebody's file."""
    os.utime(f"{target.outside}/secret", (1, 1))


@attempt("root seccomp")
def mark_a_file_outside(target: Target) -> None:
    """Sets an attribute of somebody's file, by its path."""
    os.setxattr(f"{target.outside}/secret", "user.attack", b"x")


@attempt("root landlock")
def write_a_kernel_setting(target: Target) -> None:
    """Writes a file of /proc/sys (the value that it has)."""
    path = "/proc/sys/kernel/pty/max"
    value = os.read(os.open(path, os.O_RDONLY), 64)
    os.write(os.open(path, os.O_WRONLY), value)


@attempt("root landlock")
def read_the_memory_file_of_another(target: Target) -> None:
    """Opens /proc/PID/mem."""
    os.open(f"/proc/{target.victim}/mem", os.O_RDWR)


@attempt("root landlock")
def open_a_device_by_its_path(target: Target) -> None:
    """Opens a device by the path of its node."""
    os.open(f"{target.devices}/null", os.O_RDWR)


# By symbolic links and nodes in the directory


@attempt("root landlock broker")
def follow_an_absolute_link(target: Target) -> None:
    """Follows a link of the directory that leads out."""
    _read(os.open("absolute", os.O_RDONLY, dir_fd=target.tree))


@attempt("landlock broker")
def follow_a_relative_link(target: Target) -> None:
    """Follows a link of the directory that leads up and out."""
    _read(os.open("relative", os.O_RDONLY, dir_fd=target.tree))


@attempt("landlock broker")
def create_through_a_link(target: Target) -> None:
    """Makes a file where a link of its own making leads."""
    os.symlink(f"{_UP}/planted", "planted", dir_fd=target.tree)
    os.open("planted", os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=target.tree)


@attempt("broker")
def open_a_device_of_its_own(target: Target) -> None:
    """Makes a device node in the directory and opens it."""
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=target.tree)
    os.open("null", os.O_RDWR, dir_fd=target.tree)


@attempt("landlock seccomp")
def execute_a_file_of_the_directory(target: Target) -> None:
    """Executes a program that lies in the directory."""
    fd = os.open("program", os.O_PATH, dir_fd=target.tree)
    os.execve(fd, ["program"], {})  # noqa: S606 - that is the attack


# By handles


@attempt("seccomp")
def read_by_a_forged_handle(target: Target) -> None:
    """Opens somebody's file by a handle that says nothing of its parent."""
    _read(_by_handle(target, target.plain, os.O_RDONLY))


@attempt("seccomp", cold=True)
def read_by_a_forged_handle_cold(target: Target) -> None:
    """The same when nothing is cached."""
    _by_handle(target, target.folder, os.O_PATH)  # so that it is not for the cache alone
    _read(_by_handle(target, target.plain, os.O_RDONLY))


@attempt("seccomp", kernel=True)
def read_by_a_connectable_handle(target: Target) -> None:
    """Opens somebody's file by a handle that names its parent too."""
    _read(_by_handle(target, target.connectable, os.O_RDONLY))


@attempt("seccomp", cold=True, kernel=True)
def read_by_a_connectable_handle_cold(target: Target) -> None:
    """The same when nothing is cached."""
    _read(_by_handle(target, target.connectable, os.O_RDONLY))


@attempt("seccomp")
def open_to_all_by_a_forged_handle(target: Target) -> None:
    """Gets hold of somebody's file with O_PATH, and changes its mode."""
    fd = _by_handle(target, target.plain, os.O_PATH)
    syscall("fchmodat2", fd, b"", 0o666, _EMPTY_PATH)


@attempt("seccomp")
def enter_a_folder_by_a_forged_handle(target: Target) -> None:
    """Gets hold of a directory outside, and asks for what is in it."""
    fd = _by_handle(target, target.folder, os.O_PATH | os.O_DIRECTORY)
    os.stat("secret", dir_fd=fd)


# Descriptors that it was given


@attempt("broker")
def close_a_device_to_others(target: Target) -> None:
    """Changes the mode of a device's node."""
    os.fchmod(target.device, 0)


@attempt("broker")
def take_a_device(target: Target) -> None:
    """Changes the owner of a device's node."""
    syscall("fchownat", target.device, b"", STRANGER, STRANGER, _EMPTY_PATH)


@attempt("broker")
def change_the_times_of_a_device(target: Target) -> None:
    """Changes the times of a device's node."""
    os.utime(target.device, (1, 1))


@attempt("broker")
def open_the_fuse_device_to_all(target: Target) -> None:
    """Changes the mode of /dev/fuse's node (to the one that it has)."""
    os.fchmod(target.fuse, stat.S_IMODE(os.fstat(target.fuse).st_mode))


@attempt("seccomp")
def reach_the_device_of_fuse(target: Target) -> None:
    """An ioctl of the held /dev/fuse, of whose own there are those that register files."""
    fcntl.ioctl(target.fuse, _FIONBIO, struct.pack("=i", 1))


@attempt("seccomp")
def ask_how_much_is_in_a_pipe(target: Target) -> None:
    """An ioctl that is not of the listed ones."""
    fcntl.ioctl(target.pipe[0], _FIONREAD, bytes(4))


@attempt("seccomp")
def grow_a_pipe(target: Target) -> None:
    """Makes a pipe larger."""
    fcntl.fcntl(target.pipe[0], fcntl.F_SETPIPE_SZ, 1 << 20)


@attempt("namespaces seccomp")
def have_signals_sent(target: Target) -> None:
    """Makes another process the owner of a held pipe."""
    fcntl.fcntl(target.pipe[0], fcntl.F_SETOWN, target.victim)


@attempt("seccomp")
def take_a_lease(target: Target) -> None:
    """Has whoever opens a file wait for it."""
    fd = os.open("file", os.O_RDONLY, dir_fd=target.tree)
    fcntl.fcntl(fd, 1024, fcntl.F_WRLCK)


@attempt("seccomp")
def watch_a_folder(target: Target) -> None:
    """Has the kernel signal changes in the directory."""
    fcntl.fcntl(target.tree, fcntl.F_NOTIFY, fcntl.DN_CREATE)


@attempt("capabilities")
def forge_the_sender_of_a_message(target: Target) -> None:
    """Names another process as sender of a message to the broker."""
    credentials = struct.pack("=iII", target.victim, 0, 0)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=target.channel)
    try:
        sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
    finally:
        sock.detach()


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
    _expect([mmap.mmap(-1, 1 << 30, flags) for _ in range(16)])


@attempt("seccomp")
def raise_a_limit(target: Target) -> None:
    """Sets a limit of its own."""
    resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
