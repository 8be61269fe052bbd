# SPDX-License-Identifier: Apache-2.0
"""Records of mounts: a small JSON file beside each control socket.

A record outlives a server that was killed; that is what it is for. Whether the server still runs is
told by its number *and* start time, whether the mount is still there by /proc/self/mountinfo. The
mount point itself is never touched: a path below a stopped server would wait for it.

A record is what its owner says. One that names a process of somebody else is not believed, and left
out. Numbers of another pid namespace mean nothing here: then whoever listens at the socket tells.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from penstock.abi.process import FIRST_PID_NAMESPACE
from penstock.control.directory import (
    all_directories,
    is_served,
    open_directory,
    remove_if_empty,
)
from penstock.control.process import (
    RecordedProcess,
    open_process,
    pid_namespace,
    process_owner,
)
from penstock.sys.mountinfo import MountInfo, mounts
from penstock.sys.process import process_start_time

__all__ = [
    "Listed",
    "Record",
    "State",
    "find_record",
    "open_recorded_process",
    "records",
    "remove_record",
]

_MAX_RECORD: Final = 64 * 1024
_MAX_RECORDS: Final = 10_000


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of one mount.

    Fields with a default came later; records without them are read all the same.
    """

    pid: int
    """The process that answers for the mount: the one with the control socket."""
    start_time: int
    """Of that process, clock ticks since boot."""
    mount_id: int
    """As in mountinfo; 0 if not known."""
    connection: int
    """Minor device number of the mount: its name under /sys/fs/fuse/connections."""
    mountpoint: str
    source: str
    type: str
    started: float
    """When it was mounted, seconds since 1970."""
    keeper: int = 0
    """The process that unmounts when this one dies; 0: there is none."""
    pid_namespace: int = 0
    """Inode number of the pid namespace in which these numbers are meant; 0 if not known: it is
    taken for the first."""

    @classmethod
    def of_this_process(
        cls,
        *,
        mount_id: int,
        connection: int,
        mountpoint: str,
        source: str,
        type: str,
        started: float,
        keeper: int = 0,
    ) -> Record:
        """A record of a mount that this process answers for."""
        pid = os.getpid()
        return cls(
            pid=pid,
            start_time=process_start_time(pid) or 0,
            mount_id=mount_id,
            connection=connection,
            mountpoint=mountpoint,
            source=source,
            type=type,
            started=started,
            keeper=keeper,
            pid_namespace=pid_namespace(),
        )

    @property
    def name(self) -> str:
        """What its files are called, without their endings."""
        return f"{self.pid}-{self.connection}"

    @property
    def is_local(self) -> bool:
        """Whether its processes are known here by the same numbers."""
        here = pid_namespace()
        return here in {0, self.pid_namespace or FIRST_PID_NAMESPACE}


class State(enum.Enum):
    """What has become of a mount."""

    MOUNTED = "mounted"
    STALE = "stale"
    """The server has gone and the mount is still there: its users get ENOTCONN."""
    DETACHED = "detached"
    """The server runs but the mount is not in this mount namespace (any more)."""


class Listed(NamedTuple):
    """A record and what has become of its mount."""

    record: Record
    state: State
    directory: str
    uid: int
    """Whose mount it is."""
    mount: MountInfo | None = None
    """The mount as the kernel lists it; None if it is not in this mount namespace."""


def socket_name(record: Record) -> str:
    """File name of the control socket in the directory of the record."""
    return f"{record.name}.sock"


def write_record(fd: int, record: Record) -> None:
    """Write the record into the directory ``fd``, all of it or nothing."""
    temporary = f".{record.name}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    text = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    with open(os.open(temporary, flags, 0o600, dir_fd=fd), "w", encoding="ascii") as file:
        file.write(text)
    os.rename(temporary, f"{record.name}.json", src_dir_fd=fd, dst_dir_fd=fd)


def unlink_files(fd: int, record: Record) -> None:
    """Remove record and socket from the directory ``fd``, if they are there."""
    for name in (f"{record.name}.json", socket_name(record)):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)


def remove_record(listed: Listed) -> None:
    """Remove the files of a mount that has gone.

    Raises:
        OSError: the directory is not safe or not writable. A file that is missing is none.
    """
    with open_directory(listed.directory, listed.uid) as fd:
        unlink_files(fd, listed.record)
    remove_if_empty(listed.directory)


@contextmanager
def open_recorded_process(listed: Listed) -> Iterator[RecordedProcess | None]:
    """The process that answers for a mount, if it is of this pid namespace and the owner's own.

    Yields:
        None: it has ended, or must not be touched.

    Raises:
        OSError: there is no descriptor for it.
    """
    record = listed.record
    if not record.is_local:
        yield None
        return
    with open_process(record.pid, record.start_time, listed.uid) as process:
        yield process


def records(
    directories: Iterable[tuple[str, int]] | None = None, *, tidy: bool = True
) -> list[Listed]:
    """The mounts that the caller may see, oldest first.

    Directories and files that are not safe to use are left out, and records that are not to be
    believed. Of several records that fit one
    mount, that of a process that runs holds, and the latest of those: the kernel gives numbers of
    mounts and devices away again at once, and another mount may have lain at the same place.

    Args:
        directories: (path, owner's uid) pairs to look into; default: all that are visible.
        tidy: remove records whose server and mount have both gone.
    """
    mounted = mounts()
    found: list[Listed] = []
    for directory, uid in all_directories() if directories is None else directories:
        with suppress(OSError), open_directory(directory, uid) as fd:
            for record in _read_records(fd, uid):
                alive = is_alive(fd, record, uid)
                if alive is None:
                    continue
                listed = listed_as(record, directory, uid, mounted, alive=alive)
                if listed is not None:
                    found.append(listed)
                elif tidy:
                    with suppress(OSError):
                        unlink_files(fd, record)
    found.sort(key=lambda item: item.record.started)
    return [item for item in map(_settled, _winners(found), found) if item is not None]


def _winners(found: Iterable[Listed]) -> Iterator[bool]:
    """For each record, whether its mount is its own and no other record's."""
    best = {
        item.mount.mount_id: item.record
        for item in sorted(
            found, key=lambda item: (item.state is State.MOUNTED, item.record.started)
        )
        if item.mount is not None
    }
    return (item.mount is None or best[item.mount.mount_id] is item.record for item in found)


def _settled(wins: bool, item: Listed) -> Listed | None:
    """What a record says once another one may have its mount; None if its mount has gone."""
    if wins:
        return item
    alive = item.state is State.MOUNTED
    return item._replace(state=State.DETACHED, mount=None) if alive else None


def is_alive(fd: int, record: Record, uid: int) -> bool | None:
    """Whether the process that answers for a mount runs.

    Args:
        fd: of the directory of the record.
        record: what it says.
        uid: whose directory it is.

    Returns:
        None if the record is not to be believed: it names somebody else's process or socket.
    """
    if not record.is_local:
        try:
            return is_served(fd, socket_name(record), uid)
        except OSError:
            return None
    if process_start_time(record.pid) != record.start_time:
        return False
    owner = process_owner(record.pid)
    if process_start_time(record.pid) != record.start_time:
        return False  # ended meanwhile; the number may already be another's
    return True if owner == uid else None


def listed_as(
    record: Record, directory: str, uid: int, mounted: Iterable[MountInfo], *, alive: bool
) -> Listed | None:
    """What has become of a mount; None if both it and its server have gone.

    Args:
        record: read from ``directory``, which belongs to ``uid``.
        mounted: the mount table.
        alive: what :func:`is_alive` said.
    """
    own = [entry for entry in mounted if _is_mount_of(record, uid, entry)]
    own.sort(key=lambda entry: entry.mount_id == record.mount_id)
    if own:
        return Listed(record, State.MOUNTED if alive else State.STALE, directory, uid, own[-1])
    return Listed(record, State.DETACHED, directory, uid) if alive else None


def find_record(entry: MountInfo) -> Listed | None:
    """The record of a mount found in mountinfo, if it is one of the caller's."""
    for listed in reversed(records()):
        if listed.mount is not None and _is_mount_of(listed.record, listed.uid, entry):
            return listed
    return None


def _is_mount_of(record: Record, uid: int, entry: MountInfo) -> bool:
    # Device numbers and mount ids are used again, hence two of three. And nobody's record may speak
    # for a mount of somebody else, which root would then take for a dead one.
    return (
        (entry.major, entry.minor) == (0, record.connection)
        and entry.fstype.startswith("fuse")
        and (entry.mount_id == record.mount_id or entry.mountpoint == record.mountpoint)
        and entry.user_id == uid
    )


def _read_records(fd: int, uid: int) -> Iterator[Record]:
    for name in sorted(os.listdir(fd))[:_MAX_RECORDS]:
        if name.endswith(".json") and not name.startswith("."):
            record = read_record(fd, name, uid)
            if record is not None:
                yield record


def read_record(fd: int, name: str, uid: int) -> Record | None:
    """The record in a file of ``uid``'s directory ``fd``; None if it is none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(name, flags, dir_fd=fd), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or info.st_uid != uid:
                return None
            fields = json.loads(file.read(_MAX_RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    record = _record_of(fields)
    # The name decides which files belong to it, so it must be the one it claims.
    return record if record is not None and f"{record.name}.json" == name else None


def _record_of(fields: Any) -> Record | None:
    if not isinstance(fields, dict):
        return None
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Record):
        value = fields.get(field.name, field.default)
        if not _fits(value, field.type):
            return None
        values[field.name] = value
    return Record(**values)


def _fits(value: object, type_name: object) -> bool:
    """Whether a value read from a file may stand in a field declared as ``type_name``."""
    if type_name == "str":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return (type_name == "float" or isinstance(value, int)) and 0 <= value < 1 << 63
