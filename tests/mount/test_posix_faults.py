# SPDX-License-Identifier: Apache-2.0
"""A suite that finds nothing proves nothing: each fault planted in the memory filesystem is found.

One process mounts the faulty filesystems, one after the other.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.serve import Mount, MountOptions, mount
from penstock.testing import MemoryFilesystem, posix
from penstock.testing.memory.faults import Fault, faulty
from tests.support.mounts import Inside, Served, serve_in_process

pytestmark = pytest.mark.requires("root")

FOUND_BY = {
    Fault.TARGETS_ARE_CUT: "names/symlinks_keep_their_target names/longest_symlink",
    Fault.LINKS_ARE_NOT_COUNTED: "names/hard_links_are_one_file linking/many_links",
    Fault.LINK_IS_A_COPY: "names/hard_links_are_one_file handles/handles_are_the_files",
    Fault.UNLINK_FORGETS_TO_COUNT: "names/unlinked_file_lives_while_open linking/many_links",
    Fault.UNLINKED_FILES_ARE_EMPTIED: "names/unlinked_file_lives_while_open",
    Fault.RENAME_LEAVES_THE_OLD_NAME: "renames/file_moves handles/handle_outlives_the_name",
    Fault.EXCHANGE_MOVES: "renames/exchange_file_and_directory",
    Fault.WHITEOUT_LEAVES_NOTHING: "renames/whiteout",
    Fault.FULL_DIRECTORIES_ARE_REPLACED: "renames/directory_over_directory",
    Fault.FULL_DIRECTORIES_ARE_REMOVED: "directories/rmdir_rules",
    Fault.SUBDIRECTORIES_ARE_NOT_COUNTED: "renames/counts_follow_directories",
    Fault.CASE_IS_IGNORED: "names/names_are_bytes",
    Fault.LONG_NAMES_ARE_CUT: "names/long_names errnos/long_names_in_bytes",
    Fault.DEVICE_NUMBERS_ARE_LOST: "names/device_nodes_keep_their_numbers",
    Fault.UMASK_IS_IGNORED: "attributes/umask_is_applied linking/tmpfile_rules",
    Fault.GROUP_IS_NOT_INHERITED: "directories/setgid_directory_hands_on_its_group",
    Fault.DIRECTORY_TIMES_STAY: "times/every_change_of_names_moves_the_directory",
    Fault.CTIME_OF_LINKS_STAYS: "times/chmod_and_links_move_ctime_alone",
    Fault.TAILS_COME_BACK: "truncating/cut_part_does_not_come_back",
    Fault.TRUNCATION_FREES_NOTHING: "holes/truncation_gives_space_back",
    Fault.PUNCHING_MISSES_EDGES: "holes/punching_zeroes_and_frees holes/punching_small_and_beyond",
    Fault.PUNCHING_FREES_NOTHING: "holes/punching_zeroes_and_frees ranges/hole_punched_at_the_end",
    Fault.ZEROING_MISSES_A_BLOCK: "ranges/zeroing_a_range ranges/zeroing_beyond_the_end",
    Fault.HOLES_ARE_UNKNOWN: "holes/seeking_data_and_holes ranges/everything_is_a_hole",
    Fault.THE_END_IS_NO_HOLE: "holes/end_of_file_is_a_hole",
    Fault.GAPS_ARE_NOT_ZERO: "files/writing_beyond_the_end",
    Fault.LARGE_FILES_REPEAT: "files/large_data_is_kept",
    Fault.WRITES_LOSE_A_BYTE: "files/overwriting_in_the_middle direct/direct_write_is_read",
    Fault.STORES_ARE_LOST: "sharing/flushed_stores_are_durable",
    Fault.TRUNCATION_ON_OPEN_IS_IGNORED: "files/o_trunc_empties",
    Fault.SIZES_ARE_THIRTY_TWO_BITS: "truncating/sizes_beyond_four_gib",
    Fault.KEEP_SIZE_GROWS: "holes/fallocate_keep_size",
    Fault.ALLOCATION_DOES_NOT_GROW: "holes/fallocate_reserves_and_extends",
    Fault.COPY_READS_AHEAD: "copying/copy_with_offsets_leaves_positions",
    Fault.COPY_LOSES_A_BYTE: "copying/copy_moves_positions copying/copy_ends_at_the_end",
    Fault.COPIES_ARE_WHOLE_BLOCKS: "copying/copy_over_what_is_there",
    Fault.NANOSECONDS_ARE_LOST: "attributes/times_are_kept_to_the_nanosecond",
    Fault.TIMES_START_IN_1970: "attributes/times_are_kept_to_the_nanosecond",
    Fault.OMITTED_TIMES_ARE_SET: "times/omitted_times_stay",
    Fault.CTIME_STAYS: "times/chmod_and_links_move_ctime_alone times/utime_moves_ctime",
    Fault.OWNERS_ARE_SIXTEEN_BITS: "attributes/chown_changes_owner_and_group",
    Fault.SET_IDS_SURVIVE_WRITING: "attributes/writing_by_others_drops_set_id_bits",
    Fault.OWNERS_KEEP_SET_IDS: "attributes/chown_drops_set_id_bits",
    Fault.WRITING_LEAVES_THE_TIME: "times/writing_moves_mtime_and_ctime",
    Fault.BIRTH_IS_FORGOTTEN: "attributes/birth_time_stays",
    Fault.EVERYTHING_IS_FREE: "holes/counts_of_the_filesystem_follow",
    Fault.ATTRIBUTES_ARE_ALWAYS_SET: "xattrs/creating_and_replacing",
    Fault.EMPTY_VALUES_ARE_MISSING: "xattrs/attributes_are_kept",
    Fault.LISTS_FORGET_THE_LAST: "xattrs/attributes_are_listed limits/names_are_told_apart",
    Fault.ATTRIBUTES_STAY: "xattrs/attributes_are_removed limits/many_attributes_come_and_go",
    Fault.ACLS_ARE_NOT_INHERITED: "xattrs/default_acl_is_inherited acls/inherited_acl_lets_in",
    Fault.CHMOD_FORGETS_THE_ACL: "xattrs/chmod_sets_the_mask",
    Fault.ACLS_LEAVE_THE_MODE: "xattrs/acl_sets_the_mode acls/acl_with_many_entries",
    Fault.LISTING_FORGETS_NAMES: "directories/many_names_are_listed_once",
    Fault.LISTING_REPEATS_NAMES: "directories/many_names_are_listed_once",
    Fault.POSITIONS_SHIFT: "directories/listing_survives_removal crowds/removed_while_two_read",
    Fault.DOTS_ARE_NOT_LISTED: "directories/dot_and_dotdot",
    Fault.KINDS_ARE_WRONG: "directories/listing_tells_kind_and_inode",
    Fault.NUMBERS_ARE_WRONG: "directories/listing_tells_kind_and_inode",
    Fault.EVERYTHING_IS_GRANTED: "locking/writers_exclude locking/flock_excludes",
    Fault.FLOCKS_ARE_SHARED: "locking/flock_excludes waiting/flock_changes_its_kind",
    Fault.RANGES_ARE_IGNORED: "locking/ranges_are_independent",
    Fault.UNLOCKING_IS_WHOLE: "locking/unlocking_splits",
    Fault.WAITING_IS_REFUSED: "locking/waiting_for_a_lock locking/waiting_for_a_flock",
    Fault.LOCKS_ARE_NOT_TOLD: "locking/who_holds_it",
    Fault.CLOSING_KEEPS_LOCKS: "locking/closing_drops_locks",
    Fault.LOCKS_LAST_FOR_EVER: "locking/flock_is_shared_by_dup",
    Fault.LINKED_TMPFILES_ARE_REFUSED: "names/tmpfile_has_no_name_until_linked",
}
"""The cases that find each."""

SECONDS = 3.0
"""For a case on a faulty filesystem: some faults have a lock waited for in vain."""
BY_NAME = {f"{case.subject}/{case.name}": case for case in posix.CASES}
_mounted: list[Mount] = []
"""In the serving process."""


def _mount(inside: Inside, fault: Fault, path: str) -> None:
    mounted = mount(faulty(fault), path, MountOptions(allow_other=True, suid=True))
    _mounted.append(mounted)


def _unmount(inside: Inside) -> None:
    _mounted.pop().close()


@pytest.fixture(scope="module")
def place(session_place: Path) -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir=session_place) as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Served]:
    """The process that mounts, and a healthy filesystem."""
    healthy = place / "healthy"
    healthy.mkdir()
    options = MountOptions(allow_other=True, suid=True)
    with serve_in_process(MemoryFilesystem, healthy, options) as served:
        yield served


@contextlib.contextmanager
def planted(server: Served, fault: Fault, path: Path) -> Iterator[None]:
    """A filesystem with a fault."""
    path.mkdir()
    server.call(_mount, fault, str(path))
    try:
        yield
    finally:
        server.call(_unmount)
        path.rmdir()


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
def test_fault_is_found(server: Served, place: Path, fault: Fault) -> None:
    cases = [BY_NAME[name] for name in FOUND_BY[fault].split()]
    healthy = posix.run(server.path, cases)
    assert [outcome.error for outcome in healthy] == [None] * len(cases)
    with planted(server, fault, place / fault.name):
        outcomes = posix.run(place / fault.name, cases, seconds=SECONDS)
    missed = [outcome.case.name for outcome in outcomes if outcome.error is None]
    assert missed == [], fault.description


def test_there_are_many_faults_and_each_says_what_is_wrong() -> None:
    assert len(Fault) >= 60
    assert len({fault.description for fault in Fault}) == len(Fault)
    for fault in Fault:
        assert fault.description.endswith("."), fault
        assert "\n" not in fault.description, fault
        assert isinstance(faulty(fault), MemoryFilesystem)


def test_several_faults_at_once() -> None:
    filesystem = faulty(Fault.TARGETS_ARE_CUT, Fault.EVERYTHING_IS_FREE, limit=1 << 20)
    assert isinstance(filesystem, Fault.TARGETS_ARE_CUT.value)
    assert isinstance(filesystem, Fault.EVERYTHING_IS_FREE.value)
    assert filesystem.statistics().bytes_limit == 1 << 20
