# SPDX-License-Identifier: Apache-2.0
"""ls, cat and cp against filesystems in memory, among them ones made to do harm."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import images
from penstock.cli.commands import ls
from penstock.cli.extract import Extractor, Preserve, Skipped
from penstock.cli.main import main
from penstock.cli.options import Words
from penstock.client import Client
from penstock.datapath import Paths
from penstock.fs import Context, FsError, NodeId
from penstock.transport import MemoryTransport
from tests.support.trees import Item, PlusTreeFilesystem, TreeFilesystem

ROOT = os.geteuid() == 0
TIME = 1_600_000_000_123_456_789
NO_WORDS = Words({}, {}, [])


class Image:
    """What every image on the command line holds for the length of a test."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.filesystem = TreeFilesystem({})

    def hold(self, tree: Mapping[str | bytes, Any] | TreeFilesystem) -> None:
        """Set it."""
        held = tree if isinstance(tree, TreeFilesystem) else PlusTreeFilesystem(tree)
        self.filesystem = held


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    path = tmp_path / "disk.img"
    path.touch()
    made = Image(path)

    @contextmanager
    def open_client(_path: str, _type: str | None, _words: Words) -> Iterator[Client]:
        with (
            MemoryTransport(made.filesystem, datapaths=Paths("copy")) as transport,
            Client(transport) as client,
        ):
            yield client

    monkeypatch.setattr(images, "open_client", open_client)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    return made


def tree() -> dict[str | bytes, Any]:
    hard = Item(b"linked")
    return {
        "file": Item(b"content\n", mode=0o640),
        ".hidden": b"h",
        "dir": {"b": b"bb", "a": {"deep": b"d"}, "hard": hard},
        "hard": hard,
        "link": "dir/b",
        "dangling": "/etc/passwd",
        b"odd\x1b\xff": b"",
        "null": Item(b"", kind=stat.S_IFCHR, rdev=0x103),
    }


# ls


def test_ls(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image.hold(tree())
    assert main(["ls", image.path]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert lines == [b"dangling", b"dir", b"file", b"hard", b"link", b"null", b"odd\x1b\xff"]
    assert main(["ls", "-a", image.path + ":/", "dir", "/file"]) == 0
    out = capfdbinary.readouterr().out
    assert b".hidden\n" in out
    assert f"{image.path}:dir:\na\nb\nhard\n".encode() in out
    assert out.endswith(b"/file\n")


def test_ls_on_a_terminal(
    image: Image, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    image.hold({b"odd\x1b\xff": b"", "link\n": "to\x1b"})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["ls", "-l", image.path]) == 0
    out = capfdbinary.readouterr().out
    assert b"odd??" in out
    assert b"link? -> to?" in out


def test_ls_long(
    image: Image, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    image.hold(tree())
    assert main(["ls", "-l", image.path, "/file", "/null", "/link", "/dir/hard"]) == 0
    text = capfdbinary.readouterr().out.decode()
    assert "-rw-r----- 1 0 0 8 2020-09-13 12:26 /file\n" in text
    assert "crw-r--r-- 1 0 0 1, 3 2020-09-13 12:26 /null\n" in text
    assert "/link -> dir/b\n" in text
    assert "-rw-r--r-- 2 " in text
    assert main(["ls", "-ld", image.path, "/dir"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"drwxr-xr-x ")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0"), (1023, "1023"), (1024, "1.0K"), (1025, "1.1K"), (10189, "10K"), (10240, "10K"),
        (1048575, "1.0M"), (1048576, "1.0M"), (5 << 30, "5.0G"), (123 << 40, "123T"),
    ],
)  # fmt: skip
def test_sizes_for_people(size: int, shown: str, tmp_path: Path) -> None:
    assert ls._size(size, human=True) == shown
    assert ls._size(size, human=False) == str(size)
    if size < 1 << 40:  # what ls(1) says of a file of this size
        file = tmp_path / "file"
        file.touch()
        os.truncate(file, size)
        said = subprocess.run(["ls", "-lh", file], capture_output=True, text=True, check=True)
        assert said.stdout.split()[4] == shown


def test_ls_options_of_habit(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image.hold({"big": bytes(1536)})
    assert main(["ls", "-1lh", image.path]) == 0
    assert b" 1.5K 2020" in capfdbinary.readouterr().out
    assert main(["ls", "-1", image.path]) == 0
    assert capfdbinary.readouterr().out == b"big\n"
    assert main(["cp", "-a", image.path + ":/big", "big"]) == 0
    assert os.stat("big").st_mtime_ns == TIME


def test_ls_recursive(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image.hold({"a": {"c": {"d": b""}, "b": b""}, "z": {}})
    assert main(["ls", "-R", image.path]) == 0
    out = capfdbinary.readouterr().out.decode().replace(image.path, "I")
    assert out == "I:/:\na\nz\n\nI:/a:\nb\nc\n\nI:/a/c:\nd\n\nI:/z:\n"


def test_ls_json(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image.hold(tree())
    assert main(["ls", "--json", "-R", image.path]) == 0
    out = capfdbinary.readouterr().out
    assert out.isascii()
    rows = {row["path"]: row for row in json.loads(out)}
    assert os.fsdecode(b"/odd\x1b\xff") in rows
    assert rows["/dir/a/deep"]["size"] == 1
    assert rows["/link"]["target"] == "dir/b"
    assert rows["/null"]["device"] == [1, 3]
    assert (rows["/file"]["mode"], rows["/file"]["mtime_ns"]) == ("0640", TIME)
    assert rows["/dir"]["type"] == "directory"


def test_ls_goes_on_after_errors(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    class Broken(PlusTreeFilesystem):
        def listing(self, item: Item) -> list[tuple[bytes, Item]]:
            if item is self.nodes[2]:
                raise FsError(errno.EIO)
            return [*super().listing(item), (b"n" * 300, self.nodes[2])]

    image.hold(Broken({"a": {"x": b""}, "b": {"y": b""}}))
    assert main(["ls", "-R", image.path, "/", "/missing"]) == 2
    said = capfdbinary.readouterr()
    assert b"\ny\n" in said.out
    assert b"n" * 300 not in said.out
    assert len(said.err.splitlines()) == 4  # two refused names, one broken directory, one missing
    assert b"/missing: no such file or directory\n" in said.err


def test_ls_of_a_circle_ends(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    filesystem = PlusTreeFilesystem({"a": {"b": {}}})
    filesystem.nodes[3].content[b"back"] = filesystem.nodes[2]
    image.hold(filesystem)
    assert main(["ls", "-R", image.path]) == 2
    assert b"is met a second time" in capfdbinary.readouterr().err


# cat


def test_cat(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image.hold(
        {**tree(), "holes": Item(b"ab" + bytes(10) + b"c" + bytes(5), holes=((2, 12), (13, 18)))}
    )
    assert main(["cat", image.path + ":/file", "link", "holes"]) == 0
    assert capfdbinary.readouterr().out == b"content\nbbab" + bytes(10) + b"c" + bytes(5)


def test_cat_of_what_is_no_file(image: Image, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image.hold(tree())
    assert main(["cat", image.path, "/dir", "/null", "/none", "/dangling", "/file"]) == 2
    said = capfdbinary.readouterr()
    assert said.out == b"content\n"
    lines = [line.rpartition(b": ")[2] for line in said.err.splitlines()]
    missing = b"no such file or directory"
    assert lines == [b"is a directory", b"is not a regular file", missing, missing]


def test_cp_goes_on_when_nobody_listens(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message into a closed pipe is lost; the other files and the exit code are not."""
    script = (
        "import sys; from penstock.cli import logs; logs.report('lost'); logs.warn('lost too');"
        "sys.exit(2)"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb") as pipe:
        done = subprocess.run([sys.executable, "-c", script], stderr=pipe, check=False)
    assert done.returncode == 2
    image.hold({"a": b"new", "b": b"b"})
    Path("a").write_bytes(b"old")
    lost = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115  closed below
    monkeypatch.setattr("sys.stderr", lost)
    monkeypatch.setattr("penstock.cli.streams.discard", lambda fd: None)
    assert main(["cp", image.path, "."]) == 2
    assert (Path("a").read_bytes(), Path("b").read_bytes()) == (b"old", b"b")
    with pytest.raises(OSError, match="Bad file descriptor"):
        lost.close()


# cp


def snapshot(top: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content or target of everything below a directory."""
    found = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        content = b""
        if stat.S_ISLNK(info.st_mode):
            content = os.readlink(path).encode()
        elif stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(top))] = (info.st_mode, content)
    return found


def test_cp_of_files(image: Image) -> None:
    image.hold(tree())
    assert main(["cp", image.path + ":/file", "."]) == 0
    assert main(["cp", image.path + ":/file", "other"]) == 0
    assert main(["cp", image.path + ":/link", "."]) == 0  # followed, as cp(1) does
    for name in ("file", "other"):
        info = os.stat(name)
        assert (info.st_mode & 0o7777, info.st_mtime_ns) == (0o640, TIME)
        assert Path(name).read_bytes() == b"content\n"
    assert Path("link").read_bytes() == b"bb"
    assert not Path("link").is_symlink()


def test_cp_of_trees(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    image.hold(tree())
    assert main(["cp", image.path, "all"]) == 0
    assert "null: left out: a device node" in capsys.readouterr().err
    found = snapshot(Path("all"))
    assert len(found) == 11
    assert found["dir/a/deep"] == (stat.S_IFREG | 0o644, b"d")
    assert found["dangling"] == (stat.S_IFLNK | 0o777, b"/etc/passwd")
    assert os.lstat("all/dangling").st_mtime_ns == TIME
    assert os.stat("all/hard").st_ino == os.stat("all/dir/hard").st_ino
    assert os.stat("all/dir/a").st_mtime_ns == TIME
    assert os.path.lexists(b"all/odd\x1b\xff")
    assert main(["cp", image.path + ":/dir", "new"]) == 0
    assert main(["cp", image.path + ":/dir", "all"]) == 2  # the files in it are there already
    assert main(["cp", image.path, "/dir/.", "/file", "flat"]) == 1
    os.mkdir("flat")
    assert main(["cp", image.path, "/dir/.", "/file", "flat"]) == 0
    assert sorted(os.listdir("flat")) == ["a", "b", "file", "hard"]


def test_cp_keeps_holes_and_attributes(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    size = 8 << 20
    content = b"head" + bytes(size - 8) + b"tail"
    # The hole ends at a block boundary, as holes do.
    item = Item(content, holes=((4096, size - 4096),))
    item.xattrs = {b"user.kept": b"v", b"trusted.not": b"x"}
    image.hold({"sparse": item, "end": Item(bytes(1 << 20), holes=((0, 1 << 20),))})
    assert main(["cp", image.path + ":/", "o"]) == 0
    assert Path("o/sparse").read_bytes() == content
    assert os.stat("o/sparse").st_blocks * 512 <= 64 * 1024
    assert os.stat("o/end").st_size == 1 << 20
    assert os.stat("o/end").st_blocks == 0
    if "lost some" not in capsys.readouterr().err:
        assert os.listxattr("o/sparse") == ["user.kept"]


def test_cp_preserve(image: Image) -> None:
    image.hold({"s": Item(b"x", mode=0o6755, uid=1234, gid=1235), "d": Item({}, mode=0o7777)})
    assert main(["cp", image.path, "a"]) == 0
    assert os.stat("a/s").st_mode & 0o7777 == 0o755
    assert os.stat("a/d").st_mode & 0o7777 == 0o1777
    assert os.stat("a/s").st_uid == os.geteuid()
    assert main(["cp", "--preserve=all", image.path, "b"]) == 0
    info = os.stat("b/s")
    expected = (0o6755, 1234, 1235) if ROOT else (0o755, os.geteuid(), os.getegid())
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == expected
    before = os.umask(0o027)
    try:
        assert main(["cp", "--preserve=none", image.path, "c"]) == 0
    finally:
        os.umask(before)
    info = os.stat("c/s")
    assert info.st_mode & 0o7777 == 0o750
    assert info.st_mtime_ns != TIME


def test_cp_never_replaces(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    image.hold({"a": b"new", "b": b"new"})
    Path("a").write_bytes(b"old")
    assert main(["cp", image.path, "."]) == 2
    assert (Path("a").read_bytes(), Path("b").read_bytes()) == (b"old", b"new")
    assert "penstock: ./a: File exists\n" in capsys.readouterr().err


def test_cp_of_directories_without_permission(image: Image) -> None:
    """A directory of mode 0 gets its files first and its mode last."""
    image.hold({"d": Item({"x": b"x", "e": Item({"y": b"y"}, mode=0)}, mode=0o500)})
    assert main(["cp", image.path, "o"]) == 0
    assert os.stat("o/d").st_mode & 0o777 == 0o500
    assert stat.S_IMODE(os.lstat("o/d/e").st_mode) == 0
    os.chmod("o/d", 0o700)
    os.chmod("o/d/e", 0o700)
    assert Path("o/d/e/y").read_bytes() == b"y"


class Hostile(PlusTreeFilesystem):
    """Lists more names in its root than its tree has."""

    extra: tuple[tuple[bytes, int], ...] = ()

    def listing(self, item: Item) -> list[tuple[bytes, Item]]:
        more = [(name, self.nodes[node]) for name, node in self.extra] if item is self.root else []
        return [*super().listing(item), *more]


def outside(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("name", [b"../escaped", b"/tmp/penstock-escaped", b"sub/../../escaped"])
def test_names_do_not_lead_out(
    image: Image, name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filesystem = Hostile({"good": b"g"})
    filesystem.extra = ((name, 2),)
    image.hold(filesystem)
    assert main(["cp", image.path, "o"]) == 2
    assert outside(tmp_path) == {"disk.img", "out", "out/o", "out/o/good"}
    assert not os.path.exists("/tmp/penstock-escaped")
    assert capsys.readouterr().err.count("\n") == 1


def test_links_do_not_lead_out(image: Image, tmp_path: Path) -> None:
    """A symlink, and then a directory and a file of the same name."""
    (tmp_path / "victim").mkdir()
    filesystem = Hostile(
        {"l": str(tmp_path / "victim"), "other": {"evil": b"e"}, "f": b"written", "z": "l/f"}
    )
    filesystem.extra = ((b"l", 3), (b"l", 5), (b"z", 5))
    image.hold(filesystem)
    assert main(["cp", image.path, "o"]) == 2
    assert os.listdir(tmp_path / "victim") == []
    assert sorted(os.listdir("o")) == ["f", "l", "other", "z"]
    assert Path("o/l").is_symlink()
    assert os.readlink("o/z") == "l/f"


def test_existing_links_are_not_followed(image: Image, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    Path("o").mkdir()
    Path("o/d").symlink_to(tmp_path / "victim")
    Path("o/f").symlink_to(tmp_path / "victim" / "f")
    image.hold({"d": {"evil": b"e", "sub": {"deep": b""}}, "f": b"x"})
    assert main(["cp", image.path + ":/.", "o"]) == 2
    assert os.listdir(tmp_path / "victim") == []


def test_hard_links_stay_inside(image: Image, tmp_path: Path) -> None:
    """Two names of one inode, the first of which could not be made."""
    (tmp_path / "secret").write_bytes(b"s")
    Path("o").mkdir()
    Path("o/a").symlink_to(tmp_path / "secret")
    hard = Item(b"mine")
    image.hold({"a": hard, "b": hard, "c": hard})
    assert main(["cp", image.path + ":/.", "o"]) == 2
    assert Path("o/b").read_bytes() == b"mine"
    assert os.stat("o/b").st_ino == os.stat("o/c").st_ino
    assert os.stat(tmp_path / "secret").st_nlink == 1


def test_unreadable_files_leave_nothing(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(PlusTreeFilesystem):
        def read(self, ctx: Context, nodeid: NodeId, *rest: Any) -> bytes:
            if nodeid == 2:
                raise FsError(errno.EIO)
            return super().read(ctx, nodeid, *rest)

    image.hold(Broken({"a": b"bad", "b": b"good"}))
    assert main(["cp", image.path, "o"]) == 2
    assert os.listdir("o") == ["b"]
    assert capsys.readouterr().err == "penstock: o/a: Input/output error\n"


def test_full_destination_ends_the_copy(
    image: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    image.hold({"a": b"1", "b": b"2"})
    monkeypatch.setattr(os, "pwrite", full)
    assert main(["cp", image.path, "o"]) == 2
    assert os.listdir("o") == []
    assert capsys.readouterr().err == "penstock: o/a: No space left on device\n"


def test_cp_progress_on_a_terminal(
    image: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image.hold(tree())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["cp", image.path, "o"]) == 0
    assert "\x1b[" in capsys.readouterr().err
    assert main(["cp", "-q", image.path, "p"]) == 0
    assert "\x1b[" not in capsys.readouterr().err


def test_progress_counts_every_byte(image: Image) -> None:
    hard = Item(b"h" * 10)
    image.hold({"a": b"x" * 100, "s": Item(bytes(1000), holes=((0, 1000),)), "h": hard, "i": hard})
    done: list[int] = []
    with images.open_client("", None, NO_WORDS) as client:
        root = os.open(".", os.O_RDONLY)
        extractor = Extractor(client, root, Preserve.DEFAULT, done.append)
        for found in client.tree(client.root):
            extractor.extract(found.path, found.node)
        extractor.close()
        os.close(root)
    assert sum(done) == 100 + 1000 + 10 + 10


def test_extractor_checks_names_itself(image: Image) -> None:
    image.hold({"a": b"", "sock": Item(b"", kind=stat.S_IFSOCK)})
    with images.open_client("", None, NO_WORDS) as client:
        root = os.open(".", os.O_RDONLY)
        extractor = Extractor(client, root)
        for path in ((b"..",), (b"x", b"..", b"y"), (b"a/b",), (b"",)):
            with pytest.raises(OSError, match=r"name|called"):
                extractor.extract(path, client.resolve(b"a"))
        with pytest.raises(Skipped, match="a socket"):
            extractor.extract((b"sock",), client.resolve(b"sock"))
        extractor.close()
        os.close(root)
    assert os.listdir(".") == []


@pytest.mark.skipif(not ROOT, reason="only root makes device nodes")
def test_device_nodes_for_root_who_asks(image: Image) -> None:
    image.hold({"n": Item(b"", kind=stat.S_IFCHR, rdev=0x103), "p": Item(b"", kind=stat.S_IFIFO)})
    assert main(["cp", "--preserve=all", image.path, "o"]) == 0
    info = os.stat("o/n")
    assert (info.st_rdev, info.st_mtime_ns) == (os.makedev(1, 3), TIME)
    assert stat.S_ISFIFO(os.stat("o/p").st_mode)
