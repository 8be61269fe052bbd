# SPDX-License-Identifier: Apache-2.0
"""Attempts on parts of the kernel that have had many holes, and on what it tells."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from tests.support.attacks import Held, call, expect, raw, section

__all__: list[str] = []

attempt = section("The kernel")

_NOT_THERE = (errno.ENOSYS,)
_SWITCHED_OFF = (errno.ENOSYS, errno.EPERM)


@attempt("io_uring_setup", by="seccomp", absent=_SWITCHED_OFF)
def make_an_io_uring(held: Held) -> None:
    """Makes a ring, through which calls go past every filter."""
    os.close(raw("io_uring_setup", 4, ctypes.create_string_buffer(120)))


@attempt("io_setup", by="seccomp", absent=_NOT_THERE)
def make_an_aio_context(held: Held) -> None:
    """Makes a context of the older asynchronous interface."""
    raw("io_setup", 1, ctypes.byref(ctypes.c_ulong(0)))


_EXIT_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)


@attempt("bpf", by="namespaces identity capabilities seccomp", absent=_NOT_THERE)
def load_a_kernel_program(held: Held) -> None:
    """Loads a BPF program of the kind that reads kernel memory."""
    code = ctypes.create_string_buffer(_EXIT_0)
    licence = ctypes.create_string_buffer(b"GPL")
    data = struct.pack(
        "<IIQQIIQI", 5, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0
    ).ljust(128, b"\0")
    os.close(raw("bpf", 5, ctypes.c_char_p(data), len(data)))


@attempt("perf_event_open", by="namespaces identity capabilities seccomp", absent=_NOT_THERE)
def watch_a_processor(held: Held) -> None:
    """Counts what all processes do on a CPU."""
    attributes = struct.pack("<IIQ", 1, 128, 0).ljust(128, b"\0")
    os.close(raw("perf_event_open", ctypes.c_char_p(attributes), -1, 0, -1, 0))


@attempt("add_key", by="seccomp", absent=_NOT_THERE)
def keep_a_key(held: Held) -> None:
    """Keeps bytes in a keyring of the kernel."""
    raw("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"attack"), ctypes.c_char_p(b"x"),
        1, -2)  # fmt: skip


@attempt("keyctl", by="seccomp", absent=_NOT_THERE)
def take_a_new_keyring(held: Held) -> None:
    """Takes a session keyring of its own."""
    raw("keyctl", 1, None)


@attempt("userfaultfd", by="seccomp", absent=_NOT_THERE)
def handle_page_faults(held: Held) -> None:
    """Has page faults, also the kernel's, wait for itself."""
    os.close(raw("userfaultfd", os.O_CLOEXEC))


@attempt("memfd_create", by="seccomp")
def make_an_anonymous_file(held: Held) -> None:
    """Makes a file that has no name."""
    os.close(os.memfd_create("attack"))


@attempt("memfd_secret", by="seccomp", absent=_NOT_THERE)
def make_secret_memory(held: Held) -> None:
    """Makes memory that not even the kernel can read."""
    os.close(raw("memfd_secret", 0))


@attempt("fanotify_init", by="namespaces identity capabilities seccomp", absent=_NOT_THERE)
def judge_accesses_to_files(held: Held) -> None:
    """Has opens of files by others wait for its permission."""
    os.close(call("fanotify_init", 4, os.O_RDONLY))


_ALLOW = struct.pack("<HBBI", 6, 0, 0, 0x7FFF_0000)


@attempt("seccomp", by="identity capabilities seccomp")
def filter_calls_of_its_own(held: Held) -> None:
    """Installs a seccomp filter with itself as its listener."""
    code = ctypes.create_string_buffer(_ALLOW)
    data = struct.pack("<H6xQ", 1, ctypes.addressof(code))
    os.close(raw("seccomp", 1, 8, ctypes.c_char_p(data)))


@attempt("seccomp", by="identity capabilities", later=True)
def filter_the_calls_of_all_threads(held: Held) -> None:
    """Installs a filter in all threads, once all threads that serve run."""
    code = ctypes.create_string_buffer(_ALLOW)
    data = struct.pack("<H6xQ", 1, ctypes.addressof(code))
    raw("seccomp", 1, 1, ctypes.c_char_p(data))


@attempt("shmget shmat", by="namespaces identity seccomp")
def attach_the_memory_of_the_broker(held: Held) -> None:
    """Attaches a shared memory segment of the broker."""
    segment = call("shmget", held.facts.shm, ctypes.c_size_t(0), 0)
    call("shmat", segment, None, 0)


@attempt("shmget", by="seccomp")
def make_shared_memory(held: Held) -> None:
    """Makes a shared memory segment that outlives it."""
    call("shmctl", call("shmget", 0, ctypes.c_size_t(4096), 0o1600), 0, None)


@attempt("msgget", by="seccomp")
def make_a_message_queue(held: Held) -> None:
    """Makes a System V message queue that outlives it."""
    call("msgctl", call("msgget", 0, 0o1600), 0, None)


@attempt("semget", by="seccomp")
def make_semaphores(held: Held) -> None:
    """Makes semaphores that outlive it."""
    call("semctl", call("semget", 0, 1, 0o1600), 0, 0, None)


@attempt("mq_open", by="namespaces identity landlock seccomp", absent=_NOT_THERE)
def open_the_queue_of_the_broker(held: Held) -> None:
    """Opens a POSIX message queue of the broker."""
    call("mq_open", held.facts.queue.encode(), os.O_RDWR)


@attempt("syslog", by="seccomp")
def read_the_log_of_the_kernel(held: Held) -> None:
    """Reads the kernel's messages."""
    call("klogctl", 3, ctypes.create_string_buffer(4096), 4096)


@attempt("sysinfo", by="seccomp")
def learn_about_the_memory_of_the_host(held: Held) -> None:
    """Asks for the host's memory, load and uptime."""
    call("sysinfo", ctypes.create_string_buffer(256))


@attempt("uname", by="seccomp")
def learn_about_the_kernel(held: Held) -> None:
    """Asks for the kernel's version and the host's name."""
    expect(os.uname().nodename, "no name")


@attempt("quotactl", by="seccomp", absent=_NOT_THERE)
def write_quotas_back(held: Held) -> None:
    """Has all quotas written back."""
    call("quotactl", 0x8000_0100 - (1 << 32), None, 0, None)


@attempt("timer_create", by="seccomp")
def make_a_kernel_timer(held: Held) -> None:
    """Makes a timer in the kernel."""
    call("timer_create", 1, None, ctypes.byref(ctypes.c_void_p()))


@attempt("set_mempolicy", by="seccomp", absent=_NOT_THERE)
def choose_where_its_memory_lies(held: Held) -> None:
    """Sets its memory policy."""
    raw("set_mempolicy", 0, None, 0)


@attempt("getrusage", by="seccomp")
def watch_its_children(held: Held) -> None:
    """Asks what its children have used."""
    call("getrusage", -1, ctypes.create_string_buffer(256))
