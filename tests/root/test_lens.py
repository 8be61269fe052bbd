# SPDX-License-Identifier: Apache-2.0
"""The lens, beside the image that it shows: what EROFS makes of extents, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.broker import lens as module
from penstock.broker.lens import MAX_BYTES, MAX_CHUNKS, Lens, LensFile, block_bits_of
from penstock.broker.protocol import Extent
from penstock.sys.loop import attach_loop
from tests.support.hostileregistry import chunks
from tests.support.leaks import loop_devices

SIZE = 24 << 20
PAGE = 4096
MANY = 3000


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes of which no two blocks are alike."""
    path = tmp_path_factory.mktemp("lens") / "image"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    opened = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    yield opened
    os.close(opened)


# What lies where


class Layout(NamedTuple):
    """A file to be."""

    length: int
    extents: tuple[Extent, ...]


def a_layout(draw: random.Random, block: int, offset: int, length: int) -> Layout:
    """Extents with holes between some of them, in a window of the image; the last may be cut."""
    count, most = draw.choice([(0, 0), (1, 6), (2, 6), (10, 3), (100, 1), (MANY, 0)])
    unit = block << draw.randint(0, most)
    position = 0
    extents = []
    for _ in range(count):
        position += unit * draw.choice([0, 0, 0, 1, 2, 9])
        size = unit * draw.choice([1, 1, 2, 5] if count > 2 else [1, 7, 64])
        size = min(size, length // block * block)
        address = offset + draw.randrange((length - size) // block + 1) * block
        extents.append(Extent(position, size, address))
        position += size
    if extents and draw.random() < 0.5:
        position -= draw.randrange(1, block)
        last = extents[-1]
        if draw.random() < 0.5:  # either way of saying where it ends
            extents[-1] = last._replace(length=position - last.offset)
    else:
        position += draw.choice([0, 1, 511, 5 * block + 3, 1 << 20])
    return Layout(position, tuple(extents))


@functools.cache
def _bytes_of(image: Path) -> bytes:
    return image.read_bytes()


def expected(image: Path, layout: Layout) -> bytes:
    """What the file holds."""
    content = _bytes_of(image)
    data = bytearray(layout.length)
    for offset, size, address in layout.extents:
        size = min(size, layout.length - offset)
        data[offset : offset + size] = content[address : address + size]
    return bytes(data)


def content(fd: int) -> bytes:
    """All of a file, read."""
    found = bytearray()
    while part := os.pread(fd, 1 << 20, len(found)):
        found += part
    return bytes(found)


def mapped(fd: int) -> bytes:
    """All of a file, by way of its mapping."""
    length = os.fstat(fd).st_size
    if not length:
        return b""
    with mmap.mmap(fd, length, prot=mmap.PROT_READ) as memory:
        return bytes(memory)


@pytest.mark.parametrize("block", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("offset", [0, 512 * 63, PAGE * 5])
def test_files_hold_what_the_image_has(image: Path, fd: int, block: int, offset: int) -> None:
    """Read, mapped, in parts, and while others come and go."""
    draw = random.Random(block + offset)
    common = block | offset
    block = min(block, common & -common)
    length = SIZE - offset - draw.choice([0, block])
    with Lens(fd, offset, length, block) as lens:
        kept: list[tuple[LensFile, bytes]] = []
        places = []
        for number in range(16):
            layout = a_layout(draw, block, offset, length)
            if chunks(layout.length, layout.extents, block) > MAX_CHUNKS:
                continue
            file = lens.put(*layout)
            places.append(file.place)
            wanted = expected(image, layout)
            assert os.fstat(file.fd).st_size == len(wanted)
            assert (mapped if number % 2 else content)(file.fd) == wanted
            for _ in range(10):
                at = draw.randrange(len(wanted) + 1)
                size = draw.choice([1, 100, PAGE, 70_000])
                assert os.pread(file.fd, size, at) == wanted[at : at + size]
            kept.append((file, wanted))
            if len(kept) > 4:
                gone, _ = kept.pop(draw.randrange(4))
                os.close(gone.fd)
                lens.forget(gone)
            other, same = draw.choice(kept)
            assert content(other.fd) == same
        assert places == sorted(set(places))
        for file, _ in kept:
            os.close(file.fd)


def test_files_that_are_mostly_holes(image: Path, fd: int) -> None:
    """Up to a tebibyte and more, with what there is at odd places."""
    data = image.read_bytes()
    with Lens(fd, 0, SIZE, PAGE) as lens:
        for bits in range(12, 63, 5):
            place = (1 << bits) - (1 << max(12, bits - 15))
            extents = (Extent(0, PAGE, PAGE), Extent(place, PAGE, 3 * PAGE))[bits == 12 :]
            length = place + 1000
            if chunks(length, extents, PAGE) > MAX_CHUNKS:
                with pytest.raises(OSError) as caught:
                    lens.put(length, extents)
                assert caught.value.errno == errno.EFBIG
                continue
            file = lens.put(length, extents)
            with os.fdopen(file.fd, "rb", buffering=0) as opened:
                assert os.fstat(file.fd).st_size == length
                opened.seek(place)
                assert opened.read(PAGE) == data[3 * PAGE : 3 * PAGE + 1000]
                opened.seek(place // 2 + PAGE)
                assert opened.read(PAGE).strip(b"\0") == b""
        empty = lens.put(1 << 40, ())
        assert os.pread(empty.fd, 10, (1 << 40) - 5) == bytes(5)
        os.close(empty.fd)


def test_all_of_a_large_file_in_one_piece(image: Path, fd: int) -> None:
    with Lens(fd, 0, SIZE, PAGE) as lens:
        file = lens.put(SIZE, (Extent(0, SIZE, 0),))
        assert file.size < 100
        assert content(file.fd) == image.read_bytes()
        os.close(file.fd)


def test_a_forgotten_file_is_not_served_again(image: Path, fd: int) -> None:
    """Two files of different size, one after the other, opened, mapped and closed in turn."""
    data = image.read_bytes()
    with Lens(fd, 0, SIZE, PAGE) as lens:
        for turn in range(30):
            size = PAGE * (1 + turn % 3)
            file = lens.put(size, (Extent(0, size, turn * PAGE),))
            assert mapped(file.fd) == data[turn * PAGE :][:size]
            os.close(file.fd)
            lens.forget(file)


def test_what_is_mapped_stays(image: Path, fd: int) -> None:
    """A file that is forgotten is read as long as somebody has a mapping of it; then it goes."""
    half = SIZE // 2
    data = image.read_bytes()
    with Lens(fd, 0, SIZE, PAGE) as lens:
        file = lens.put(SIZE, (Extent(0, half, half), Extent(half, half, 0)))
        with mmap.mmap(file.fd, SIZE, prot=mmap.PROT_READ) as memory:
            memory.madvise(mmap.MADV_RANDOM)
            os.close(file.fd)
            lens.forget(file)
            assert bytes(memory) == data[half:] + data[:half]
            assert lens._used == file.size
        other = lens.put(PAGE, (Extent(0, PAGE, 0),))
        os.close(other.fd)
        lens.forget(other)
        assert lens._used == 0


def used_blocks(lens: Lens) -> int:
    """What the files of a lens take of the disk."""
    return os.fstat(lens._meta).st_blocks * 512


def test_forgetting_gives_back_the_room(fd: int) -> None:
    with Lens(fd, 0, SIZE, PAGE) as lens:
        before = used_blocks(lens)
        border = (Extent(PAGE, PAGE, 0),)
        length = MAX_CHUNKS * PAGE
        files = [lens.put(length, border) for _ in range(20)]
        os.fsync(lens._meta)
        assert used_blocks(lens) > before + 20 * 8 * MAX_CHUNKS // 2
        for file in files:
            os.close(file.fd)
            lens.forget(file)
        os.fsync(lens._meta)
        assert used_blocks(lens) < before + (1 << 20)


def test_what_all_files_may_take(fd: int) -> None:
    """And room for others as soon as some have gone."""
    border = (Extent(PAGE, PAGE, 0),)
    length = MAX_CHUNKS * PAGE
    with Lens(fd, 0, SIZE, PAGE) as lens:
        files = []
        for _ in range(MAX_BYTES // (8 * MAX_CHUNKS) - 1):
            files.append(lens.put(length, border))
            os.close(files[-1].fd)
        with pytest.raises(OSError) as caught:
            lens.put(length, border)
        assert caught.value.errno == errno.ENFILE
        lens.forget(files[0])
        os.close(lens.put(length, border).fd)


# What is no file


NO_FILES: dict[str, tuple[int, Sequence[Extent], int]] = {
    "a length below 0": (-1, (), errno.EINVAL),
    "a length that no file has": (1 << 62, (), errno.EINVAL),
    "before the window": (PAGE, (Extent(0, PAGE, 0),), errno.EINVAL),
    "behind the window": (PAGE, (Extent(0, PAGE, SIZE - PAGE),), errno.EINVAL),
    "over the end of the window": (2 * PAGE, (Extent(0, 2 * PAGE, SIZE - 2 * PAGE),), errno.EINVAL),
    "far away": (PAGE, (Extent(0, PAGE, 1 << 62),), errno.EINVAL),
    "beyond any number": (PAGE, (Extent(0, PAGE, (1 << 64) - PAGE),), errno.EINVAL),
    "longer than anything": (1 << 40, (Extent(0, (1 << 64) - PAGE, PAGE),), errno.EINVAL),
    "no bytes": (PAGE, (Extent(0, 0, PAGE),), errno.EINVAL),
    "no whole block": (2 * PAGE, (Extent(0, 100, PAGE),), errno.EINVAL),
    "an odd address": (PAGE, (Extent(0, PAGE, PAGE + 512),), errno.EINVAL),
    "an odd offset": (2 * PAGE, (Extent(512, PAGE, PAGE),), errno.EINVAL),
    "twice": (2 * PAGE, (Extent(0, PAGE, PAGE),) * 2, errno.EINVAL),
    "one over the other": (
        4 * PAGE, (Extent(0, 2 * PAGE, PAGE), Extent(PAGE, PAGE, PAGE)), errno.EINVAL,
    ),
    "out of order": (
        4 * PAGE, (Extent(PAGE, PAGE, PAGE), Extent(0, PAGE, PAGE)), errno.EINVAL,
    ),
    "behind the end": (PAGE, (Extent(2 * PAGE, PAGE, PAGE),), errno.EINVAL),
    "far behind the end": (PAGE, (Extent(1 << 62, PAGE, PAGE),), errno.EINVAL),
    "of an empty file": (0, (Extent(0, PAGE, PAGE),), errno.EINVAL),
    "too many pieces": (MAX_CHUNKS * PAGE + 1, (Extent(PAGE, PAGE, PAGE),), errno.EFBIG),
    "a tebibyte in pages": (1 << 40, (Extent(PAGE, PAGE, PAGE),), errno.EFBIG),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file(image: Path, fd: int, name: str) -> None:
    """It is refused, and the lens goes on."""
    length, extents, code = NO_FILES[name]
    with Lens(fd, PAGE, SIZE - 2 * PAGE, PAGE) as lens:
        before = os.fstat(lens._meta).st_blocks
        with pytest.raises(OSError) as caught:
            lens.put(length, extents)
        assert caught.value.errno == code
        assert os.fstat(lens._meta).st_blocks == before
        file = lens.put(PAGE, (Extent(0, PAGE, PAGE),))
        assert content(file.fd) == image.read_bytes()[PAGE : 2 * PAGE]
        os.close(file.fd)


@pytest.mark.parametrize(
    ("offset", "length", "block", "bits"),
    [
        (0, 1 << 30, 4096, 12),
        (0, 1 << 30, 65536, 12),
        (0, 1 << 30, 1024, 10),
        (1 << 20, 1 << 30, 4096, 12),
        (63 * 512, 1 << 30, 4096, 9),
        (5 << 10, 1 << 30, 4096, 10),
        (0, (1 << 44) - 2 * 4096, 4096, 12),
    ],
)
def test_blocks_of_a_window(offset: int, length: int, block: int, bits: int) -> None:
    assert block_bits_of(offset, length, block) == bits


@pytest.mark.parametrize(
    ("offset", "length", "block", "code", "said"),
    [
        (100, 1 << 30, 4096, errno.EINVAL, "multiple of 512"),
        (0, 1 << 30, 256, errno.EINVAL, "multiple of 512"),
        (0, 1 << 44, 4096, errno.EFBIG, "over 16 TiB, with blocks of 4096"),
        (1 << 44, 1 << 20, 4096, errno.EFBIG, "over 16 TiB"),
        (512, 1 << 41, 4096, errno.EFBIG, "over 2 TiB, with blocks of 512"),
    ],
)
def test_windows_that_are_too_much(
    offset: int, length: int, block: int, code: int, said: str
) -> None:
    with pytest.raises(OSError, match=said) as caught:
        block_bits_of(offset, length, block)
    assert caught.value.errno == code


@pytest.mark.parametrize(("block", "end"), [(4096, (1 << 44) - (1 << 20)), (512, (1 << 41) - 1024)])
def test_as_large_as_can_be(tmp_path: Path, block: int, end: int) -> None:
    """Content in the last block that can be counted; with one more, the reason."""
    path = tmp_path / "large"
    offset = 0 if block == PAGE else 512
    with path.open("wb") as file:
        file.truncate(end)
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"the end!" * (block // 8), end - block)
        with Lens(file.fileno(), offset, end - offset, block) as lens:
            made = lens.put(block, (Extent(0, block, end - block),))
            assert content(made.fd) == b"the end!" * (block // 8)
            os.close(made.fd)
        with pytest.raises(OSError, match="the image is over") as caught:
            Lens(file.fileno(), offset, (1 << 44 if block == PAGE else 1 << 41), block)
        assert caught.value.errno == errno.EFBIG


# Where it lies


def copied(image: Path, path: Path) -> int:
    """A copy of the image, open for reading."""
    path.write_bytes(image.read_bytes())
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def on_a_device(image: Path, tmp_path: Path) -> int:
    source = copied(image, tmp_path / "copy")
    try:
        return attach_loop(source, block_size=512, writable=False)
    finally:
        os.close(source)


def on_tmpfs(image: Path, tmp_path: Path) -> int:
    """On a filesystem on which the lens's own file could not be."""
    path = Path(f"/dev/shm/penstock-{tmp_path.name}")
    try:
        return copied(image, path)
    finally:
        path.unlink()


def read_directly(fd: int, offset: int) -> bytes:
    """A page, past the page cache."""
    direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, PAGE) as aligned:
            assert os.preadv(direct, [aligned], offset) == PAGE
            return bytes(aligned)
    finally:
        os.close(direct)


@pytest.mark.requires("loop")
@pytest.mark.parametrize(
    ("place", "own"), [(on_a_device, "/var/tmp"), (on_tmpfs, "/var/tmp"), (on_tmpfs, "/dev/shm")]
)
@pytest.mark.parametrize("block", [512, 1024, 4096])
def test_on_loop_devices(
    image: Path,
    tmp_path: Path,
    place: Callable[[Path, Path], int],
    own: str,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the image is a device, or the lens's own file where EROFS cannot lie."""
    monkeypatch.setattr(module, "_PLACES", (own,))
    data = image.read_bytes()
    source = place(image, tmp_path)
    draw = random.Random(block)
    try:
        with Lens(source, 0, SIZE, block) as lens:
            assert lens.on_loop == (place is on_a_device or own == "/dev/shm")
            for _ in range(8):
                layout = a_layout(draw, block, 0, SIZE)
                file = lens.put(*layout)
                assert content(file.fd) == expected(image, layout)
                os.close(file.fd)
                lens.forget(file)
            file = lens.put(SIZE, (Extent(0, SIZE, 0),))
            assert content(file.fd) == data
            if lens.on_loop:
                assert read_directly(file.fd, 5 * PAGE) == data[5 * PAGE : 6 * PAGE]
            os.close(file.fd)
    finally:
        os.close(source)


@pytest.mark.requires("loop")
@pytest.mark.parametrize(
    ("sector", "block"), [(4096, 4096), (4096, 1024), (4096, 512), (1024, 512)]
)
def test_a_device_with_larger_sectors(fd: int, image: Path, sector: int, block: int) -> None:
    """Would answer EIO to whoever reads; so there is no lens on it."""
    device = attach_loop(fd, block_size=sector, writable=False)
    try:
        if sector > block:
            with pytest.raises(OSError, match=f"sectors of {sector}") as caught:
                Lens(device, 0, SIZE, block)
            assert caught.value.errno == errno.EINVAL
            return
        with Lens(device, 0, SIZE, block) as lens:
            file = lens.put(2 * block, (Extent(0, block, 3 * block), Extent(block, block, block)))
            data = image.read_bytes()
            assert content(file.fd) == data[3 * block : 4 * block] + data[block : 2 * block]
            os.close(file.fd)
    finally:
        os.close(device)


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


@pytest.mark.requires("loop")
@pytest.mark.parametrize("place", [None, on_a_device, on_tmpfs])
def test_nothing_is_left(
    image: Path, tmp_path: Path, place: Callable[[Path, Path], int] | None
) -> None:
    source = os.open(image, os.O_RDONLY) if place is None else place(image, tmp_path)
    shm = [f"/dev/shm/penstock-{tmp_path.name} (deleted)", f"/dev/shm/penstock-{tmp_path.name}"]
    before = descriptors()
    lens = Lens(source, 0, SIZE, PAGE)
    file = lens.put(SIZE, (Extent(0, SIZE, 0),))
    assert "erofs" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    lens.close()
    lens.close()
    assert os.pread(file.fd, 10, PAGE) == image.read_bytes()[PAGE : PAGE + 10]
    os.close(file.fd)
    assert descriptors() == before
    os.close(source)
    assert not list(loop_devices([str(tmp_path), *shm]))


def test_a_lens_that_cannot_be_made(fd: int, tmp_path: Path) -> None:
    """Nothing is left of the attempt either."""
    before = descriptors()
    with pytest.raises(OSError):
        Lens(os.open(tmp_path, os.O_RDONLY), 0, SIZE, PAGE)
    with pytest.raises(OSError):
        Lens(fd, 0, 1 << 44, PAGE)
    left = {line for line in descriptors() - before if not line.endswith(str(tmp_path))}
    assert not left


def test_no_place_for_its_file(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLACES", ("/proc", "/sys"))
    with pytest.raises(OSError):
        Lens(fd, 0, SIZE, PAGE)
