# SPDX-License-Identifier: Apache-2.0
"""Attempts to reach files by path or by handle."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct

from tests.support.attacks import STRANGER, Facts, Held, call, expect, raw, section
from tests.support.syscalls import Handle, open_handle

__all__: list[str] = []

attempt = section("Files by path")

_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400
_IN_CREATE = 0x100
_F_OFD_SETLK = 37
_F_SETLEASE = 1024
_FS_IOC_GETFLAGS = 0x8008_6601
_FS_IOC_SETFLAGS = 0x4008_6602
_NODUMP = 0x40
_BLKROSET = 0x125D
_BLKFLSBUF = 0x1261
_LOOP_CLR_FD = 0x4C01


def _read(path: str, flags: int = 0) -> bytes:
    fd = os.open(path, os.O_RDONLY | flags)
    data = os.read(fd, 64)
    os.close(fd)
    return data


@attempt("openat", by="root landlock seccomp")
def read_a_public_file(held: Held) -> None:
    """Opens a file that everybody may read."""
    expect(_read(held.facts.public) == b"public", "other bytes")


@attempt("openat", by="identity root landlock seccomp")
def read_a_file_of_root(held: Held) -> None:
    """Opens a file of mode 0600 that belongs to root."""
    expect(_read(held.facts.secret) == b"secret", "other bytes")


@attempt("openat", by="namespaces identity root landlock capabilities seccomp")
def read_a_file_of_another_user(held: Held) -> None:
    """Opens a file of mode 0600 that belongs to another user."""
    expect(_read(held.facts.foreign) == b"foreign", "other bytes")


@attempt("openat2", by="root landlock seccomp")
def open_with_openat2(held: Held) -> None:
    """Opens a file with the newer call, whose flags no filter can see."""
    how = struct.pack("<QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, 0)
    path = held.facts.public.encode()
    os.close(raw("openat2", _AT_FDCWD, ctypes.c_char_p(path), ctypes.c_char_p(how), len(how)))


@attempt("openat", by="root landlock seccomp")
def create_a_file(held: Held) -> None:
    """Makes a file in a folder that everybody may write to."""
    path = f"{held.facts.shared}/created"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


@attempt("openat", by="root landlock limits seccomp")
def overwrite_a_file(held: Held) -> None:
    """Truncates and writes a file that everybody may write."""
    fd = os.open(held.facts.public, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"overwritten")
    os.close(fd)


@attempt("newfstatat", by="root seccomp")
def stat_a_path(held: Held) -> None:
    """Asks for the attributes of a file."""
    os.stat(held.facts.public)


@attempt("access", by="root seccomp")
def probe_a_path(held: Held) -> None:
    """Finds out whether a path exists."""
    call("access", held.facts.public.encode(), os.F_OK)


@attempt("statfs", by="root seccomp")
def measure_a_filesystem(held: Held) -> None:
    """Asks how large and how full the host's filesystem is."""
    os.statvfs(held.facts.folder)


@attempt("openat getdents64", by="root landlock seccomp")
def list_a_folder(held: Held) -> None:
    """Reads the names in a folder."""
    expect("public" in os.listdir(held.facts.folder), "other names")


@attempt("openat getdents64", by="root landlock seccomp")
def list_the_processes(held: Held) -> None:
    """Reads the names in /proc."""
    expect("self" in os.listdir("/proc"), "other names")


@attempt("openat", by="namespaces identity root landlock capabilities seccomp")
def read_the_environment_of_the_broker(held: Held) -> None:
    """Opens /proc/PID/environ."""
    expect(_read(f"/proc/{held.facts.broker}/environ"), "nothing in it")


@attempt("openat", by="identity root landlock seccomp")
def write_a_kernel_setting(held: Held) -> None:
    """Writes a file of /proc/sys (the value that it has)."""
    path = "/proc/sys/kernel/pty/max"
    value = _read(path)
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, value)
    os.close(fd)


@attempt("openat", by="root landlock seccomp")
def read_from_sys(held: Held) -> None:
    """Opens a file of /sys."""
    expect(_read("/sys/devices/system/cpu/online"), "nothing in it")


@attempt("unlink", by="root landlock seccomp")
def unlink_a_file(held: Held) -> None:
    """Removes a file from a folder that everybody may write to."""
    os.unlink(f"{held.facts.shared}/file")


@attempt("rename", by="root landlock seccomp")
def rename_a_file(held: Held) -> None:
    """Renames a file in a folder that everybody may write to."""
    os.rename(f"{held.facts.shared}/file", f"{held.facts.shared}/renamed")


@attempt("mkdir", by="root landlock seccomp")
def make_a_folder(held: Held) -> None:
    """Makes a folder in a folder that everybody may write to."""
    os.mkdir(f"{held.facts.shared}/folder")


@attempt("symlink", by="root landlock seccomp")
def make_a_symlink(held: Held) -> None:
    """Makes a symlink in a folder that everybody may write to."""
    os.symlink("/etc/passwd", f"{held.facts.shared}/symlink")


@attempt("linkat", by="root landlock seccomp")
def give_the_image_another_name(held: Held) -> None:
    """Links the held image into a folder through /proc/self/fd."""
    source = f"/proc/self/fd/{held.image}".encode()
    target = f"{held.facts.shared}/image".encode()
    call("linkat", _AT_FDCWD, source, _AT_FDCWD, target, _AT_SYMLINK_FOLLOW)


@attempt("chmod", by="identity root seccomp")
def open_a_file_of_root_to_all(held: Held) -> None:
    """Changes the mode of a file of root."""
    os.chmod(held.facts.secret, 0o666)


@attempt("chown", by="namespaces identity root capabilities seccomp")
def give_a_file_away(held: Held) -> None:
    """Changes the owner of a file of root."""
    os.chown(held.facts.secret, STRANGER, STRANGER)


@attempt("truncate", by="root landlock seccomp", landlock=3)
def truncate_a_path(held: Held) -> None:
    """Truncates a file that everybody may write, without opening it."""
    os.truncate(held.facts.public, 0)


@attempt("setxattr", by="root seccomp", absent=(errno.EOPNOTSUPP,))
def set_an_attribute(held: Held) -> None:
    """Sets an extended attribute of a file that everybody may write."""
    os.setxattr(held.facts.public, "user.attack", b"x")


@attempt("utimensat", by="root seccomp")
def change_times(held: Held) -> None:
    """Sets the times of a file that everybody may write to now."""
    os.utime(held.facts.public)


@attempt("mknodat", by="namespaces identity root landlock capabilities seccomp")
def make_a_device_node(held: Held) -> None:
    """Makes a node of a device."""
    os.mknod(f"{held.facts.shared}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


@attempt("mknodat", by="root landlock seccomp")
def make_a_named_pipe(held: Held) -> None:
    """Makes a named pipe in a folder that everybody may write to."""
    os.mkfifo(f"{held.facts.shared}/pipe")


@attempt("openat", by="identity root landlock seccomp", needs="loop")
def open_a_disk(held: Held) -> None:
    """Opens a block device for writing by its node."""
    os.close(os.open(held.facts.loop, os.O_RDWR))


@attempt("openat", by="root landlock seccomp")
def open_the_fuse_device(held: Held) -> None:
    """Opens /dev/fuse to be server of another mount."""
    os.close(os.open("/dev/fuse", os.O_RDWR))


@attempt("readlink", by="root seccomp")
def find_the_interpreter(held: Held) -> None:
    """Reads a symlink of /proc."""
    os.readlink("/proc/self/exe")


@attempt("chdir getcwd", by="root seccomp")
def change_the_working_folder(held: Held) -> None:
    """Goes to a folder and asks where it is."""
    os.chdir(held.facts.folder)
    expect(os.getcwd() == held.facts.folder, "elsewhere")


@attempt("inotify_init1 inotify_add_watch", by="root seccomp")
def watch_a_folder(held: Held) -> None:
    """Has the kernel tell of what others do in a folder."""
    fd = call("inotify_init1", os.O_CLOEXEC)
    call("inotify_add_watch", fd, held.facts.folder.encode(), _IN_CREATE)


@attempt("openat", by="identity root landlock limits seccomp")
def reopen_the_image_for_writing(held: Held) -> None:
    """Opens the read-only image for writing through /proc/self/fd."""
    fd = os.open(f"/proc/self/fd/{held.image}", os.O_RDWR)
    expect(os.pwrite(fd, b"x", 0) == 1, "nothing written")


@attempt(
    "open_by_handle_at", by="namespaces identity landlock capabilities seccomp",
    absent=(errno.EOPNOTSUPP,),
)  # fmt: skip
def open_by_handle(held: Held) -> None:
    """Opens a file of root by its handle; the held image says in which filesystem."""
    handle = Handle(held.facts.handle_type, bytes.fromhex(held.facts.handle))
    fd = open_handle(held.image, handle, os.O_RDONLY)
    expect(os.read(fd, 6) == b"secret", "another file")


def _mode_is_changed(facts: Facts) -> bool:
    return os.stat(f"{facts.folder}/image").st_mode & 0o777 == 0o604


attempt = section("Held descriptors of files")


@attempt("fchmod", by="identity seccomp", confirm=_mode_is_changed)
def change_the_mode_of_the_image(held: Held) -> None:
    """Changes the mode of the held image."""
    os.fchmod(held.image, 0o604)


@attempt("fchown", by="namespaces identity capabilities seccomp")
def give_the_image_away(held: Held) -> None:
    """Changes the owner of the held image."""
    os.fchown(held.image, STRANGER, STRANGER)


@attempt("utimensat", by="identity seccomp")
def change_the_times_of_the_image(held: Held) -> None:
    """Sets the times of the held image to a date of its choice."""
    os.utime(held.image, (1, 1))


@attempt("fsetxattr", by="identity seccomp", absent=(errno.EOPNOTSUPP,))
def set_an_attribute_of_the_image(held: Held) -> None:
    """Sets an extended attribute of the held image."""
    os.setxattr(held.image, "user.attack", b"x")


@attempt("fstat", by="seccomp")
def find_out_whose_the_image_is(held: Held) -> None:
    """Asks for owner, times and device of the held image."""
    os.fstat(held.image)


@attempt("fstatfs", by="seccomp")
def measure_the_filesystem_of_the_image(held: Held) -> None:
    """Asks how large and how full the filesystem is that holds the image."""
    os.fstatvfs(held.image)


@attempt("flock", by="seccomp")
def lock_the_image(held: Held) -> None:
    """Takes an exclusive lock of the held image, so that others wait for ever."""
    fcntl.flock(held.image, fcntl.LOCK_EX | fcntl.LOCK_NB)


@attempt("fcntl", by="seccomp")
def lock_a_range_of_the_image(held: Held) -> None:
    """Takes a lock of a range of the held image, which blocks writers."""
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(held.image, _F_OFD_SETLK, lock)


@attempt("fcntl", by="identity seccomp")
def take_a_lease_of_the_image(held: Held) -> None:
    """Takes a lease of the held image: whoever opens it to write waits."""
    fcntl.fcntl(held.image, _F_SETLEASE, fcntl.F_RDLCK)


@attempt("ioctl", by="identity seccomp", absent=(errno.ENOTTY,))
def set_flags_of_the_image(held: Held) -> None:
    """Sets the nodump flag of the held image (FS_IOC_SETFLAGS)."""
    flags = struct.unpack("<i", fcntl.ioctl(held.image, _FS_IOC_GETFLAGS, bytes(4)))[0]
    fcntl.ioctl(held.image, _FS_IOC_SETFLAGS, struct.pack("<i", flags | _NODUMP))


@attempt("fadvise64", by="seccomp")
def drop_the_cache_of_the_image(held: Held) -> None:
    """Throws the held image out of the page cache, for everybody."""
    os.posix_fadvise(held.image, 0, 0, os.POSIX_FADV_DONTNEED)


@attempt("syncfs", by="seccomp")
def flush_the_filesystem_of_the_image(held: Held) -> None:
    """Has the whole filesystem written back that holds the image."""
    call("syncfs", held.image)


@attempt("ioctl", by="namespaces identity capabilities seccomp", needs="loop")
def make_the_disk_read_only(held: Held) -> None:
    """Sets the held disk read-only for everybody (BLKROSET)."""
    fcntl.ioctl(held.device, _BLKROSET, struct.pack("<i", 1))


@attempt("ioctl", by="namespaces identity capabilities seccomp", needs="loop")
def flush_the_disk(held: Held) -> None:
    """Throws the held disk out of the buffer cache (BLKFLSBUF)."""
    fcntl.ioctl(held.device, _BLKFLSBUF, 0)


@attempt("ioctl", by="seccomp", needs="loop")
def detach_the_disk(held: Held) -> None:
    """Takes the file from the held loop device (LOOP_CLR_FD)."""
    fcntl.ioctl(held.device, _LOOP_CLR_FD, 0)


@attempt("pwrite64", by="limits seccomp broker", confirm=lambda facts: _first_byte(facts) == b"!")
def write_to_the_image(held: Held) -> None:
    """Writes to the held image."""
    os.pwrite(held.image, b"!", 0)


@attempt("mmap", by="seccomp broker", confirm=lambda facts: _first_byte(facts) == b"!")
def write_to_the_image_through_memory(held: Held) -> None:
    """Maps the held image writable and stores into it."""
    with mmap.mmap(held.image, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[0:1] = b"!"


def _first_byte(facts: Facts) -> bytes:
    with open(f"{facts.folder}/image", "rb") as file:
        return file.read(1)
