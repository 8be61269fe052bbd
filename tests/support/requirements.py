# SPDX-License-Identifier: Apache-2.0
"""What the tests need of the machine: tests/requirements.toml read, each thing tried at most once.

A probe answers None when the thing is there, else a short reason. It tries the real thing (opens
the device, attaches a loop device, compiles a line of C); a version number proves nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from penstock.sys.landlock import abi_version

__all__ = ["PROJECT", "Requirement", "absent_reason", "kernel_may_lack", "load"]

PROJECT = Path(__file__).resolve().parent.parent.parent
TABLE = PROJECT / "tests" / "requirements.toml"
IOC_SYNC_INIT = 0xE503


@dataclass(frozen=True)
class Requirement:
    """One entry of tests/requirements.toml; the fields are described there."""

    name: str
    what: str
    probe: str
    provider: str
    covered: str


@cache
def load() -> dict[str, Requirement]:
    """All requirements by name.

    Raises:
        TypeError: an entry lacks a field or has one too many.
    """
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))["requirement"]
    return {name: Requirement(name=name, **fields) for name, fields in table.items()}


@cache
def kernel_may_lack() -> frozenset[str]:
    """Requirements whose absence is accepted under PENSTOCK_REQUIRE=all."""
    return frozenset(tomllib.loads(TABLE.read_text(encoding="utf-8"))["kernel_may_lack"])


@cache
def absent_reason(name: str) -> str | None:
    """None when the requirement ``name`` is met, else why not. Tried once in a process.

    Raises:
        KeyError: no such requirement.
    """
    requirement = load()[name]
    reason = PROBES[requirement.probe]()
    return None if reason is None else f"{requirement.what}: {reason}"


def root() -> str | None:
    """Root, with the right to mount: a mount namespace of its own is tried."""
    if os.geteuid() != 0:
        return "not root"
    command = ["unshare", "--mount", "--propagation", "unchanged", "true"]
    tried = subprocess.run(command, capture_output=True, check=False)
    return None if tried.returncode == 0 else "CAP_SYS_ADMIN is missing"


def fuse() -> str | None:
    """/dev/fuse opens (or a set-user-ID fusermount3 will open it) and somebody may mount."""
    if root() is None:
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error.strerror
        return None
    return fusermount3()


def fusermount3() -> str | None:
    """fusermount3 is there with the rights it needs."""
    path = shutil.which("fusermount3")
    if path is None:
        return "not in PATH"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if not Path("/etc/mtab").exists():
        return "it needs /etc/mtab, and there is none (a link to /proc/self/mounts will do)"
    st = Path(path).stat()
    return None if st.st_uid == 0 and st.st_mode & 0o4000 else f"{path} is not set-user-ID root"


def ordinary_user() -> str | None:
    """nobody can be become, and the interpreter is one that he can execute."""
    if root() is not None:
        return "only root can become another user"
    python = (PROJECT / ".venv" / "bin" / "python").resolve()
    tried = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -I -c ""', str(python)],
        user="nobody",
        group="nogroup",
        extra_groups=[],
        env={},
        cwd="/",
        capture_output=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"nobody cannot execute {python}"


def all_processes() -> str | None:
    """No process is hidden from this one."""
    if os.geteuid() != 0:
        return "not root"
    first = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC
    return None if first else "a pid namespace of its own"


def loop() -> str | None:
    """A loop device can be attached and detached."""
    if root() is not None:
        return "not root"
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(1 << 20)
        command = ["losetup", "--find", "--show", "--read-only", file.name]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            return tried.stderr.strip() or "losetup failed"
        subprocess.run(["losetup", "--detach", tried.stdout.strip()], check=True)
    return None


def _kernel(name: str) -> Callable[[], str | None]:
    """The kernel mounts this filesystem and has loop devices."""

    def probe() -> str | None:
        listed = Path("/proc/filesystems")
        if name not in listed.read_text(encoding="utf-8").split():
            subprocess.run(["modprobe", name], capture_output=True, check=False)
        there = name in listed.read_text(encoding="utf-8").split()
        return loop() if there else "not in /proc/filesystems"

    return probe


def kernel_quota() -> str | None:
    """The kernel mounts an ext4 filesystem that has quotas."""
    reason = _kernel("ext4")() or _programs("mke2fs")()
    if reason is not None:
        return reason
    with tempfile.TemporaryDirectory() as place:
        image, top = Path(place, "image"), Path(place, "top")
        top.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 20)
        path = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        make = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "quota", str(image)]
        subprocess.run(make, check=True, capture_output=True, env=path)
        mount = ["mount", "-o", "loop,usrquota", str(image), str(top)]
        tried = subprocess.run(mount, capture_output=True, check=False)
        if tried.returncode == 0:
            subprocess.run(["umount", str(top)], check=True)
    return None if tried.returncode == 0 else "not in this kernel"


def _programs(*names: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        missing = [name for name in names if shutil.which(name, path=path) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    return probe


def cc() -> str | None:
    """A C program that includes <linux/fuse.h> compiles."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return "no cc"
    source = "#include <stddef.h>\n#include <linux/fuse.h>\nint main(void) { return 0; }\n"
    command = [compiler, "-x", "c", "-fsyntax-only", "-"]
    tried = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else tried.stderr.splitlines()[0]


def btf() -> str | None:
    """The kernel shows its types."""
    return None if Path("/sys/kernel/btf/vmlinux").exists() else "not in this kernel"


def sync_init() -> str | None:
    """The device takes FUSE_DEV_IOC_SYNC_INIT."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror
    try:
        fcntl.ioctl(fd, IOC_SYNC_INIT)
    except OSError as error:
        return "not in this kernel" if error.errno == errno.ENOTTY else error.strerror
    finally:
        os.close(fd)
    return None


def fuservicemount3() -> str | None:
    """The variable names a program that can be run."""
    path = os.environ.get("FUSERVICEMOUNT3")
    if not path:
        return "FUSERVICEMOUNT3 is not set"
    return None if os.access(path, os.X_OK) else f"{path} cannot be executed"


def landlock() -> str | None:
    """The kernel says which version of Landlock it has."""
    try:
        abi_version()
    except OSError as error:
        return error.strerror
    return None


def user_namespaces() -> str | None:
    """A user namespace can be made, by an ordinary user as well."""
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = ["unshare", "--user", "true"]
    tried = subprocess.run(
        command if root() is not None else become + command,
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else tried.stderr.strip() or "unshare failed"


def memory_cgroup() -> str | None:
    """A control group with a limit on memory can be made."""
    from tests.support.memorycgroup import memory_cgroup as a_group

    try:
        with a_group(1 << 24):
            return None
    except OSError as error:
        return error.strerror


PROBES: dict[str, Callable[[], str | None]] = {
    "root": root,
    "fuse": fuse,
    "fusermount3": fusermount3,
    "ordinary_user": ordinary_user,
    "all_processes": all_processes,
    "loop": loop,
    "memory_cgroup": memory_cgroup,
    "kernel_ext4": _kernel("ext4"),
    "kernel_xfs": _kernel("xfs"),
    "kernel_btrfs": _kernel("btrfs"),
    "kernel_quota": kernel_quota,
    "e2fsprogs": _programs("mke2fs", "debugfs", "dumpe2fs", "e2fsck"),
    "mkfs_xfs": _programs("mkfs.xfs"),
    "mkfs_btrfs": _programs("mkfs.btrfs"),
    "partx": _programs("partx"),
    "acl": _programs("setfacl", "getfacl"),
    "attr": _programs("setfattr", "getfattr"),
    "cc": cc,
    "bpftool": _programs("bpftool"),
    "btf": btf,
    "fuse2fs": _programs("fuse2fs"),
    "sync_init": sync_init,
    "landlock": landlock,
    "user_namespaces": user_namespaces,
    "systemd": _programs("systemd-analyze", "systemd-socket-activate"),
    "groff": _programs("groff"),
    "fuservicemount3": fuservicemount3,
}
