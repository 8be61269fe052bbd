# SPDX-License-Identifier: Apache-2.0
"""Sound ext4 images with one field wrong, cut short, failing to be read, or damaged at random.

PENSTOCK_FUZZ_SECONDS makes the random part of it longer: seconds for each test of that kind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import time
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.formats.errors import CorruptImage
from penstock.formats.ext4.reader import Ext4Reader
from penstock.formats.ext4.superblock import parse_superblock
from tests.fuzz.bases import BASES, Image, load
from tests.fuzz.edit import Editor
from tests.fuzz.mutate import Case, cases, check, damaged, from_text, set_field, to_text
from tests.fuzz.places import Field, fields, values
from tests.fuzz.serve import Served, serve
from tests.fuzz.use import BrokenPromise, Meter, peak_growth, use

SECONDS = float(os.environ.get("PENSTOCK_FUZZ_SECONDS", "0"))
FIELD_SECONDS = SECONDS or 5.0
EXAMPLES = max(100, int(SECONDS * 30))


@cache
def wrong_values(base: str) -> tuple[tuple[Field, int], ...]:
    """Each field with each value to try, in an order that any beginning of is a fair sample."""
    chance = random.Random(base)
    sound = load(base)
    found = [
        (field, value)
        for field in fields(base)
        for value in values(
            field.size,
            int.from_bytes(sound[field.offset : field.offset + field.size], "little"),
            chance,
        )
    ]
    chance.shuffle(found)
    return tuple(found)


@pytest.mark.parametrize("base", BASES)
def test_checksums_of_sound_images_are_what_the_tests_compute(base: str) -> None:
    """Otherwise nothing behind the checksums would be reached."""
    for field in fields(base):
        editor = Editor(base)
        field.seal(editor)
        for offset, data in editor.patches:
            assert editor.base[offset : offset + len(data)] == data, field


@pytest.mark.parametrize("base", BASES)
def test_sound_images_have_all_structures(base: str) -> None:
    meter = Meter()
    use(Editor(base), verify=True, meter=meter)
    assert meter.failures < 25  # inodes that are special, or are not there, and no more
    assert meter.calls > (100 if base == "dirty" else 450)
    names = " ".join(field.name for field in fields(base))
    wanted = {
        "csum": ("extents[", "/1", "root.", "xattrs[", "ibody[", "journal.", "group 0.", "@"),
        "plain": ("indirect1[", "indirect2[", "indirect3[", "root.", "xattrs[", "journal."),
        "inline": ("inline@", "ibody[", "xattrs["),
        "gdt": ("group 3.", "extents[", "root."),
        "dirty": ("journal.", "log block", "fast commit"),
    }
    assert [word for word in wanted[base] if word not in names] == []


@pytest.mark.parametrize("base", BASES)
@pytest.mark.timeout(max(120, int(FIELD_SECONDS * 3)))
def test_every_field_may_hold_anything(base: str) -> None:
    """Each with the checksum of its structure, for as long as there is time."""
    end = time.monotonic() + FIELD_SECONDS
    tried = 0
    with peak_growth():
        for tried, (field, value) in enumerate(wrong_values(base)):
            if time.monotonic() > end:
                break
            editor = Editor(base)
            set_field(editor, field, value)
            way = ("reader", "reader", "unverified", "server")[tried % 4]
            try:
                check(editor, (way,))
            except BrokenPromise as error:
                pytest.fail(f"{field.name} = {value:#x}: {to_text(editor, str(error))}")
    assert tried > 50


@pytest.mark.parametrize("base", ["csum", "inline"])
def test_checksums_guard_every_structure(base: str) -> None:
    """A bit flipped without mending the checksum: no field is believed but by those who look."""
    chance = random.Random(7)
    for field in chance.sample(fields(base), 60):
        editor = Editor(base)
        set_field(editor, field, editor.pread(1, field.offset)[0] ^ 1, seal=False)
        check(editor, ("reader",))


def boundaries(base: str) -> list[int]:
    """Sizes at which a structure begins or ends."""
    size = Editor(base).block_size
    found = {0, 1, 1023, 1024, 1025, 2047, 2048, 2049}
    for field in fields(base):
        block = field.offset // size * size
        found |= {field.offset, block, block + size}
    return sorted(found)


@pytest.mark.parametrize("base", BASES)
def test_cut_off_images_are_refused(base: str) -> None:
    for size in boundaries(base):
        if size < len(load(base)):
            with pytest.raises(CorruptImage, match=r"truncated|holds no superblock|not an ext4"):
                Ext4Reader(Image(load(base), size=size))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.timeout(300)
def test_cut_off_images_that_do_not_say_so(base: str) -> None:
    """The superblock is changed to what is there, as far as that can be."""
    chance = random.Random(3)
    sizes = [size for size in boundaries(base) if size >= 8192]
    for size in chance.sample(sizes, min(len(sizes), 25)):
        editor = Editor(base)
        blocks = max(size // editor.block_size, 2)
        groups = -(-(blocks - editor.sb.first_data_block) // editor.sb.blocks_per_group)
        count = groups * editor.sb.inodes_per_group
        editor.set_super(blocks_count_lo=blocks, inodes_count=count)
        editor.size = blocks * editor.block_size
        parse_superblock(editor.pread(1024, 1024), editor.size)  # is accepted
        check(editor, ("reader", "server"))


class Failing(Image):
    """An image on a medium that fails from some read on, or now and then."""

    def __init__(self, base: str) -> None:
        super().__init__(load(base))
        self.good = 1 << 60
        self.chance: random.Random | None = None

    def pread(self, length: int, offset: int) -> bytes:
        self.good -= 1
        if self.good < 0 or (self.chance is not None and self.chance.random() < 0.2):
            raise OSError(errno.EIO, "the medium failed")
        return super().pread(length, offset)


@pytest.mark.parametrize("base", BASES)
def test_an_image_that_cannot_be_read_any_more(base: str) -> None:
    for reads in (*range(12), 15, 20, 30):
        image = Failing(base)
        image.good = reads
        use(image, verify=True)
        image.good = reads
        serve(image)


def listing(reader: Ext4Reader) -> list[tuple[bytes, int]]:
    return [(record.name, record.ino) for record in reader.readdir(reader.inode(2))]


@pytest.mark.parametrize("base", BASES)
def test_nothing_is_remembered_of_reads_that_failed(base: str) -> None:
    wanted = listing(Ext4Reader(Image(load(base))))
    for seed in range(10):
        image = Failing(base)
        reader = Ext4Reader(image)
        image.chance = random.Random(seed)
        for _ in range(6):
            with contextlib.suppress(OSError):
                assert listing(reader) == wanted
                assert reader.lookup(reader.inode(2), wanted[-1][0]) == wanted[-1][1]
        image.chance = None
        assert listing(reader) == wanted


def test_an_image_that_shrinks_while_it_is_served() -> None:
    """Also the data of files, which no reader touches, but which is then not there."""
    fd = os.memfd_create("shrinking")
    try:
        os.write(fd, load("csum"))

        class Shrinking(Image):
            def pread(self, length: int, offset: int) -> bytes:
                data = os.pread(fd, length, offset)
                if len(data) < length:
                    raise OSError(errno.EIO, "the image has shrunk")
                return data

        image = Shrinking(load("csum"))
        assert serve(image) > 300
        os.ftruncate(fd, 1 << 20)
        assert 0 < serve(image) < 300
        source = Served(image)
        source.close()
    finally:
        os.close(fd)


@st.composite
def damages(draw: st.DrawFn) -> Editor:
    """A base with a few changes; the generator of chance is drawn, so that failures shrink."""
    chance = draw(st.randoms(use_true_random=False))
    base = draw(st.sampled_from(BASES))
    return damaged(base, chance, draw(st.integers(1, 6)))


def check_or_tell(image: Editor, way: str) -> None:
    try:
        check(image, (way,))
    except BrokenPromise as error:
        pytest.fail(f"add to tests/corpus/cases.json: {to_text(image, str(error)[:300])}")


@pytest.mark.timeout(max(120, int(SECONDS * 4)))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not SECONDS,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(image=damages(), way=st.sampled_from(("reader", "reader", "unverified", "server")))
def test_any_damage(image: Editor, way: str) -> None:
    check_or_tell(image, way)


@pytest.mark.timeout(max(120, int(SECONDS * 4)))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not SECONDS,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(head=st.binary(max_size=2048), base=st.sampled_from(BASES), at=st.integers(0, 1 << 14))
def test_any_bytes_over_a_beginning(head: bytes, base: str, at: int) -> None:
    editor = Editor(base)
    editor.write(at, head)
    if at + len(head) > 1024:
        editor.seal_super()
    check_or_tell(editor, "reader")


def kept() -> Iterator[Case]:
    yield from cases()


@pytest.mark.parametrize("case", [pytest.param(case, id=case["why"]) for case in kept()])
def test_cases_that_broke_a_promise_once(case: Case) -> None:
    with peak_growth():
        check(from_text(case))


def test_a_case_is_text_and_back() -> None:
    editor = damaged("plain", random.Random(4), 3)
    again = from_text(json.loads(to_text(editor, "why")))
    assert again.pread(again.size, 0) == editor.pread(editor.size, 0)
