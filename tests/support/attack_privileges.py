# SPDX-License-Identifier: Apache-2.0
"""Attempts to become somebody else, to gain rights, and to use rights."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable

from tests.support.attacks import STRANGER, Facts, Held, call, expect, raw, section

__all__: list[str] = []

attempt = section("Becoming somebody else")

_NOBODY = 65534
_CAPABILITY_VERSION = 0x2008_0522
_CLONE_NEWNS = 0x0002_0000
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAP_AMBIENT = 47
_CAP_NET_RAW = 13


@attempt("setresuid", by="identity seccomp")
def become_root(held: Held) -> None:
    """Sets its user to root."""
    os.setresuid(0, 0, 0)


@attempt("setresuid", by="namespaces identity capabilities seccomp")
def become_another_user(held: Held) -> None:
    """Sets its user to one that is neither root nor nobody."""
    os.setresuid(STRANGER, STRANGER, STRANGER)


@attempt("setgroups", by="identity capabilities seccomp")
def join_groups(held: Held) -> None:
    """Joins the group of root."""
    os.setgroups([0])


@attempt("capset prctl", by="identity capabilities seccomp")
def make_a_capability_last(held: Held) -> None:
    """Makes a capability survive execve (ambient)."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    call("capget", ctypes.c_char_p(header), data)
    words = list(struct.unpack("<6I", data.raw))
    words[2] |= 1 << _CAP_NET_RAW
    call("capset", ctypes.c_char_p(header), struct.pack("<6I", *words))
    call("prctl", _PR_CAP_AMBIENT, *(ctypes.c_ulong(n) for n in (2, _CAP_NET_RAW, 0, 0)))


@attempt("prctl", by="seccomp")
def make_itself_readable(held: Held) -> None:
    """Makes its memory dumpable, for others to read."""
    call("prctl", _PR_SET_DUMPABLE, *(ctypes.c_ulong(n) for n in (1, 0, 0, 0)))


@attempt("prctl", by="seccomp")
def outlive_the_broker(held: Held) -> None:
    """Has the kernel not kill it when the broker dies."""
    call("prctl", _PR_SET_PDEATHSIG, *(ctypes.c_ulong(n) for n in (0, 0, 0, 0)))


@attempt("setsid", by="seccomp")
def leave_the_session(held: Held) -> None:
    """Becomes leader of a session of its own."""
    os.setsid()


attempt = section("Gaining rights by executing a program")


def _what_a_child_writes(held: Held, run: Callable[[], None]) -> bytes:
    """What a child process writes to its standard output."""
    reading, writing = held.pipe
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writing, 1)
            run()
        finally:
            os._exit(99)
    os.waitpid(pid, 0)
    os.write(writing, b"\n")
    return os.read(reading, 64).strip()


def _as_nobody(held: Held, run: Callable[[], None]) -> bytes:
    """The same of a child without rights, who executes something that has more."""

    def child() -> None:
        if os.getuid() != _NOBODY:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        run()

    return _what_a_child_writes(held, child)


def _execute(held: Held, *words: str) -> Callable[[], None]:
    return lambda: os.execv(held.facts.tool(words[0]), words)  # noqa: S606 - that is the attack


@attempt("execve", by="root landlock no_new_privs seccomp")
def run_a_set_user_id_program(held: Held) -> None:
    """As nobody, executes a set-user-ID program of root."""
    expect(_as_nobody(held, _execute(held, "set-uid", "-u")) == b"0", "not root")


@attempt("execve", by="root landlock no_new_privs seccomp")
def run_a_set_group_id_program(held: Held) -> None:
    """As nobody, executes a set-group-ID program of root's group."""
    expect(_as_nobody(held, _execute(held, "set-gid", "-g")) == b"0", "not root's group")


@attempt("execve", by="namespaces root landlock no_new_privs seccomp")
def run_a_program_of_another_user(held: Held) -> None:
    """As nobody, executes a set-user-ID program of another user."""
    said = _as_nobody(held, _execute(held, "set-uid-stranger", "-u"))
    expect(said == str(STRANGER).encode(), "not that user")


@attempt("execve", by="root landlock no_new_privs seccomp")
def run_a_program_with_capabilities(held: Held) -> None:
    """As nobody, executes a program whose file has CAP_DAC_OVERRIDE."""
    said = _as_nobody(held, _execute(held, "file-capability", held.facts.tool("secret")))
    expect(said == b"secret", "the secret was not read")


@attempt("execve", by="root landlock no_new_privs seccomp")
def run_a_script_of_a_set_user_id_program(held: Held) -> None:
    """As nobody, executes a script whose interpreter is a set-user-ID program of root."""
    said = _as_nobody(held, _execute(held, "script"))
    expect(said.startswith(b"secret"), "the secret was not read")


@attempt("openat execveat", by="root landlock no_new_privs seccomp")
def run_a_set_user_id_program_by_descriptor(held: Held) -> None:
    """As nobody, executes a set-user-ID program of root through a descriptor."""

    def run() -> None:
        fd = os.open(held.facts.tool("set-uid"), os.O_PATH | os.O_CLOEXEC)
        os.execve(fd, ["set-uid", "-u"], {})  # noqa: S606 - that is the attack

    expect(_as_nobody(held, run) == b"0", "not root")


@attempt("capset execve", by="identity root landlock capabilities no_new_privs seccomp")
def gain_capabilities_by_executing_as_root(held: Held) -> None:
    """Without capabilities but as root, executes a program: root gets all of them again."""

    def run() -> None:
        header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
        call("capset", ctypes.c_char_p(header), bytes(24))
        os.execv(held.facts.tool("cat"), ["cat", held.facts.foreign])  # noqa: S606 - as above

    said = _what_a_child_writes(held, run)
    expect(said == b"foreign", "the file of another user was not read")


attempt = section("Rights of root")


@attempt("mount", by="namespaces identity root landlock capabilities seccomp",
         confirm=lambda facts: os.path.ismount(facts.shared))  # fmt: skip
def mount_a_filesystem(held: Held) -> None:
    """Mounts a tmpfs over a folder of the host."""
    folder = held.facts.shared.encode()
    call("mount", b"none", folder, b"tmpfs", ctypes.c_ulong(0), b"size=4k")


@attempt("umount2", by="namespaces identity root landlock capabilities seccomp", needs="mount",
         confirm=lambda facts: not os.path.ismount(f"{facts.folder}/mounted"))  # fmt: skip
def unmount_a_filesystem(held: Held) -> None:
    """Takes away a mount of the host."""
    call("umount2", f"{held.facts.folder}/mounted".encode(), 2)


@attempt("fsopen", by="identity capabilities seccomp")
def begin_a_mount(held: Held) -> None:
    """Makes a context for a new filesystem."""
    raw("fsopen", ctypes.c_char_p(b"tmpfs"), 1)


@attempt("open_tree", by="identity root capabilities seccomp")
def copy_a_mount(held: Held) -> None:
    """Takes a copy of the host's mounts."""
    raw("open_tree", -100, ctypes.c_char_p(held.facts.folder.encode()), 1 | os.O_CLOEXEC)


@attempt("unshare", by="identity capabilities seccomp")
def make_a_mount_namespace(held: Held) -> None:
    """Makes a mount namespace of its own, to rearrange what it sees."""
    call("unshare", _CLONE_NEWNS)


@attempt("unshare", by="root seccomp")
def make_a_user_namespace(held: Held) -> None:
    """Makes a user namespace of its own, in which it is root."""
    call("unshare", _CLONE_NEWUSER)


@attempt("pidfd_open setns", by="namespaces identity landlock capabilities seccomp")
def enter_the_namespaces_of_the_broker(held: Held) -> None:
    """Enters the network of the broker."""
    call("setns", os.pidfd_open(held.facts.broker), _CLONE_NEWNET)


@attempt("chroot", by="identity root capabilities seccomp")
def change_the_root(held: Held) -> None:
    """Makes a folder of the host its root."""
    os.chroot(held.facts.folder)


def _name_is_changed(facts: Facts) -> bool:
    return os.uname().nodename == f"attacked-{facts.nonce}"


@attempt("sethostname", by="namespaces identity capabilities seccomp", confirm=_name_is_changed)
def rename_the_host(held: Held) -> None:
    """Sets the host's name."""
    socket.sethostname(f"attacked-{held.facts.nonce}")


@attempt("settimeofday", by="namespaces identity capabilities seccomp")
def set_the_clock(held: Held) -> None:
    """Sets the kernel's time zone (to the one that it has)."""
    zone = ctypes.create_string_buffer(8)
    call("gettimeofday", None, zone)
    call("settimeofday", None, zone)


@attempt("setpriority", by="namespaces identity capabilities seccomp")
def take_a_high_priority(held: Held) -> None:
    """Gives itself a high priority."""
    os.setpriority(os.PRIO_PROCESS, 0, -10)


@attempt("sched_setscheduler", by="namespaces identity capabilities seccomp")
def become_a_realtime_process(held: Held) -> None:
    """Becomes a process before which all others wait."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    finally:
        if os.sched_getscheduler(0) == os.SCHED_FIFO:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@attempt("ioprio_set", by="namespaces identity capabilities seccomp")
def read_before_all_others(held: Held) -> None:
    """Gives its disk requests the realtime class."""
    raw("ioprio_set", 1, 0, 1 << 13)


@attempt("setrlimit", by="seccomp")
def raise_its_limits(held: Held) -> None:
    """Raises the soft limits to the hard ones."""
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_STACK):
        resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)


@attempt("mlockall", by="seccomp")
def lock_its_memory(held: Held) -> None:
    """Has all of its memory kept from being swapped out."""
    call("mlockall", 1)


@attempt("setitimer", by="seccomp")
def start_a_timer(held: Held) -> None:
    """Has the kernel send it signals."""
    signal.setitimer(signal.ITIMER_REAL, 1000)
