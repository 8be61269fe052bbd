# SPDX-License-Identifier: Apache-2.0
"""Attempts to start processes, to run code, and to reach other processes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import struct

from tests.support.attacks import Facts, Held, address, call, dies, expect, raw, section

__all__ = ["CODE", "program"]

attempt = section("New processes and new code")

CODE = {
    "x86_64": bytes.fromhex("b82a000000c3"),  # mov eax, 42; ret
    "aarch64": bytes.fromhex("40058052c0035fd6"),  # mov w0, #42; ret
}[platform.machine()]
_EXIT = {
    "x86_64": bytes.fromhex("b83c00000031ff0f05"),  # mov eax, 60; xor edi, edi; syscall
    "aarch64": bytes.fromhex("a80b8052000080d2010000d4"),  # mov w8, 93; mov x0, 0; svc 0
}[platform.machine()]
_MACHINE = {"x86_64": 62, "aarch64": 183}[platform.machine()]
_AT_EMPTY_PATH = 0x1000
_PAGE = mmap.PAGESIZE


def program() -> bytes:
    """The smallest program: ends with status 0."""
    where = 0x40_0000 + 64 + 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, _MACHINE, 1, where, 64, 0, 0, 64, 56, 1,
        0, 0, 0,
    )  # fmt: skip
    size = 64 + 56 + len(_EXIT)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x40_0000, 0x40_0000, size, size, 0x1_0000)
    return header + segment + _EXIT


def _ended_well(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    expect(status == 0, f"the child ended with status {status:#x}")


@attempt("clone", by="seccomp")
def fork(held: Held) -> None:
    """Forks."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    _ended_well(pid)


@attempt("clone execve", by="root landlock seccomp")
def start_a_program(held: Held) -> None:
    """Starts a program as posix_spawn does."""
    _ended_well(os.posix_spawn(held.facts.tool("true"), ["true"], {}))


@attempt("clone3", by="seccomp")
def make_a_process_with_clone3(held: Held) -> None:
    """Makes a child with the newer call, whose flags no filter can see."""
    arguments = struct.pack("<8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = raw("clone3", ctypes.c_char_p(arguments), len(arguments))
    if pid == 0:
        os._exit(0)
    _ended_well(pid)


@attempt("clone", by="seccomp")
def make_a_process_with_clone(held: Held) -> None:
    """Makes a child by clone, with flags of its own choice."""
    pid = raw("clone", signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    _ended_well(pid)


@attempt("execve", by="root landlock seccomp")
def execute_a_program(held: Held) -> None:
    """Becomes a program of the host."""
    # It ends with status 0, which is success.
    os.execv(held.facts.tool("true"), ["true"])  # noqa: S606 - that is the attack


@attempt("memfd_create execveat", by="seccomp")
def execute_a_program_from_memory(held: Held) -> None:
    """Becomes a program that it has written into an anonymous file."""
    fd = os.memfd_create("attack")
    os.write(fd, program())
    empty = (ctypes.c_char_p * 1)(None)
    raw("execveat", fd, ctypes.c_char_p(b""), empty, empty, _AT_EMPTY_PATH)


@attempt("execveat", by="identity landlock seccomp")
def execute_the_image(held: Held) -> None:
    """Becomes the program that the image's bytes are."""
    empty = (ctypes.c_char_p * 1)(None)
    raw("execveat", held.image, ctypes.c_char_p(b""), empty, empty, _AT_EMPTY_PATH)


def _run(where: int) -> None:
    expect(ctypes.CFUNCTYPE(ctypes.c_int)(where)() == 42, "the code did not run")


def _map(size: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    return address(
        "mmap", None, ctypes.c_size_t(size), protection, flags, fd, ctypes.c_long(offset)
    )


_RW = mmap.PROT_READ | mmap.PROT_WRITE
_RX = mmap.PROT_READ | mmap.PROT_EXEC
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@attempt("mprotect", by="seccomp")
def make_code_of_its_own_executable(held: Held) -> None:
    """Writes machine code into memory, makes it executable and runs it."""
    where = _map(_PAGE, _RW, _ANONYMOUS)
    ctypes.memmove(where, CODE, len(CODE))
    call("mprotect", ctypes.c_void_p(where), ctypes.c_size_t(_PAGE), _RX)
    _run(where)


@attempt("mmap", by="seccomp")
def map_writable_executable_memory(held: Held) -> None:
    """Maps memory that can be written and executed, and runs code there."""
    where = _map(_PAGE, _RW | mmap.PROT_EXEC, _ANONYMOUS)
    ctypes.memmove(where, CODE, len(CODE))
    _run(where)


@attempt("mmap", by="seccomp")
def map_code_from_the_image(held: Held) -> None:
    """Maps the held image executable and runs its bytes."""
    size = os.lseek(held.image, 0, os.SEEK_END)
    where = _map(size, _RX, mmap.MAP_PRIVATE, held.image)
    _run(where + size - _PAGE)


@attempt("personality", by="seccomp")
def switch_off_address_randomisation(held: Held) -> None:
    """Asks that its children be laid out without randomness."""
    call("personality", ctypes.c_ulong(0x004_0000))


attempt = section("Other processes")


@attempt("kill", by="namespaces identity landlock seccomp", needs="victims",
         confirm=dies("victim"), landlock=6)  # fmt: skip
def kill_a_process_of_root(held: Held) -> None:
    """Kills a process of root."""
    os.kill(held.facts.victim, signal.SIGKILL)


@attempt("kill", by="namespaces identity landlock capabilities seccomp", needs="victims",
         confirm=dies("stranger"), landlock=6)  # fmt: skip
def kill_a_process_of_another_user(held: Held) -> None:
    """Kills a process of another user."""
    os.kill(held.facts.stranger, signal.SIGKILL)


@attempt("tgkill", by="namespaces identity landlock seccomp", needs="victims",
         confirm=dies("victim"), landlock=6)  # fmt: skip
def kill_a_thread(held: Held) -> None:
    """Kills a process of root by one of its threads."""
    raw("tgkill", held.facts.victim, held.facts.victim, signal.SIGKILL)


@attempt("pidfd_open pidfd_send_signal", by="namespaces identity landlock seccomp",
         needs="victims", confirm=dies("victim"), landlock=6)  # fmt: skip
def kill_by_process_descriptor(held: Held) -> None:
    """Opens a process of root and kills it."""
    signal.pidfd_send_signal(os.pidfd_open(held.facts.victim), signal.SIGKILL)


@attempt("rt_sigqueueinfo", by="namespaces identity landlock seccomp", needs="victims",
         confirm=dies("victim"), landlock=6)  # fmt: skip
def queue_a_signal(held: Held) -> None:
    """Sends a process of root a signal with data."""
    call("sigqueue", held.facts.victim, signal.SIGTERM, ctypes.c_void_p(7))


@attempt("kill", by="namespaces identity landlock seccomp", landlock=6)
def find_out_whether_the_broker_lives(held: Held) -> None:
    """Sends the broker signal 0."""
    os.kill(held.facts.broker, 0)


_PTRACE_SEIZE = 0x4206


@attempt("ptrace", by="namespaces identity landlock capabilities seccomp", needs="victims")
def trace_a_process_of_root(held: Held) -> None:
    """Becomes the tracer of a process of root."""
    call("ptrace", _PTRACE_SEIZE, held.facts.victim, None, None)


@attempt("process_vm_readv", by="namespaces identity landlock capabilities seccomp")
def read_the_memory_of_the_broker(held: Held) -> None:
    """Copies bytes out of the broker's memory."""
    buffer = ctypes.create_string_buffer(16)
    _copy("process_vm_readv", held, buffer, held.facts.broker_text)
    expect(buffer.raw == b"broker's secret\0", "other bytes")


def _copy(name: str, held: Held, buffer: ctypes.Array[ctypes.c_char], there: int) -> None:
    size = ctypes.sizeof(buffer)
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
    theirs = (ctypes.c_size_t * 2)(there, size)
    one = ctypes.c_ulong(1)
    call(name, held.facts.broker, ours, one, theirs, one, ctypes.c_ulong(0))


def _scratch_is_written(facts: Facts) -> bool:
    return ctypes.c_uint64.from_address(facts.broker_scratch).value == facts.nonce


@attempt("process_vm_writev", by="namespaces identity landlock capabilities seccomp",
         confirm=_scratch_is_written)  # fmt: skip
def write_the_memory_of_the_broker(held: Held) -> None:
    """Copies bytes into the broker's memory."""
    buffer = ctypes.create_string_buffer(struct.pack("<Q", held.facts.nonce), 8)
    _copy("process_vm_writev", held, buffer, held.facts.broker_scratch)


@attempt("openat pwrite64", by="namespaces identity root landlock capabilities seccomp",
         confirm=_scratch_is_written)  # fmt: skip
def write_the_memory_of_the_broker_by_its_file(held: Held) -> None:
    """Writes into the broker's memory through /proc/PID/mem."""
    fd = os.open(f"/proc/{held.facts.broker}/mem", os.O_WRONLY)
    os.pwrite(fd, struct.pack("<Q", held.facts.nonce), held.facts.broker_scratch)


@attempt("pidfd_open pidfd_getfd", by="namespaces identity landlock capabilities seccomp")
def steal_a_descriptor_of_the_broker(held: Held) -> None:
    """Takes a copy of an open file of the broker."""
    pidfd = os.pidfd_open(held.facts.broker)
    fd = raw("pidfd_getfd", pidfd, held.facts.broker_fd, 0)
    expect(os.pread(fd, 6, 0) == b"secret", "another file")


@attempt("setpriority", by="namespaces identity capabilities seccomp", needs="victims",
         confirm=lambda facts: os.getpriority(os.PRIO_PROCESS, facts.victim) == 19)  # fmt: skip
def starve_a_process_of_root(held: Held) -> None:
    """Gives a process of root the lowest priority."""
    os.setpriority(os.PRIO_PROCESS, held.facts.victim, 19)


@attempt("sched_setaffinity", by="namespaces identity capabilities seccomp", needs="victims")
def pin_a_process_of_root(held: Held) -> None:
    """Ties a process of root to one CPU."""
    os.sched_setaffinity(held.facts.victim, {min(os.sched_getaffinity(0))})


@attempt("prlimit64", by="namespaces identity seccomp", needs="victims")
def limit_a_process_of_root(held: Held) -> None:
    """Takes from a process of root the right to open files."""
    resource.prlimit(held.facts.victim, resource.RLIMIT_NOFILE, (3, 3))


@attempt("kcmp", by="namespaces identity landlock capabilities seccomp", absent=(errno.ENOSYS,))
def compare_with_the_broker(held: Held) -> None:
    """Asks whether the broker and it share an open file (their two ends of a socket are not)."""
    raw("kcmp", os.getpid(), held.facts.broker, 0, held.broker, held.facts.broker_fd)
