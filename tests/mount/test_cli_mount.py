# SPDX-License-Identifier: Apache-2.0
"""The command line with real mounts of real images."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.control import PING, UNMOUNT, ControlClient, ControlError, records
from penstock.sys.mountinfo import find_mount
from tests.support.commands import (
    COMMAND,
    contained_servers_of,
    good,
    is_gone,
    mount_flags,
    penstock,
    refused,
    server_of,
    wait_for,
)
from tests.support.images import MIB, copy_image, run
from tests.support.ordinary import OrdinaryUser

pytestmark = pytest.mark.requires("mke2fs")

ROOT = os.geteuid() == 0


def test_mount_use_unmount(image: Path, tree: Path, mountpoint: Path) -> None:
    assert good("mount", image, mountpoint) == ""
    # Usable at once, and all of it is there.
    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", str(tree), str(mountpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    differences = [
        line
        for line in compared.stdout.splitlines()
        if "lost+found" not in line and "is a fifo" not in line and "special file" not in line
    ]
    assert differences == []
    entry = find_mount(str(mountpoint))
    assert entry is not None
    assert (entry.fstype, entry.source) == ("fuse.penstock", str(image))
    assert {"ro", "nosuid", "nodev"} <= mount_flags(mountpoint)
    pid = server_of(mountpoint)
    assert good("umount", mountpoint) == ""
    assert find_mount(str(mountpoint)) is None
    assert is_gone(pid)
    assert json.loads(good("list", "--json")) == [] or str(mountpoint) not in good("list", "--json")


def test_list_and_stats(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    (mountpoint / "size4096").read_bytes()
    (row,) = [r for r in json.loads(good("list", "--json")) if r["mountpoint"] == str(mountpoint)]
    assert (row["state"], row["source"], row["type"]) == ("mounted", str(image), "ext4")
    assert str(mountpoint) in good("list")
    statistics = json.loads(good("stats", "--json", mountpoint))
    for key in (
        "source", "type", "datapath", "datapath_reasons", "opens", "requests", "backing_files",
        "sandbox", "uptime_seconds",
    ):  # fmt: skip
        assert key in statistics
    assert statistics["source"] == str(image)
    assert statistics["requests"]["LOOKUP"]["count"] >= 1
    assert sum(statistics["opens"].values() or [statistics["reads"]["copy"]["reads"]]) >= 1
    assert statistics["uptime_seconds"] > 0
    shown = good("stats", mountpoint)
    assert "LOOKUP " in shown
    assert "data path" in shown
    good("umount", mountpoint)


def test_umount_of_the_system(image: Path, mountpoint: Path) -> None:
    """umount(8) alone ends the server too."""
    good("mount", image, mountpoint)
    pid = server_of(mountpoint)
    run("umount", mountpoint)
    wait_for(lambda: is_gone(pid), "end of the server")
    assert not [row for row in json.loads(good("list", "--json")) if row["pid"] == pid]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("foreground", [True, False])
def test_signals_unmount(
    image: Path, mountpoint: Path, number: signal.Signals, foreground: bool
) -> None:
    if foreground:
        process = subprocess.Popen([*COMMAND, "mount", "-f", str(image), str(mountpoint)])
        wait_for(lambda: find_mount(str(mountpoint)), "mount")
        wait_for(lambda: good("list", "--json").count(str(mountpoint)), "record")
        process.send_signal(number)
        assert process.wait(20) == 0
    else:
        good("mount", image, mountpoint)
        pid = server_of(mountpoint)
        os.kill(pid, number)
        wait_for(lambda: is_gone(pid), "end of the server")
    assert find_mount(str(mountpoint)) is None


def test_signal_while_in_use(image: Path, mountpoint: Path) -> None:
    """The mount goes out of the tree, its users get an error, and nobody hangs."""
    good("mount", image, mountpoint)
    pid = server_of(mountpoint)
    user = os.open(mountpoint, os.O_RDONLY)
    try:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: is_gone(pid), "end of the server")
        assert find_mount(str(mountpoint)) is None
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.stat("many/none", dir_fd=user)
    finally:
        os.close(user)


def test_busy(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    pid = server_of(mountpoint)
    user = subprocess.Popen(["sleep", "1000"], cwd=mountpoint)
    try:
        code, line = refused("umount", mountpoint)
        assert code == 32
        assert line.startswith(f"{mountpoint}: is busy: in use by sleep ({user.pid})")
        assert good("umount", "--lazy", mountpoint) == ""
        assert find_mount(str(mountpoint)) is None
        (row,) = [row for row in json.loads(good("list", "--json")) if row["pid"] == pid]
        assert row["state"] == "detached"
    finally:
        user.kill()
        user.wait()
    wait_for(lambda: is_gone(pid), "end of the server")


def test_unmount_over_the_control_socket(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    listed = next(item for item in records() if item.record.mountpoint == str(mountpoint))
    client = ControlClient(listed)
    assert client.call(PING) == {"pid": listed.record.pid}
    user = os.open(mountpoint, os.O_RDONLY)
    try:
        with pytest.raises(ControlError, match="busy"):
            client.call(UNMOUNT)
    finally:
        os.close(user)
    assert client.call(UNMOUNT, timeout=20) == {}
    wait_for(lambda: is_gone(listed.record.pid), "end of the server")
    assert find_mount(str(mountpoint)) is None


def test_a_killed_server_takes_its_mount_along(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    broker = server_of(mountpoint)
    (server,) = contained_servers_of(mountpoint)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: is_gone(broker), "end of the broker")
    assert find_mount(str(mountpoint)) is None
    assert not [row for row in json.loads(good("list", "--json")) if row["pid"] == broker]
    assert os.listdir(mountpoint) == []


def test_a_crashed_mount_that_is_kept(image: Path, mountpoint: Path) -> None:
    good("mount", "-o", "crash=keep", image, mountpoint)
    broker = server_of(mountpoint)
    (server,) = contained_servers_of(mountpoint)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: is_gone(broker), "end of the broker")
    (row,) = [row for row in json.loads(good("list", "--json")) if row["pid"] == broker]
    assert row["state"] == "stale"
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mountpoint)
    assert refused("stats", mountpoint)[1] == (
        f"{mountpoint}: its server has died; run: penstock umount {mountpoint}"
    )
    good("umount", mountpoint)
    assert find_mount(str(mountpoint)) is None
    assert not [row for row in json.loads(good("list", "--json")) if row["pid"] == broker]


def test_a_stale_mount_is_replaced(image: Path, mountpoint: Path) -> None:
    good("mount", "-o", "crash=keep", image, mountpoint)
    broker = server_of(mountpoint)
    (server,) = contained_servers_of(mountpoint)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: is_gone(broker), "end of the broker")
    done = penstock("mount", image, mountpoint)
    assert done.returncode == 0
    assert "has been taken away" in done.stderr
    assert (mountpoint / "size59").exists()
    good("umount", mountpoint)


def test_nothing_waits_for_a_stopped_server(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    pid = server_of(mountpoint)
    os.kill(pid, signal.SIGSTOP)
    for words in (
        ["list"],
        ["stats", mountpoint],
        ["mount", image, mountpoint],
        ["umount", mountpoint],
    ):
        begun = time.monotonic()
        done = penstock(*words)
        assert time.monotonic() - begun < 4, words
        expected = {"list": 0, "stats": 2, "mount": 32, "umount": 0}[str(words[0])]
        assert done.returncode == expected, done.stderr
        assert done.stderr.count("\n") == (expected != 0)
    assert find_mount(str(mountpoint)) is None
    assert is_gone(pid)


def test_refusals(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.img"
    truncated.write_bytes(b"")
    with image.open("rb") as source:
        truncated.write_bytes(source.read(8 * MIB))
    (tmp_path / "empty").touch()
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    (tmp_path / "text").write_text("hello" * 1000)
    cases = {
        "/dev/null": "is neither a regular file nor a block device",
        str(truncated): "truncated",
        str(tmp_path / "empty"): "is empty",
        str(tmp_path / "zeros"): "is no filesystem that penstock knows",
        str(tmp_path / "text"): "is no filesystem that penstock knows",
        str(tmp_path / "none"): "no such file or directory",
    }
    for named, reason in cases.items():
        for extra in ([], ["-f"]):
            code, line = refused("mount", *extra, named, mountpoint)
            assert code == 32
            assert line.startswith(f"{named}: ")
            assert reason in line
    assert find_mount(str(mountpoint)) is None


@pytest.mark.requires("mkfs-xfs")
def test_xfs_is_named(mountpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "xfs.img"
    run("mkfs.xfs", "-q", "-d", f"file,name={image},size={512 * MIB}")
    code, line = refused("mount", image, mountpoint)
    assert code == 32
    assert line.startswith(f"{image}: is an XFS filesystem, not ext")
    assert json.loads(good("info", "--json", image))["type"] == "xfs"


def test_bad_mount_points(image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in {
        "none": "the mount point does not exist",
        "file": "the mount point is not a directory",
        "file/below": "the mount point does not exist",
    }.items():
        assert refused("mount", image, tmp_path / name) == (32, f"{tmp_path / name}: {reason}")


def test_wrong_words(image: Path, mountpoint: Path) -> None:
    for word, reason in {
        "nonsense": "unknown option 'nonsense' for ext4 (see penstock mount -o help)",
        "partition=x": "partition=x",
        "workers=0": "is not in 1 to",
        "poll=sometimes": "is neither auto nor off",
        "datapath=passthrough": "is for directories",
        "datapath=odd": "not one of",
    }.items():
        code, line = refused("mount", "-o", word, image, mountpoint)
        assert (code, reason in line) == (1, True), line
    assert refused("mount", "-t", "zfs", image, mountpoint) == (
        1,
        "-t zfs: not one of ext2, ext3, ext4",
    )
    assert refused("mount", "-o", "partition=2", image, mountpoint)[0] == 32
    assert find_mount(str(mountpoint)) is None


def test_second_mount_on_one_point(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    assert refused("mount", image, mountpoint) == (32, f"{mountpoint}: {image} is mounted there")
    good("umount", mountpoint)


def test_symlink_to_the_mount_point(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(mountpoint.name)
    good("mount", image, link)
    assert find_mount(str(mountpoint)) is not None
    assert json.loads(good("stats", "--json", link))["mountpoint"] == str(mountpoint)
    good("umount", link)
    assert find_mount(str(mountpoint)) is None


@pytest.mark.requires("root")
def test_mount_flags(image: Path, mountpoint: Path) -> None:
    done = penstock("mount", "-o", r"rw,suid,dev,noexec,fsname=a\,b,defaults", image, mountpoint)
    assert done.returncode == 0
    assert done.stderr == "penstock: warning: -o rw: accepted, but images are mounted read-only\n"
    flags = mount_flags(mountpoint)
    assert "noexec" in flags
    assert not flags & {"nosuid", "nodev", "rw"}
    entry = find_mount(str(mountpoint))
    assert entry is not None
    assert entry.source == "a,b"
    good("umount", mountpoint)


@pytest.mark.parametrize("how", ["closed", "stdout"])
def test_the_caller_gets_its_streams_back(image: Path, mountpoint: Path, how: str) -> None:
    """A pipe on the command's output ends with the command, not with the mount."""
    redirect = "" if how == "stdout" else "3>&1 4>&2"
    command = f'exec {sys.executable} -m penstock mount "$1" "$2" {redirect}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", str(image), str(mountpoint)],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    good("umount", mountpoint)


def test_unwritable_image(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    copy = copy_image(image, tmp_path / "copy.img")
    copy.chmod(0o444)
    before = copy.stat()
    good("mount", copy, mountpoint)
    (mountpoint / "size4096").read_bytes()
    good("umount", mountpoint)
    after = copy.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def disk_with_partitions(path: Path, image: Path) -> Path:
    """An MBR disk: partition 1 is empty, partition 2 holds the image."""
    size = image.stat().st_size
    entries = ((0x83, 2048, 4096), (0x83, 8192, size // 512))
    table = b"".join(
        struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start, sectors)
        for kind, start, sectors in entries
    )
    with image.open("rb") as source, path.open("wb") as disk:
        disk.truncate(size + 8 * MIB)
        disk.seek(446)
        disk.write(table.ljust(64, b"\0") + b"\x55\xaa")
        disk.seek(8192 * 512)
        while piece := source.read(MIB):
            disk.write(piece)
    return path


def test_partitions(image: Path, mountpoint: Path, tmp_path: Path) -> None:
    disk = disk_with_partitions(tmp_path / "disk.img", image)
    code, line = refused("mount", disk, mountpoint)
    assert (code, "choose one with -o partition=N" in line) == (32, True)
    described = json.loads(good("info", "--json", disk))
    assert described["type"] == "mbr"
    assert [row["number"] for row in described["partitions"]] == [1, 2]
    assert described["partitions"][1]["holds"] == "ext4"
    assert described["partitions"][1]["start"] == 8192 * 512
    assert "PARTITION" in good("info", disk)
    inside = json.loads(good("info", "--json", "--partition", "2", disk))
    assert inside["filesystem"]["type"] == "ext4"
    assert good("cat", "-p", "2", f"{disk}:/size59") == good("cat", f"{image}:/size59")
    good("mount", "-o", "partition=2", disk, mountpoint)
    assert (mountpoint / "size59").read_bytes() == good("cat", f"{image}:/size59").encode()
    good("umount", mountpoint)


def test_info(image: Path) -> None:
    described = json.loads(good("info", "--json", image))
    assert (described["type"], described["size"]) == ("ext4", 128 * MIB)
    filesystem = described["filesystem"]
    assert "has_journal" in filesystem["features"]
    assert filesystem["journal"]["state"] == "clean"
    assert filesystem["state"] == "clean"
    assert filesystem["uuid"] == described["uuid"]
    shown = good("info", image)
    assert "has_journal" in shown
    assert described["uuid"] in shown


def test_ls_against_the_kernel(image: Path, mountpoint: Path) -> None:
    good("mount", image, mountpoint)
    rows = {row["path"]: row for row in json.loads(good("ls", "-aR", "--json", image))}
    seen = {}
    for folder, folders, files in os.walk(mountpoint):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            seen["/" + os.path.relpath(path, mountpoint)] = os.lstat(path)
    assert set(rows) == set(seen)
    for path, info in seen.items():
        row = rows[path]
        assert (row["inode"], row["links"], row["size"]) == (
            info.st_ino,
            info.st_nlink,
            info.st_size,
        )
        assert (int(row["mode"], 8), row["mtime_ns"]) == (info.st_mode & 0o7777, info.st_mtime_ns)
        assert (row["uid"], row["gid"]) == (info.st_uid, info.st_gid)
        if os.path.islink(mountpoint / path[1:]):
            assert row["target"] == os.readlink(mountpoint / path[1:])
    good("umount", mountpoint)


def test_cat_and_closed_pipe(image: Path, tree: Path) -> None:
    whole = good("cat", f"{image}:/size300001", f"{image}:/size59")
    assert whole == (tree / "size300001").read_text() + (tree / "size59").read_text()
    command = f'{sys.executable} -m penstock cat "$1" /sparse | head -c 5'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", str(image)],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"islan", b"")


def test_cp_whole_tree(image: Path, tree: Path, tmp_path: Path) -> None:
    done = penstock("cp", image, tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert all("left out" in line or "lost some" in line for line in done.stderr.splitlines())
    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", str(tree), str(tmp_path / "copy")],
        capture_output=True,
        text=True,
        check=False,
    )
    unlike = [
        line
        for line in compared.stdout.splitlines()
        if not any(word in line for word in ("lost+found", "fifo", "special file", "Only in"))
    ]
    assert unlike == []
    rows = {row["path"]: row for row in json.loads(good("ls", "-aR", "--json", image))}
    for name in ("size4096", "many", "sparse", "time0", "time6", "empty-dir", "symlink58"):
        copied, row = os.lstat(tmp_path / "copy" / name), rows[f"/{name}"]
        assert (copied.st_mode & 0o7777, copied.st_mtime_ns) == (
            int(row["mode"], 8),
            row["mtime_ns"],
        )
    assert os.stat(tmp_path / "copy" / "setuid").st_mode & 0o7777 == 0o755
    assert os.stat(tmp_path / "copy/hard-a").st_ino == os.stat(tmp_path / "copy/hard-b").st_ino
    assert os.stat(tmp_path / "copy" / "sparse").st_blocks * 512 < MIB


@pytest.mark.requires("ordinary-user")
def test_reading_as_an_ordinary_user(image: Path, ordinary_user: OrdinaryUser) -> None:
    copy = copy_image(image, ordinary_user.home / "readable.img")
    copy.chmod(0o444)
    for words in (["info", "--json"], ["ls", "-Rl"], ["cat"]):
        target = {"info": f"{copy}", "ls": f"{copy}:/many", "cat": f"{copy}:/size59"}[words[0]]
        process = ordinary_user.popen([*ordinary_user.penstock, *words, target])
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out
    copy.unlink()


def as_user(user: OrdinaryUser, *words: str | Path) -> tuple[int, str, str]:
    process = user.popen([*user.penstock, *map(str, words)])
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_mount_as_an_ordinary_user(
    image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None
) -> None:
    copy = copy_image(image, ordinary_user.home / "theirs.img")
    copy.chmod(0o444)
    place = ordinary_user.home / "mnt"
    place.mkdir()
    os.chown(place, ordinary_user.uid, ordinary_user.gid)
    try:
        code, _, err = as_user(ordinary_user, "mount", "-o", "suid", copy, place)
        assert (code, err) == (1, "penstock: -o suid: is for root only\n")
        assert as_user(ordinary_user, "mount", copy, place) == (0, "", "")
        assert {"nosuid", "nodev"} <= mount_flags(place)
        code, out, _ = as_user(ordinary_user, "list", "--json")
        assert [row["mountpoint"] for row in json.loads(out)] == [str(place)]
        assert str(place) in good("list")  # root sees everybody's
        assert as_user(ordinary_user, "stats", place)[0] == 0
        assert as_user(ordinary_user, "umount", place) == (0, "", "")
        assert find_mount(str(place)) is None
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            if find_mount(str(place)) is not None:
                subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()
        copy.unlink()


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_doctor_without_the_device(ordinary_user: OrdinaryUser, dev_fuse_for_root: None) -> None:
    code, out, err = as_user(ordinary_user, "doctor", "--json")
    assert (code, err) == (0, "")
    features = {feature["name"]: feature for feature in json.loads(out)["features"]}
    for name in ("fuse-device", "fuse-protocol", "sync-init"):
        assert features[name]["user"] is False
        assert features[name]["enable"]
    assert "fusermount3" in features["fuse-protocol"]["detail"]
    assert features["fusermount3"]["user"] is False
    assert "/dev/fuse: permission denied" in features["fusermount3"]["detail"]
    assert not list(Path("/tmp").glob("penstock-doctor-*"))


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_doctor_through_fusermount3(ordinary_user: OrdinaryUser, dev_fuse_for_all: None) -> None:
    """The way for users who may not have user namespaces."""
    script = "from penstock.cli.probes import connection as c; print(c._with_fusermount().value)"
    process = ordinary_user.popen([ordinary_user.python, "-c", script])
    out, err = process.communicate(timeout=60)
    assert err == ""
    assert "'minor': " in out
    assert not list(Path("/tmp").glob("penstock-doctor-*"))
    assert "penstock-doctor" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.requires("ordinary-user", "root")
def test_others_mounts_are_not_theirs(
    image: Path, mountpoint: Path, ordinary_user: OrdinaryUser
) -> None:
    for part in (mountpoint, *mountpoint.parents):
        if part.owner() == "root" and str(part).startswith("/tmp/") and part != Path("/tmp"):
            part.chmod(0o755)
    good("mount", image, mountpoint)
    code, _, err = as_user(ordinary_user, "umount", mountpoint)
    refusal = f"penstock: {mountpoint}: root mounted it; ask them or use sudo\n"
    assert (code, err) == (32, refusal)
    assert as_user(ordinary_user, "stats", mountpoint) == (2, "", refusal)
    assert json.loads(as_user(ordinary_user, "list", "--json")[1]) == []
    good("umount", mountpoint)
