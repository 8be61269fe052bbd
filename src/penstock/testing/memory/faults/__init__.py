# SPDX-License-Identifier: Apache-2.0
"""Faults to plant in the memory filesystem: what a test of filesystems has to find.

A suite that finds none proves nothing. Each fault is one class that changes one thing and says
what; :func:`faulty` makes a filesystem with some of them. The healthy one knows nothing of this::

    filesystem = faulty(Fault.TAILS_COME_BACK)
    with mount(filesystem, "/mnt/faulty"):
        ...
"""

from __future__ import annotations

import enum
from typing import Any

from penstock.testing.memory import MemoryFilesystem
from penstock.testing.memory.faults import attributes, data, names, sharing

__all__ = ["Fault", "attributes", "data", "faulty", "names", "sharing"]


class Fault(enum.Enum):
    """What can be wrong."""

    TARGETS_ARE_CUT = names.TargetsAreCut
    LINKS_ARE_NOT_COUNTED = names.LinksAreNotCounted
    LINK_IS_A_COPY = names.LinkIsACopy
    UNLINK_FORGETS_TO_COUNT = names.UnlinkForgetsToCount
    UNLINKED_FILES_ARE_EMPTIED = names.UnlinkedFilesAreEmptied
    RENAME_LEAVES_THE_OLD_NAME = names.RenameLeavesTheOldName
    EXCHANGE_MOVES = names.ExchangeMoves
    WHITEOUT_LEAVES_NOTHING = names.WhiteoutLeavesNothing
    FULL_DIRECTORIES_ARE_REPLACED = names.FullDirectoriesAreReplaced
    FULL_DIRECTORIES_ARE_REMOVED = names.FullDirectoriesAreRemoved
    SUBDIRECTORIES_ARE_NOT_COUNTED = names.SubdirectoriesAreNotCounted
    CASE_IS_IGNORED = names.CaseIsIgnored
    LONG_NAMES_ARE_CUT = names.LongNamesAreCut
    DEVICE_NUMBERS_ARE_LOST = names.DeviceNumbersAreLost
    UMASK_IS_IGNORED = names.UmaskIsIgnored
    GROUP_IS_NOT_INHERITED = names.GroupIsNotInherited
    DIRECTORY_TIMES_STAY = names.DirectoryTimesStay
    CTIME_OF_LINKS_STAYS = names.CtimeOfLinksStays
    TAILS_COME_BACK = data.TailsComeBack
    TRUNCATION_FREES_NOTHING = data.TruncationFreesNothing
    PUNCHING_MISSES_EDGES = data.PunchingMissesEdges
    PUNCHING_FREES_NOTHING = data.PunchingFreesNothing
    ZEROING_MISSES_A_BLOCK = data.ZeroingMissesABlock
    HOLES_ARE_UNKNOWN = data.HolesAreUnknown
    THE_END_IS_NO_HOLE = data.TheEndIsNoHole
    GAPS_ARE_NOT_ZERO = data.GapsAreNotZero
    LARGE_FILES_REPEAT = data.LargeFilesRepeat
    WRITES_LOSE_A_BYTE = data.WritesLoseAByte
    STORES_ARE_LOST = data.StoresAreLost
    TRUNCATION_ON_OPEN_IS_IGNORED = data.TruncationOnOpenIsIgnored
    SIZES_ARE_THIRTY_TWO_BITS = data.SizesAreThirtyTwoBits
    KEEP_SIZE_GROWS = data.KeepSizeGrows
    ALLOCATION_DOES_NOT_GROW = data.AllocationDoesNotGrow
    COPY_READS_AHEAD = data.CopyReadsAhead
    COPY_LOSES_A_BYTE = data.CopyLosesAByte
    COPIES_ARE_WHOLE_BLOCKS = data.CopiesAreWholeBlocks
    NANOSECONDS_ARE_LOST = attributes.NanosecondsAreLost
    TIMES_START_IN_1970 = attributes.TimesStartIn1970
    OMITTED_TIMES_ARE_SET = attributes.OmittedTimesAreSet
    CTIME_STAYS = attributes.CtimeStays
    OWNERS_ARE_SIXTEEN_BITS = attributes.OwnersAreSixteenBits
    SET_IDS_SURVIVE_WRITING = attributes.SetIdsSurviveWriting
    OWNERS_KEEP_SET_IDS = attributes.OwnersKeepSetIds
    WRITING_LEAVES_THE_TIME = attributes.WritingLeavesTheTime
    BIRTH_IS_FORGOTTEN = attributes.BirthIsForgotten
    EVERYTHING_IS_FREE = attributes.EverythingIsFree
    ATTRIBUTES_ARE_ALWAYS_SET = attributes.AttributesAreAlwaysSet
    EMPTY_VALUES_ARE_MISSING = attributes.EmptyValuesAreMissing
    LISTS_FORGET_THE_LAST = attributes.ListsForgetTheLast
    ATTRIBUTES_STAY = attributes.AttributesStay
    ACLS_ARE_NOT_INHERITED = attributes.AclsAreNotInherited
    CHMOD_FORGETS_THE_ACL = attributes.ChmodForgetsTheAcl
    ACLS_LEAVE_THE_MODE = attributes.AclsLeaveTheMode
    LISTING_FORGETS_NAMES = sharing.ListingForgetsNames
    LISTING_REPEATS_NAMES = sharing.ListingRepeatsNames
    POSITIONS_SHIFT = sharing.PositionsShift
    DOTS_ARE_NOT_LISTED = sharing.DotsAreNotListed
    KINDS_ARE_WRONG = sharing.KindsAreWrong
    NUMBERS_ARE_WRONG = sharing.NumbersAreWrong
    EVERYTHING_IS_GRANTED = sharing.EverythingIsGranted
    FLOCKS_ARE_SHARED = sharing.FlocksAreShared
    RANGES_ARE_IGNORED = sharing.RangesAreIgnored
    UNLOCKING_IS_WHOLE = sharing.UnlockingIsWhole
    WAITING_IS_REFUSED = sharing.WaitingIsRefused
    LOCKS_ARE_NOT_TOLD = sharing.LocksAreNotTold
    CLOSING_KEEPS_LOCKS = sharing.ClosingKeepsLocks
    LOCKS_LAST_FOR_EVER = sharing.LocksLastForEver
    LINKED_TMPFILES_ARE_REFUSED = sharing.LinkedTmpfilesAreRefused

    @property
    def description(self) -> str:
        """In one line."""
        return str(self.value.__doc__)


def faulty(*faults: Fault, **arguments: Any) -> MemoryFilesystem:
    """A memory filesystem with faults.

    Args:
        faults: which, at least one.
        arguments: those of the filesystem.
    """
    bases = tuple(fault.value for fault in faults)
    made: MemoryFilesystem = type("Faulty", bases, {})(**arguments)
    return made
