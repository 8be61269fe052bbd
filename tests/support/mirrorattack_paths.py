# SPDX-License-Identifier: Apache-2.0
"""What a taken-over mirror would try with paths, handles and the descriptors that it has."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from typing import Final

from penstock.sys.libc import syscall
from tests.support.mirrorattacks import STRANGER, Target, attempt, expect

__all__: list[str] = []

_EMPTY_PATH: Final = 0x1000
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_FIONREAD, _FIONBIO = 0x541B, 0x5421
_UP: Final = "../outside"


def _read(fd: int) -> None:
    expect(os.read(fd, 6) == b"secret")


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
    expect("outside" in os.listdir(fd))


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
