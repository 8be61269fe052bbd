# SPDX-License-Identifier: Apache-2.0
"""The kernel's half in user space, against filesystems that are honest and some that are not."""

from __future__ import annotations

import errno
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.abi.fuse import Opcode
from penstock.client import Client, Found, check_name
from penstock.client.names import split_path
from penstock.datapath import Paths
from penstock.fs import Answer, Attributes, Context, Entry, FsError, NodeId, Operations, Pending
from penstock.transport import MemoryTransport
from penstock.wire import decode_request, encode_error, encode_reply, replies
from tests.support.trees import Item, PlusTreeFilesystem, TreeFilesystem


def make_tree() -> dict[str | bytes, Any]:
    hard = Item(b"linked")
    return {
        "file": b"0123456789" * 1000,
        "empty": b"",
        "dir": {"sub": {"deep": b"x"}, "up": "../file", "hard": hard, "abs": "/dir/sub"},
        "hard": hard,
        "loop": "loop",
        "out": "../../../etc/passwd",
        "chain0": "file",
        **{f"chain{n}": f"chain{n - 1}" for n in range(1, 42)},
        b"caf\xe9": Item(b"", xattrs={b"user.a": b"1", b"user.empty": b""}),
        "fifo": Item(b"", kind=stat.S_IFIFO),
    }


TREE: Final = make_tree()


@contextmanager
def client_of(filesystem: Operations) -> Iterator[Client]:
    with (
        MemoryTransport(filesystem, datapaths=Paths("copy")) as transport,
        Client(transport) as client,
    ):
        yield client


@pytest.fixture(params=[TreeFilesystem, PlusTreeFilesystem])
def filesystem(request: pytest.FixtureRequest) -> TreeFilesystem:
    made: TreeFilesystem = request.param(make_tree())
    return made


@pytest.fixture
def client(filesystem: TreeFilesystem) -> Iterator[Client]:
    with client_of(filesystem) as made:
        yield made


def code_of(action: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno


@pytest.mark.parametrize(
    "path",
    [
        b"dir/sub/deep",
        b"/dir//sub/./deep",
        b"dir/abs/deep",
        b"dir/sub/../sub/deep",
        b"../dir/sub/deep",
        b"dir/../../../dir/sub/deep",
    ],
)
def test_paths(client: Client, path: bytes) -> None:
    assert client.read(client.resolve(path)) == b"x"


def test_symlinks(client: Client) -> None:
    assert client.read(client.resolve(b"dir/up"), 0, 4) == b"0123"
    assert client.resolve(b"dir/up", follow=False).is_link
    assert client.readlink(client.resolve(b"dir/up", follow=False)) == b"../file"
    assert client.resolve(b"dir/abs/").is_dir
    assert client.resolve(b"dir/abs", follow=False).is_link
    assert client.read(client.resolve(b"chain39"), 0, 2) == b"01"  # the fortieth link
    assert code_of(lambda: client.resolve(b"chain40")) == errno.ELOOP
    assert code_of(lambda: client.resolve(b"loop")) == errno.ELOOP
    # The root's parent is the root: no link leads out.
    assert code_of(lambda: client.resolve(b"out")) == errno.ENOENT


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (b"nothing", errno.ENOENT),
        (b"file/x", errno.ENOTDIR),
        (b"file/", errno.ENOTDIR),
        (b"file/.", errno.ENOTDIR),
        (b"file/..", errno.ENOTDIR),
        (b"n" * 256, errno.ENAMETOOLONG),
        (b"n/" * 2048, errno.ENAMETOOLONG),
        (b"a\0b", errno.EINVAL),
    ],
)
def test_bad_paths(client: Client, path: bytes, code: int) -> None:
    assert code_of(lambda: client.resolve(path)) == code


def test_attributes(client: Client, filesystem: TreeFilesystem) -> None:
    node = client.resolve(b"file")
    assert node.attr == client.getattr(node)
    assert (node.attr.size, stat.S_IFMT(node.attr.mode)) == (10_000, stat.S_IFREG)
    statx = client.statx(node)
    assert (statx.size, statx.mode, statx.ino) == (10_000, node.attr.mode, node.attr.ino)
    assert statx.mtime[:2] == (node.attr.mtime, node.attr.mtimensec)
    if isinstance(filesystem, PlusTreeFilesystem):
        assert statx.btime[:2] == (5, 1)
    assert client.root.is_dir
    assert client.statfs().blocks == 11


def test_extended_attributes(client: Client) -> None:
    node = client.resolve(b"caf\xe9")
    assert client.listxattr(node) == [b"user.a", b"user.empty"]
    assert client.getxattr(node, b"user.a") == b"1"
    assert client.getxattr(node, b"user.empty") == b""
    assert code_of(lambda: client.getxattr(node, b"user.b")) == errno.ENODATA
    assert client.listxattr(client.root) == []


def test_reading(client: Client, filesystem: TreeFilesystem) -> None:
    node = client.resolve(b"file")
    content = TREE["file"]
    with client.open(node) as file:
        assert file.read(0, 10_000) == content
        assert file.read(9_995, 100) == content[9_995:]
        assert file.read(20_000, 1) == b""
        assert b"".join(data for _, data in file.chunks()) == content
    file.close()
    assert all(count == 0 for count in filesystem.opened.values())
    assert client.read(client.resolve(b"empty")) == b""
    assert code_of(lambda: client.open(client.root)) == errno.EISDIR
    assert code_of(lambda: client.open(client.resolve(b"fifo"))) == errno.EINVAL


def test_large_files_are_read_in_pieces() -> None:
    content = bytes(range(256)) * (3 << 12) + b"tail"
    filesystem = TreeFilesystem({"big": content})
    with client_of(filesystem) as client:
        assert client.read(client.resolve(b"big")) == content


@pytest.mark.parametrize(
    ("holes", "expected"),
    [
        ((), [(0, 100)]),
        (((0, 10),), [(10, 100)]),
        (((90, 100),), [(0, 90)]),
        (((10, 20), (50, 60)), [(0, 10), (20, 50), (60, 100)]),
        (((0, 100),), []),
    ],
)
def test_holes(holes: tuple[tuple[int, int], ...], expected: list[tuple[int, int]]) -> None:
    content = bytearray(b"d" * 100)
    for start, end in holes:
        content[start:end] = bytes(end - start)
    with client_of(TreeFilesystem({"f": Item(bytes(content), holes=holes)})) as client:
        with client.open(client.resolve(b"f")) as file:
            assert list(file.data_ranges()) == expected
            rebuilt = bytearray(100)
            for offset, data in file.chunks():
                rebuilt[offset : offset + len(data)] = data
        assert rebuilt == content


def test_listing(client: Client, filesystem: TreeFilesystem) -> None:
    expected = {name if isinstance(name, bytes) else name.encode() for name in TREE}
    assert {listing.name for listing in client.readdir(client.root)} == expected
    filesystem.page = 3
    listings = list(client.readdir(client.root))
    assert {listing.name for listing in listings} == expected
    assert len(listings) == len(expected)
    by_name = {listing.name: listing for listing in listings}
    assert by_name[b"dir"].type == stat.S_IFDIR >> 12
    assert code_of(lambda: list(client.readdir(client.resolve(b"file")))) is not None


def walk(client: Client, errors: list[tuple[bytes, int | None]] | None = None) -> list[Found]:
    def on_error(path: bytes, error: OSError) -> None:
        assert errors is not None
        errors.append((path, error.errno))

    return list(client.tree(client.root, None if errors is None else on_error))


def test_tree(client: Client, filesystem: TreeFilesystem) -> None:
    found = walk(client)
    paths = [b"/".join(item.path) for item in found]
    assert len(paths) == len(set(paths)) == len(TREE) + 5
    assert {b"dir", b"dir/sub", b"dir/sub/deep", b"dir/hard", b"hard"} <= set(paths)
    assert paths.index(b"dir") < paths.index(b"dir/sub") < paths.index(b"dir/sub/deep")
    ids = {item.path[-1]: item.node.nodeid for item in found if item.path[-1] == b"hard"}
    assert len(ids) == 1


def test_every_lookup_is_given_back(filesystem: TreeFilesystem) -> None:
    with (
        MemoryTransport(filesystem, datapaths=Paths("copy")) as transport,
        Client(transport) as client,
    ):
        walk(client)
        assert transport.session.statistics().nodes == 0
        half = client.tree(client.root)
        next(half)
        half.close()
        assert transport.session.statistics().nodes <= len(TREE)


def test_answers_that_come_later() -> None:
    class Later(TreeFilesystem):
        def lookup(self, ctx: Context, parent: NodeId, name: bytes) -> Answer[Entry]:  # type: ignore[override]
            pending: Pending[Entry] = Pending()
            entry = super().lookup(ctx, parent, name)
            threading.Timer(0.01, pending.complete, [entry]).start()
            return pending

    with client_of(Later({"a": b"late"})) as client:
        assert client.read(client.resolve(b"a")) == b"late"


# Servers that lie


class Liar(PlusTreeFilesystem):
    """Adds names to the listing of its root."""

    def __init__(self, *names: bytes) -> None:
        super().__init__({"good": b"g", "also": b"a"})
        self.names = names

    def listing(self, item: Item) -> list[tuple[bytes, Item]]:
        return [*super().listing(item), *((name, self.nodes[2]) for name in self.names)]


@pytest.mark.parametrize("name", [b"a/b", b"../x", b"/", b"n" * 256, b"n" * 4000])
@pytest.mark.parametrize("plus", [True, False])
def test_hostile_names_never_come_out(name: bytes, plus: bool) -> None:
    class Plain(Liar):
        readdirplus = Operations.readdirplus

    with client_of(Liar(name) if plus else Plain(name)) as client:
        assert code_of(lambda: list(client.readdir(client.root))) == errno.EUCLEAN
        errors: list[tuple[bytes, int | None]] = []
        found = {item.path[-1] for item in walk(client, errors)}
        assert found == {b"good", b"also"}
        assert [code for _, code in errors] == [errno.EUCLEAN]


def test_dots_are_no_files() -> None:
    for name in (b".", b"..", b"", b"a\0", b"a/b", b"x" * 256):
        assert code_of(partial(check_name, name)) == errno.EUCLEAN
    check_name(b"x" * 255)
    check_name(b"...")


@given(st.binary(max_size=300))
def test_split_path_gives_names_only(path: bytes) -> None:
    try:
        parts = split_path(path)
    except OSError:
        return
    for part in parts:
        if part != b"..":
            check_name(part)


def test_listing_without_end() -> None:
    class Endless(TreeFilesystem):
        def listing(self, item: Item) -> list[tuple[bytes, Item]]:
            return [(b"again", self.nodes[1])]

        def readdir(self, ctx: Any, nodeid: Any, fh: Any, offset: int) -> Any:
            return super().readdir(ctx, nodeid, fh, 0)

    with client_of(Endless({"a": b""})) as client:
        assert code_of(lambda: list(client.readdir(client.root))) == errno.EUCLEAN


def test_circle_of_directories() -> None:
    tree = TreeFilesystem({"a": {"b": {}}, "c": b"after"})
    tree.nodes[3].content[b"back"] = tree.nodes[2]
    tree.nodes[3].content[b"top"] = tree.nodes[1]
    with client_of(tree) as client:
        errors: list[tuple[bytes, int | None]] = []
        paths = [b"/".join(item.path) for item in walk(client, errors)]
        assert paths == [b"a", b"a/b", b"a/b/back", b"a/b/top", b"c"]
        assert errors == [(b"a/b/back", errno.EUCLEAN), (b"a/b/top", errno.EUCLEAN)]


def test_endless_descent() -> None:
    """New directories for ever: the longest path ends it."""

    class Deep(TreeFilesystem):
        def listing(self, item: Item) -> list[tuple[bytes, Item]]:
            if not item.content:
                item.content = {b"d" * 200: self.add({})}
            return list(item.content.items())

    with client_of(Deep({})) as client:
        errors: list[tuple[bytes, int | None]] = []
        assert len(walk(client, errors)) == 21
        assert [code for _, code in errors] == [errno.ENAMETOOLONG]


@pytest.mark.parametrize(
    "attr",
    [
        Attributes.make(1, 0o644),
        Attributes.make(1, 0o170644),
        Attributes.make(1, stat.S_IFREG, size=1 << 63),
        Attributes.make(1, stat.S_IFREG)._replace(mtimensec=1_000_000_000),
    ],
)
def test_impossible_attributes(attr: Attributes) -> None:
    class Odd(PlusTreeFilesystem):
        def attributes(self, item: Item) -> Attributes:
            return super().attributes(item) if item is self.root else attr

    with client_of(Odd({"a": b""})) as client:
        assert code_of(lambda: client.resolve(b"a")) == errno.EUCLEAN
        errors: list[tuple[bytes, int | None]] = []
        assert walk(client, errors) == []
        assert errors == [(b"a", errno.EUCLEAN)]


@pytest.mark.parametrize("target", [b"", b"a\0b", b"x" * 4096])
def test_impossible_symlinks(target: bytes) -> None:
    class Odd(TreeFilesystem):
        def readlink(self, ctx: Context, nodeid: NodeId) -> bytes:
            return target

    with client_of(Odd({"a": "x"})) as client:
        assert code_of(lambda: client.resolve(b"a")) in {errno.EUCLEAN, errno.EIO}


@pytest.mark.parametrize("answers", [{3: 50, 4: 20}, {3: 0, 4: 0}, {3: 5, 4: 5}])
def test_contradicting_lseek(answers: dict[int, int]) -> None:
    class Odd(TreeFilesystem):
        def lseek(self, ctx: Any, nodeid: Any, fh: Any, offset: int, whence: int) -> int:
            return answers[whence]

    with client_of(Odd({"f": b"d" * 100})) as client, client.open(client.resolve(b"f")) as file:
        assert code_of(lambda: list(file.data_ranges())) == errno.EIO


def test_size_that_is_not_there() -> None:
    """A file that says it is larger than what can be read ends where its data ends."""
    with client_of(TreeFilesystem({"f": Item(b"ab", size=1 << 40)})) as client:
        node = client.resolve(b"f")
        with client.open(node) as file:
            assert file.read(0, 10) == b"ab"
        assert client.read(client.resolve(b"f"), 5, 5) == b""


def test_unreadable_directories_do_not_end_a_walk() -> None:
    class Broken(TreeFilesystem):
        def readdir(self, ctx: Any, nodeid: Any, fh: Any, offset: int) -> Any:
            if nodeid == 2:
                raise FsError(errno.EIO)
            return super().readdir(ctx, nodeid, fh, offset)

    with client_of(Broken({"a": {"x": b""}, "b": {"y": b""}})) as client:
        errors: list[tuple[bytes, int | None]] = []
        assert [b"/".join(item.path) for item in walk(client, errors)] == [b"a", b"b", b"b/y"]
        assert errors == [(b"a", errno.EIO)]
        assert code_of(lambda: walk(client)) == errno.EIO


class Scripted:
    """A transport that answers INIT and GETATTR properly and the rest from a function."""

    def __init__(self, answer: Callable[[int, int], bytes | None]) -> None:
        self.filesystem = MemoryTransport(TreeFilesystem({"a": b"x"}), datapaths=Paths("copy"))
        self.answer = answer

    def call(self, message: bytes) -> bytes | None:
        header, _ = decode_request(message)
        if header.opcode in {Opcode.INIT, Opcode.GETATTR, Opcode.DESTROY}:
            return self.filesystem.call(message)
        return self.answer(header.opcode, header.unique)

    def wait_reply(self, unique: int, timeout: float) -> bytes:
        raise TimeoutError("nothing comes")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda _opcode, _unique: b"", errno.EIO),
        (lambda _opcode, _unique: b"\xff" * 40, errno.EIO),
        (lambda _opcode, unique: encode_reply(unique, replies.EmptyReply()), errno.EIO),
        (lambda _opcode, unique: encode_error(unique + 2, errno.ENOENT), errno.EIO),
        (lambda _opcode, unique: encode_error(unique, errno.EXDEV), errno.EXDEV),
        (lambda _opcode, _unique: None, errno.ETIMEDOUT),
    ],
)
def test_bad_replies(answer: Callable[[int, int], bytes | None], code: int) -> None:
    with Client(Scripted(answer)) as client:
        assert code_of(lambda: client.lookup(client.root, b"a")) == code


@given(st.binary(max_size=400))
def test_arbitrary_replies(data: bytes) -> None:
    def answer(opcode: int, unique: int) -> bytes:
        return (
            (16 + len(data)).to_bytes(4, "little") + bytes(4) + unique.to_bytes(8, "little") + data
        )

    with Client(Scripted(answer)) as client:
        for action in (
            lambda: client.lookup(1, b"a"),
            lambda: client.readlink(1),
            lambda: client.listxattr(1),
            lambda: client.statx(1),
            client.statfs,
            lambda: list(client.readdir(1)),
        ):
            with suppress(OSError):
                action()


def test_protocol_that_is_too_new() -> None:
    class Other(Scripted):
        def call(self, message: bytes) -> bytes | None:
            reply = self.filesystem.call(message)
            assert reply is not None
            return reply[:16] + (8).to_bytes(4, "little") + reply[20:]

    assert code_of(lambda: Client(Other(lambda _opcode, _unique: None))) == errno.EPROTO
