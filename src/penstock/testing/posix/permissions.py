# SPDX-License-Identifier: Apache-2.0
"""Who may do what: owner, groups and others, directories, sticky and set-group-ID bits, access."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from penstock.testing.posix.calls import opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

USER = 65534
OTHER = 65533
GROUP = 12345
CREATE = os.O_CREAT | os.O_WRONLY


def _own(path: Path, uid: int, gid: int, mode: int) -> Path:
    """Give a file or directory (made if it is not there) an owner, a group and a mode."""
    if not path.exists():
        path.write_bytes(b"content")
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@case("others")
def owner_is_judged_by_the_owners_bits(root: Path) -> None:
    """The owner has the owner's rights only, though group and others have more."""
    path = _own(root / "file", USER, USER, 0o077)
    with Peer(user=USER) as peer:
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)
        fails(errno.EACCES, peer.call, "open", path, os.O_WRONLY)
        peer.call("chmod", path, 0o600)
        peer.call("open", path, os.O_RDWR)


@case("others")
def group_is_judged_by_the_groups_bits(root: Path) -> None:
    """A member of the file's group has the group's rights, not those of others."""
    path = _own(root / "file", 0, GROUP, 0o646)
    with Peer(user=USER, group=GROUP) as peer:
        peer.call("open", path, os.O_RDONLY)
        fails(errno.EACCES, peer.call, "open", path, os.O_WRONLY)
    with Peer(user=USER) as peer:
        peer.call("open", path, os.O_RDWR)


@case("others")
def supplementary_groups_count(root: Path) -> None:
    """Supplementary groups count as the group does."""
    path = _own(root / "file", 0, GROUP, 0o660)
    with Peer(user=USER, groups=(1, GROUP, 77)) as peer:
        peer.call("open", path, os.O_RDWR)
    with Peer(user=USER, groups=(1, 77)) as peer:
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)


@case("others")
def searching_needs_execute(root: Path) -> None:
    """Without execute permission of a directory its names can be listed, and nothing below it
    reached."""
    place = root / "place"
    place.mkdir()
    _own(place / "file", 0, 0, 0o666)
    _own(place, 0, 0, 0o744)
    with Peer(user=USER) as peer:
        equal(peer.call("listdir", place), ["file"])
        fails(errno.EACCES, peer.call, "os.stat", place / "file")
        fails(errno.EACCES, peer.call, "open", place / "file", os.O_RDONLY)
        fails(errno.EACCES, peer.call, "chdir", place)


@case("others")
def listing_needs_read(root: Path) -> None:
    """Without read permission of a directory it cannot be listed, but what one can name is
    reached."""
    place = root / "place"
    place.mkdir()
    _own(place / "file", 0, 0, 0o644)
    _own(place, 0, 0, 0o711)
    with Peer(user=USER) as peer:
        fails(errno.EACCES, peer.call, "listdir", place)
        peer.call("open", place / "file", os.O_RDONLY)


@case("others")
def changing_names_needs_write(root: Path) -> None:
    """Making, linking, renaming and removing names need write permission of the directory."""
    place = root / "place"
    place.mkdir()
    _own(place / "file", USER, USER, 0o666)
    _own(place, 0, 0, 0o755)
    with Peer(user=USER) as peer:
        fails(errno.EACCES, peer.call, "open", place / "new", CREATE)
        fails(errno.EACCES, peer.call, "os.mkdir", place / "new")
        fails(errno.EACCES, peer.call, "os.symlink", "target", place / "new")
        fails(errno.EACCES, peer.call, "os.mkfifo", place / "new")
        fails(errno.EACCES, peer.call, "os.link", place / "file", place / "new")
        fails(errno.EACCES, peer.call, "os.rename", place / "file", place / "new")
        fails(errno.EACCES, peer.call, "unlink", place / "file")
    equal(os.listdir(place), ["file"])


@case("others")
def rename_needs_write_of_both_directories(root: Path) -> None:
    """A file moves only between directories that both may be written."""
    for name in ("closed", "open"):
        (root / name).mkdir()
    (root / "open").chmod(0o777)
    for name in ("closed", "open"):
        _own(root / name / "file", USER, USER, 0o666)
    with Peer(user=USER) as peer:
        for source, target in (("closed", "open"), ("open", "closed")):
            words = (root / source / "file", root / target / "moved")
            fails(errno.EACCES, peer.call, "os.rename", *words)


@case("others")
def moving_a_directory_needs_write_of_it(root: Path) -> None:
    """A directory that one may not write cannot be moved to another parent (its ``..`` would
    change), but renamed in its parent."""
    for name in ("one", "two"):
        (root / name).mkdir()
        _own(root / name, USER, USER, 0o777)
    (root / "one" / "moved").mkdir()
    _own(root / "one" / "moved", 0, 0, 0o755)
    with Peer(user=USER) as peer:
        words = (root / "one" / "moved", root / "two" / "moved")
        fails(errno.EACCES, peer.call, "os.rename", *words)
        peer.call("os.rename", root / "one" / "moved", root / "one" / "renamed")


@case("others")
def sticky_directory_and_rename(root: Path) -> None:
    """In a sticky directory nobody renames what is another's, nor over it; the directory's owner
    may."""
    _own(root, OTHER, OTHER, 0o1777)
    for name in ("a", "b", "c"):
        _own(root / name, 0, 0, 0o666)
    _own(root / "mine", USER, USER, 0o666)
    with Peer(user=USER) as peer:
        fails(errno.EPERM, peer.call, "os.rename", root / "a", root / "new")
        fails(errno.EPERM, peer.call, "os.rename", root / "mine", root / "a")
        peer.call("os.rename", root / "mine", root / "moved")
    with Peer(user=OTHER) as peer:
        peer.call("os.rename", root / "a", root / "b")
        peer.call("unlink", root / "c")
    equal(sorted(os.listdir(root)), ["b", "moved"])


@case("others")
def sticky_directory_and_directories(root: Path) -> None:
    """In a sticky directory nobody removes another's empty directory."""
    _own(root, 0, 0, 0o1777)
    (root / "theirs").mkdir()
    _own(root / "theirs", OTHER, OTHER, 0o777)
    with Peer(user=USER) as peer:
        fails(errno.EPERM, peer.call, "os.rmdir", root / "theirs")
    with Peer(user=OTHER) as peer:
        peer.call("os.rmdir", root / "theirs")


@case("others")
def new_files_belong_to_their_maker(root: Path) -> None:
    """What a user makes belongs to him and his group, of whatever kind it is."""
    _own(root, 0, 0, 0o777)
    with Peer(user=USER, group=GROUP) as peer:
        peer.call("open", root / "file", CREATE)
        peer.call("os.mkdir", root / "directory")
        peer.call("os.symlink", "target", root / "link")
        peer.call("os.mkfifo", root / "fifo")
    for name in ("file", "directory", "link", "fifo"):
        status = os.lstat(root / name)
        equal((status.st_uid, status.st_gid), (USER, GROUP), name)


@case("others")
def chown_is_for_root(root: Path) -> None:
    """The owner gives a file to no other user, and to no group that he is not in; to one that he
    is in he may."""
    path = _own(root / "file", USER, USER, 0o666)
    with Peer(user=USER, groups=(GROUP,)) as peer:
        fails(errno.EPERM, peer.call, "os.chown", path, OTHER, -1)
        fails(errno.EPERM, peer.call, "os.chown", path, -1, 54321)
        peer.call("os.chown", path, -1, GROUP)
        peer.call("os.chown", path, USER, GROUP)
    equal((os.stat(path).st_uid, os.stat(path).st_gid), (USER, GROUP))


@case("others")
def chown_by_others_is_eperm(root: Path) -> None:
    """Who does not own a file changes neither owner, group nor mode."""
    path = _own(root / "file", OTHER, OTHER, 0o777)
    with Peer(user=USER) as peer:
        fails(errno.EPERM, peer.call, "os.chown", path, -1, USER)
        fails(errno.EPERM, peer.call, "os.chown", path, USER, -1)
        fails(errno.EPERM, peer.call, "chmod", path, 0o600)
    equal(_mode(path), 0o777)


@case("others")
def chmod_drops_setgid_of_a_foreign_group(root: Path) -> None:
    """chmod by an owner who is not in the file's group leaves set-group-ID off, without an
    error."""
    path = _own(root / "file", USER, GROUP, 0o644)
    with Peer(user=USER) as peer:
        peer.call("chmod", path, 0o2755)
        equal(_mode(path), 0o755)
    with Peer(user=USER, groups=(GROUP,)) as peer:
        peer.call("chmod", path, 0o2755)
        equal(_mode(path), 0o2755)


@case("others")
def chown_by_the_owner_drops_set_id_bits(root: Path) -> None:
    """A change of group by the owner drops set-user-ID and executable set-group-ID."""
    path = _own(root / "file", USER, USER, 0o6775)
    with Peer(user=USER, groups=(GROUP,)) as peer:
        peer.call("os.chown", path, -1, GROUP)
    equal(_mode(path), 0o775)


@case("others")
def setgid_without_execution_stays(root: Path) -> None:
    """Set-group-ID of a file that its group cannot execute is no right, and stays when others
    write."""
    path = _own(root / "file", 0, 0, 0o2666)
    with Peer(user=USER, groups=(0,)) as peer:
        fd = peer.call("open", path, os.O_WRONLY)
        peer.call("write", fd, "x", 0)
    equal(_mode(path), 0o2666)


@case("others")
def setgid_directory_and_strangers(root: Path) -> None:
    """In a set-group-ID directory what a stranger makes has its group; an executable file that he
    makes does not get the bit by asking."""
    _own(root, 0, GROUP, 0o2777)
    with Peer(user=USER, umask=0) as peer:
        peer.call("open", root / "file", CREATE, 0o2775)
        peer.call("os.mkdir", root / "directory", 0o777)
    equal(os.stat(root / "file").st_gid, GROUP)
    equal(_mode(root / "file"), 0o775)
    equal(os.stat(root / "directory").st_gid, GROUP)
    equal(_mode(root / "directory"), 0o2777)


@case("others")
def times_of_others(root: Path) -> None:
    """Who may write a file sets its times to now; any other time is its owner's to set."""
    path = _own(root / "file", 0, 0, 0o666)
    os.utime(path, ns=(1, 1))
    with Peer(user=USER) as peer:
        fails(errno.EPERM, peer.call, "os.utime", path, [5, 5])
        peer.call("os.utime", path)
        holds(os.stat(path).st_mtime_ns > 10**18, "the present")
        os.chmod(path, 0o644)
        fails(errno.EACCES, peer.call, "os.utime", path)


@case("others")
def access_of_another_user(root: Path) -> None:
    """access tells a user what open would."""
    path = _own(root / "file", USER, GROUP, 0o451)
    with Peer(user=USER) as peer:
        for mode, allowed in ((os.R_OK, True), (os.W_OK, False), (os.X_OK, False)):
            equal(peer.call("os.access", path, mode), allowed, f"owner, {mode}")
    with Peer(user=OTHER, groups=(GROUP,)) as peer:
        for mode, allowed in ((os.R_OK, True), (os.W_OK, False), (os.X_OK, True)):
            equal(peer.call("os.access", path, mode), allowed, f"group, {mode}")
    with Peer(user=OTHER) as peer:
        for mode, allowed in ((os.R_OK, False), (os.W_OK, False), (os.X_OK, True)):
            equal(peer.call("os.access", path, mode), allowed, f"others, {mode}")


@case("others")
def open_descriptor_keeps_its_rights(root: Path) -> None:
    """Rights are asked for when a file is opened: what is taken away later leaves an open
    descriptor as it is."""
    path = _own(root / "file", 0, 0, 0o666)
    with Peer(user=USER) as peer:
        fd = peer.call("open", path, os.O_RDWR)
        os.chmod(path, 0)
        equal(peer.call("read", fd, 7, 0), "content")
        peer.call("write", fd, "changed", 0)
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)
    equal(path.read_bytes(), b"changed")


@case("root")
def root_passes_modes(root: Path) -> None:
    """Root reads, writes, lists and enters whatever the mode says."""
    (root / "place").mkdir()
    path = _own(root / "place" / "file", USER, USER, 0)
    _own(root / "place", USER, USER, 0)
    equal(os.listdir(root / "place"), ["file"])
    with opened(path, os.O_RDWR) as fd:
        equal(os.read(fd, 10), b"content")
    holds(not os.access(path, os.X_OK), "nobody may execute it")


@case("others")
def removing_needs_no_right_to_the_file(root: Path) -> None:
    """Who may write a directory removes and renames files there that he cannot read."""
    _own(root, USER, USER, 0o755)
    for name in ("one", "two"):
        _own(root / name, 0, 0, 0)
    with Peer(user=USER) as peer:
        peer.call("unlink", root / "one")
        peer.call("os.rename", root / "two", root / "three")
    equal(os.listdir(root), ["three"])
