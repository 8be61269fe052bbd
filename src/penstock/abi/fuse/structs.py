# SPDX-License-Identifier: Apache-2.0
"""Structures of FUSE requests and replies: ``struct fuse_*`` of the kernel's ``linux/fuse.h``.

Each layout has the kernel's name in CamelCase without ``fuse_``, the kernel's fields in the
kernel's order, and so the kernel's size and offsets. What a field means is said here only where
its name does not; which message carries which structure is said by :mod:`penstock.wire`.

Two liberties: times are signed (the kernel declares them unsigned, but puts times before 1970 in
them), and reserved arrays are one ``bytes`` field.

Annotations are evaluated when the module is imported, not kept as text: this is the largest part
of what an import of penstock costs, and compiling text would double it.
"""

from typing import Annotated, NamedTuple

from penstock.abi.layout import array, layout, s32, s64, u16, u32, u64


@layout
class InHeader(NamedTuple):
    """Starts every request."""

    len: u32
    """Bytes of the whole message."""
    opcode: u32
    unique: u64
    nodeid: u64
    uid: u32
    gid: u32
    pid: u32
    total_extlen: u16
    """Extensions at the end of the message, in units of 8 bytes."""
    padding: u16


@layout
class OutHeader(NamedTuple):
    """Starts every reply (``error`` 0 or a negative errno) and every notification (``unique`` 0,
    ``error`` a positive notify code)."""

    len: u32
    """Bytes of the whole message."""
    error: s32
    unique: u64


@layout
class Attr(NamedTuple):
    """Attributes of an inode."""

    ino: u64
    size: u64
    blocks: u64
    """In units of 512 bytes."""
    atime: s64
    mtime: s64
    ctime: s64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    nlink: u32
    uid: u32
    gid: u32
    rdev: u32
    """``(minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)``."""
    blksize: u32
    flags: u32
    """:class:`AttrFlag`."""


@layout
class SxTime(NamedTuple):
    """A time of ``Statx``."""

    tv_sec: s64
    tv_nsec: u32
    reserved: s32


@layout
class Statx(NamedTuple):
    """Attributes as statx(2) has them."""

    mask: u32
    """:class:`StatxMask`: which fields are valid."""
    blksize: u32
    attributes: u64
    nlink: u32
    uid: u32
    gid: u32
    mode: u16
    spare0: u16
    ino: u64
    size: u64
    blocks: u64
    attributes_mask: u64
    atime: SxTime
    btime: SxTime
    ctime: SxTime
    mtime: SxTime
    rdev_major: u32
    rdev_minor: u32
    dev_major: u32
    dev_minor: u32
    spare2: Annotated[bytes, array("Q", 14)]


@layout
class StatxIn(NamedTuple):
    getattr_flags: u32
    reserved: u32
    fh: u64
    sx_flags: u32
    sx_mask: u32


@layout
class StatxOut(NamedTuple):
    attr_valid: u64
    """Seconds the kernel may cache the attributes."""
    attr_valid_nsec: u32
    flags: u32
    spare: Annotated[bytes, array("Q", 2)]
    stat: Statx


@layout
class EntryOut(NamedTuple):
    """An inode under a name. ``nodeid`` 0 with a timeout is a cached "no such name"."""

    nodeid: u64
    generation: u64
    entry_valid: u64
    """Seconds the kernel may cache the name."""
    attr_valid: u64
    """Seconds the kernel may cache the attributes."""
    entry_valid_nsec: u32
    attr_valid_nsec: u32
    attr: Attr


@layout
class AttrOut(NamedTuple):
    attr_valid: u64
    attr_valid_nsec: u32
    dummy: u32
    attr: Attr


@layout
class GetattrIn(NamedTuple):
    getattr_flags: u32
    """:class:`GetattrFlag`."""
    dummy: u32
    fh: u64


@layout
class SetattrIn(NamedTuple):
    valid: u32
    """:class:`Fattr`: which fields are to be set."""
    padding: u32
    fh: u64
    size: u64
    lock_owner: u64
    atime: s64
    mtime: s64
    ctime: s64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    unused4: u32
    uid: u32
    gid: u32
    unused5: u32


@layout
class Kstatfs(NamedTuple):
    """Statistics of a filesystem, counted in units of ``frsize`` bytes. (The kernel's
    ``struct fuse_statfs_out`` is nothing but this.)"""

    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    bsize: u32
    namelen: u32
    frsize: u32
    padding: u32
    spare: Annotated[bytes, array("I", 6)]


@layout
class AccessIn(NamedTuple):
    mask: u32
    """:class:`AccessMode`."""
    padding: u32


@layout
class ForgetIn(NamedTuple):
    nlookup: u64


@layout
class ForgetOne(NamedTuple):
    nodeid: u64
    nlookup: u64


@layout
class BatchForgetIn(NamedTuple):
    """``count`` :class:`ForgetOne` follow."""

    count: u32  # type: ignore[assignment]  # the kernel's name, not tuple.count
    dummy: u32


@layout
class MknodIn(NamedTuple):
    mode: u32
    rdev: u32
    umask: u32
    padding: u32


@layout
class MkdirIn(NamedTuple):
    mode: u32
    """Permissions alone, without S_IFDIR."""
    umask: u32


@layout
class RenameIn(NamedTuple):
    newdir: u64


@layout
class Rename2In(NamedTuple):
    newdir: u64
    flags: u32
    """:class:`RenameFlag`."""
    padding: u32


@layout
class LinkIn(NamedTuple):
    oldnodeid: u64


@layout
class Dirent(NamedTuple):
    """Starts a directory entry: ``namelen`` bytes of name follow, then zeros up to 8 bytes."""

    ino: u64
    off: u64
    """Cookie of the position after this entry."""
    namelen: u32
    type: u32
    """DT_*."""


@layout
class OpenIn(NamedTuple):
    flags: u32
    """O_*."""
    open_flags: u32
    """:class:`OpenFlag`."""


@layout
class CreateIn(NamedTuple):
    flags: u32
    """O_*."""
    mode: u32
    umask: u32
    open_flags: u32
    """:class:`OpenFlag`."""


@layout
class OpenOut(NamedTuple):
    fh: u64
    open_flags: u32
    """:class:`FOpen`."""
    backing_id: s32


@layout
class ReleaseIn(NamedTuple):
    fh: u64
    flags: u32
    """O_*."""
    release_flags: u32
    """:class:`ReleaseFlag`."""
    lock_owner: u64


@layout
class FlushIn(NamedTuple):
    fh: u64
    unused: u32
    padding: u32
    lock_owner: u64


@layout
class ReadIn(NamedTuple):
    fh: u64
    offset: u64
    size: u32
    read_flags: u32
    """:class:`ReadFlag`."""
    lock_owner: u64
    flags: u32
    """O_*."""
    padding: u32


@layout
class WriteIn(NamedTuple):
    fh: u64
    offset: u64
    size: u32
    write_flags: u32
    """:class:`WriteFlag`."""
    lock_owner: u64
    flags: u32
    """O_*."""
    padding: u32


@layout
class WriteOut(NamedTuple):
    size: u32
    padding: u32


@layout
class FsyncIn(NamedTuple):
    fh: u64
    fsync_flags: u32
    """:class:`FsyncFlag`."""
    padding: u32


@layout
class FallocateIn(NamedTuple):
    fh: u64
    offset: u64
    length: u64
    mode: u32
    """:class:`FallocMode`."""
    padding: u32


@layout
class LseekIn(NamedTuple):
    fh: u64
    offset: u64
    whence: u32
    padding: u32


@layout
class LseekOut(NamedTuple):
    offset: u64


@layout
class CopyFileRangeIn(NamedTuple):
    fh_in: u64
    off_in: u64
    nodeid_out: u64
    fh_out: u64
    off_out: u64
    len: u64
    flags: u64


@layout
class CopyFileRangeOut(NamedTuple):
    bytes_copied: u64


@layout
class BmapIn(NamedTuple):
    block: u64
    blocksize: u32
    padding: u32


@layout
class BmapOut(NamedTuple):
    block: u64


@layout
class PollIn(NamedTuple):
    fh: u64
    kh: u64
    """Names this poll in a later :class:`NotifyPollOut`."""
    flags: u32
    """:class:`PollFlag`."""
    events: u32
    """POLL*."""


@layout
class PollOut(NamedTuple):
    revents: u32
    padding: u32


@layout
class SyncfsIn(NamedTuple):
    padding: u64


@layout
class SetxattrIn(NamedTuple):
    """Only the first 8 bytes are sent unless SETXATTR_EXT was negotiated."""

    size: u32
    flags: u32
    """:class:`XattrFlag`."""
    setxattr_flags: u32
    """:class:`SetxattrFlag`."""
    padding: u32


@layout
class GetxattrIn(NamedTuple):
    size: u32
    """Room the caller has; 0 asks for the size alone."""
    padding: u32


@layout
class GetxattrOut(NamedTuple):
    size: u32
    padding: u32


@layout
class FileLock(NamedTuple):
    start: u64
    end: u64
    """The last byte of the range; 0x7FFFFFFFFFFFFFFF is the end of the file."""
    type: u32
    """F_RDLCK 0, F_WRLCK 1, F_UNLCK 2."""
    pid: u32


@layout
class LkIn(NamedTuple):
    fh: u64
    owner: u64
    lk: FileLock
    lk_flags: u32
    """:class:`LkFlag`."""
    padding: u32


@layout
class LkOut(NamedTuple):
    lk: FileLock


@layout
class IoctlIn(NamedTuple):
    fh: u64
    flags: u32
    """:class:`IoctlFlag`."""
    cmd: u32
    arg: u64
    in_size: u32
    out_size: u32


@layout
class IoctlIovec(NamedTuple):
    base: u64
    len: u64


@layout
class IoctlOut(NamedTuple):
    result: s32
    """What ioctl(2) returns; negative is an errno."""
    flags: u32
    """:class:`IoctlFlag`."""
    in_iovs: u32
    out_iovs: u32


@layout
class SecctxHeader(NamedTuple):
    """``nr_secctx`` :class:`Secctx` records follow."""

    size: u32
    """Bytes, this header included."""
    nr_secctx: u32


@layout
class Secctx(NamedTuple):
    """A name and a NUL follow, then ``size`` bytes of value, then zeros up to 8 bytes."""

    size: u32
    padding: u32


@layout
class ExtHeader(NamedTuple):
    """Same shape as :class:`SecctxHeader`: told apart by ``type``, which is above MAX_NR_SECCTX."""

    size: u32
    """Bytes, this header included."""
    type: u32
    """:class:`ExtType`."""


@layout
class SuppGroups(NamedTuple):
    """``nr_groups`` group ids of 4 bytes follow, then zeros up to 8."""

    nr_groups: u32


@layout
class SetupmappingIn(NamedTuple):
    fh: u64
    foffset: u64
    len: u64
    flags: u64
    """:class:`SetupmappingFlag`."""
    moffset: u64


@layout
class RemovemappingIn(NamedTuple):
    """``count`` :class:`RemovemappingOne` follow, without padding."""

    count: u32  # type: ignore[assignment]  # the kernel's name, not tuple.count


@layout
class RemovemappingOne(NamedTuple):
    moffset: u64
    len: u64
