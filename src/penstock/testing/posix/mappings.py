# SPDX-License-Identifier: Apache-2.0
"""Files mapped into memory."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

from penstock.testing.posix.calls import opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, holds

PAGE = mmap.PAGESIZE
SHARED = mmap.MAP_SHARED
PRIVATE = mmap.MAP_PRIVATE


@case()
def mapping_shows_the_file(root: Path) -> None:
    """A mapping shows the file's bytes."""
    data = bytes(range(256)) * 64
    (root / "file").write_bytes(data)
    with opened(root / "file") as fd, mmap.mmap(fd, 0, SHARED, mmap.PROT_READ) as view:
        equal(len(view), len(data))
        holds(view[:] == data, "the same bytes")


@case()
def mapping_writes_the_file(root: Path) -> None:
    """What is stored into a shared mapping is read at once, and still there after closing."""
    (root / "file").write_bytes(bytes(3 * PAGE))
    with opened(root / "file", os.O_RDWR) as fd:
        with mmap.mmap(fd, 0, SHARED) as view:
            view[PAGE - 2 : PAGE + 2] = b"abcd"
            equal(os.pread(fd, 4, PAGE - 2), b"abcd")
            view.flush()
        os.fsync(fd)
    equal((root / "file").read_bytes(), bytes(PAGE - 2) + b"abcd" + bytes(2 * PAGE - 2))


@case()
def mapping_sees_writes(root: Path) -> None:
    """What is written through a descriptor, by another process too, is seen in a mapping."""
    (root / "file").write_bytes(b"." * PAGE)
    with (
        Peer() as peer,
        opened(root / "file", os.O_RDWR) as fd,
        mmap.mmap(fd, 0, SHARED) as view,
    ):
        equal(view[:3], b"...")
        os.pwrite(fd, b"abc", 0)
        equal(view[:3], b"abc")
        other = peer.call("open", root / "file", os.O_RDWR)
        peer.call("write", other, "def", 0)
        equal(view[:3], b"def")
        view[:3] = b"ghi"
        equal(peer.call("read", other, 3, 0), "ghi")


@case()
def private_mapping_keeps_to_itself(root: Path) -> None:
    """What is stored into a private mapping never reaches the file."""
    (root / "file").write_bytes(b"." * PAGE)
    with opened(root / "file") as fd:
        with mmap.mmap(fd, 0, PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
            view[:3] = b"abc"
            equal(os.pread(fd, 3, 0), b"...")
        equal(os.pread(fd, 3, 0), b"...")


@case()
def mapping_outlives_descriptor_and_name(root: Path) -> None:
    """A mapping works on when the descriptor is closed and the file removed."""
    (root / "file").write_bytes(b"x" * PAGE)
    with opened(root / "file", os.O_RDWR) as fd:
        view = mmap.mmap(fd, 0, SHARED)
    with view:
        os.unlink(root / "file")
        view[:3] = b"abc"
        equal(view[:5], b"abcxx")


@case()
def mapping_of_a_hole(root: Path) -> None:
    """A hole reads as zeros through a mapping and is filled by storing into it."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 16 * PAGE)
        with mmap.mmap(fd, 0, SHARED) as view:
            equal(view[8 * PAGE : 8 * PAGE + 4], bytes(4))
            view[8 * PAGE] = 65
            view.flush()
        equal(os.pread(fd, 3, 8 * PAGE - 1), b"\0A\0")
        equal(os.fstat(fd).st_size, 16 * PAGE)


@case()
def mapping_grows_with_the_file(root: Path) -> None:
    """After the file is made longer, a new mapping covers the new part, with zeros."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 10)
        with mmap.mmap(fd, 0, SHARED) as view:
            view[:1] = b"y"
        os.ftruncate(fd, 2 * PAGE)
        with mmap.mmap(fd, 0, SHARED) as view:
            equal(view[:12], b"y" + b"x" * 9 + bytes(2))
            equal(len(view), 2 * PAGE)


@case()
def storing_past_the_end_of_the_file(root: Path) -> None:
    """What is stored between the end of the file and the end of its page leaves its size."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, PAGE)
        with mmap.mmap(fd, PAGE, SHARED) as view:
            os.ftruncate(fd, 10)
            view[5:20] = b"z" * 15
            view.flush()
        equal(os.fstat(fd).st_size, 10)
        equal(os.pread(fd, 30, 0), bytes(5) + b"z" * 5)


@case()
def program_can_be_run(root: Path) -> None:
    """A script with execute permission runs."""
    script = root / "script"
    script.write_text("#!/bin/sh\necho it runs\n", encoding="ascii")
    script.chmod(0o755)
    done = subprocess.run([script], capture_output=True, check=False)
    equal((done.returncode, done.stdout), (0, b"it runs\n"))
