# SPDX-License-Identifier: Apache-2.0
"""What some cases need beyond plain files."""

from __future__ import annotations

from typing import Final

__all__ = ["NEEDS"]

NEEDS: Final = {
    "root": "the rights of root",
    "others": "root, and a filesystem that other users may enter (allow_other)",
    "devices": "device nodes can be made",
    "xattr": "extended attributes",
    "trusted": "extended attributes of the namespace trusted",
    "security": "extended attributes of the namespace security, of any name",
    "large-xattr": "extended attributes of 60,000 bytes",
    "acl": "POSIX access control lists",
    "tmpfile": "O_TMPFILE",
    "whiteout": "RENAME_WHITEOUT",
    "holes": "sparse files with SEEK_DATA, SEEK_HOLE, fallocate and hole punching",
    "zero": "FALLOC_FL_ZERO_RANGE",
    "collapse": "FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE",
    "reflink": "FICLONE and FICLONERANGE: files that share their blocks",
    "space": "statvfs tells at once what fallocate has taken",
    "btime": "statx gives the time of birth",
    "locks": "locks that are seen between processes",
    "direct": "O_DIRECT",
    "suid": "a mount without nosuid",
    "long-symlinks": "symlinks of 4095 bytes",
    "exec": "a mount without noexec",
    "dirlinks": "a directory's st_nlink counts its subdirectories",
    "flags": "the inode flags of chattr(1): immutable and append-only",
    "nanoseconds": "times to the nanosecond, before 1970 and after 2038",
    "handles": "file handles (name_to_handle_at), and the right to open them",
}
"""What a case may need, and what that means."""
