# SPDX-License-Identifier: Apache-2.0
"""info, ls, cat and cp with the real server in its real sandbox: no root, no mount."""

from __future__ import annotations

import json
import lzma
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import COMMAND, good, is_gone, penstock, wait_for
from tests.support.contained import children
from tests.support.disks import gpt_disk, mbr_disk
from tests.support.images import MIB, copy_image, make_image
from tests.support.requirements import PROJECT

SECTOR = 512
BIG = 8 * MIB
NEVER = ("formats", "servers", "session", "transport", "datapath")
"""What reads images, or serves them: not in the process of a command."""
COMMANDS = {
    "ls": ["ls", "-lR", "IMAGE"],
    "cat": ["cat", "IMAGE:/file"],
    "cp": ["cp", "IMAGE", "OUT"],
    "info": ["info", "IMAGE"],
}


def fill(top: Path) -> Path:
    """A tree with odd names, links and a large file."""
    (top / "dir" / "sub").mkdir(parents=True)
    (top / "file").write_text("content\n")
    (top / "dir" / "link").symlink_to("../file")
    (top / "dir" / "sub" / os.fsdecode(b"\x1b]0;owned\x07\xff")).write_text("odd")
    with (top / "big").open("wb") as file:
        file.write(os.urandom(BIG))
        file.truncate(2 * BIG)
        file.seek(2 * BIG)
        file.write(b"end")
    return top


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("contained-tree"))


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("contained") / "disk.img", size=64 * MIB, tree=tree)


def command(name: str, image: Path, out: Path) -> list[str]:
    """The words of a command on an image."""
    return [word.replace("IMAGE", str(image)).replace("OUT", str(out)) for word in COMMANDS[name]]


def imported(*words: str | Path) -> set[str]:
    """The packages of penstock that the process of a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "penstock", *map(str, words)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=True,
    )
    return set(re.findall(r"\| +penstock\.(\w+)", done.stderr))


@pytest.mark.requires("mke2fs")
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_imports_what_reads_images(name: str, image: Path, tmp_path: Path) -> None:
    words = command(name, image, tmp_path / "out")
    assert imported(*words).isdisjoint(NEVER)
    # That can be told: with everything in one process they are there.
    words = command(name, image, tmp_path / "again")
    assert imported(*words, "-o", "sandbox=no") >= {"formats", "servers"}


@pytest.mark.requires("mke2fs")
def test_what_comes_out_is_what_went_in(image: Path, tree: Path, tmp_path: Path) -> None:
    assert good("cat", f"{image}:/dir/link") == "content\n"
    good("cp", image, tmp_path / "out")
    (tmp_path / "out" / "lost+found").rmdir()
    subprocess.run(["diff", "-r", tree, tmp_path / "out"], check=True)
    assert os.stat(tmp_path / "out" / "big").st_blocks * 512 < 2 * BIG


def images(top: Path) -> Iterator[Path]:
    """Images of all kinds: sound, dirty, damaged, foreign, partitioned, none."""
    for packed in sorted((PROJECT / "tests" / "corpus").glob("*.img.xz")):
        path = top / packed.stem
        path.write_bytes(lzma.decompress(packed.read_bytes()))
        yield path
    broken = bytearray(path.read_bytes())
    broken[1024 + 0x3FC] ^= 1
    parts = [(1, 2048, 4095, "d\u00e9j\u00e0 \x1b[31m"), (3, 4096, 5000, "")]
    disk = gpt_disk(8 * MIB, SECTOR, parts)
    disk[2048 * SECTOR : 2048 * SECTOR + 100_000] = path.read_bytes()[:100_000]
    for name, data in {
        "broken": bytes(broken),
        "gpt": bytes(disk),
        "mbr": mbr_disk(4 * MIB),
        "zeros": bytes(MIB),
        "empty": b"",
        "xfs": b"XFSB".ljust(MIB, b"\0"),
        "cut": path.read_bytes()[:4096],
    }.items():
        path = top / name
        path.write_bytes(data)
        yield path


@pytest.mark.timeout(600)
def test_the_sandbox_changes_nothing(tmp_path: Path) -> None:
    """The commands say the same of every image, with and without the sandbox."""
    thorough = (
        ["info"], ["info", "--json"], ["info", "--json", "-p", "1"], ["ls", "-laR"],
        ["ls", "--json", "-R", "-o", "nocheck"], ["ls", "-p", "3"], ["info", "-o", "bogus"],
        ["ls", "-o", "uid=x"], ["ls", "-t", "xfs"],
    )  # fmt: skip
    for path in images(tmp_path):
        many = path.name in {"gpt", "broken"}
        for words in thorough if many else (["info", "--json"], ["ls", "-laR"]):
            contained = penstock(*words, path)
            plain = penstock(*words, "-o", "sandbox=no", path)
            assert (contained.returncode, contained.stdout, contained.stderr) == (
                plain.returncode,
                plain.stdout,
                plain.stderr,
            ), (path.name, words)


@pytest.mark.parametrize(
    "words",
    [["-o", "odd word"], ["-o", "uid=" + "9" * 5000], ["-t", "no type"], ["-o", "x" * 70]],
    ids=["odd word", "long value", "odd type", "long word"],
)
def test_words_that_no_server_has(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    done = penstock("ls", *words, tmp_path / "disk.img")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert re.match(r"penstock: -[ot]", done.stderr) or "unknown option" in done.stderr


def test_too_many_words(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    words = ",".join(f"w{number}" for number in range(100))
    done = penstock("ls", "-o", words, tmp_path / "disk.img")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.requires("mke2fs")
def test_from_a_directory_that_is_gone(image: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    words = ["sh", "-c", script, str(gone), *COMMAND, "ls", str(image)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# The server's process


@contextmanager
def in_the_middle(image: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A cat whose output nobody reads any further, and the process number of its server."""
    process = subprocess.Popen(
        [*COMMAND, "cat", f"{image}:/big"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(1), process.communicate()
        (server,) = children(process.pid)
        yield process, server
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: is_gone(server), "the end of the server")


@pytest.mark.requires("mke2fs")
def test_a_server_that_is_killed(image: Path) -> None:
    with in_the_middle(image) as (process, server):
        os.kill(server, signal.SIGKILL)
        _, said = process.communicate(timeout=30)
        assert said == f"penstock: {image}: the server was killed (SIGKILL)\n".encode()
        assert process.returncode == 137


@pytest.mark.requires("mke2fs")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_its_command(image: Path, number: signal.Signals) -> None:
    with in_the_middle(image) as (process, server):
        process.send_signal(number)
        assert process.wait(30) == -number
        wait_for(lambda: is_gone(server), "the end of the server")


@pytest.mark.requires("mke2fs")
def test_an_interrupted_command(image: Path) -> None:
    with in_the_middle(image) as (process, server):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (130, b"")
        assert is_gone(server)


@pytest.mark.requires("mke2fs")
def test_a_server_that_is_stopped(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for ever: not for one that does not answer either."""
    start = (
        "import sys; from penstock.contain import reading; reading.REQUEST_SECONDS = 0.5; "
        "from penstock.cli.main import main; sys.exit(main())"
    )
    monkeypatch.setattr("tests.unit.test_contained_reading.COMMAND", (sys.executable, "-c", start))
    with in_the_middle(image) as (process, server):
        os.kill(server, signal.SIGSTOP)
        _, said = process.communicate(timeout=30)
        assert said == f"penstock: {image}: the server has not answered for 0.5 s\n".encode()
        assert process.returncode == 124


@pytest.mark.requires("mke2fs")
def test_the_server_of_a_command_is_contained(image: Path) -> None:
    with in_the_middle(image) as (_, server):
        status = Path(f"/proc/{server}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
        assert int(fields["CapEff"], 16) == 0
        assert os.readlink(f"/proc/{server}/root") != "/"


# Names


def rename_in_image(image: Path, old: bytes, new: bytes) -> None:
    """Give an entry of a directory another name of the same length, in a filesystem without
    checksums."""
    data = bytearray(image.read_bytes())
    assert len(old) == len(new)
    assert data.count(old) >= 1
    image.write_bytes(data.replace(old, new))


@pytest.mark.requires("mke2fs")
@pytest.mark.parametrize("name", [b"../../../escape", b"/tmp/the-escape", b"nul\0in-the-name"])
def test_an_image_of_impossible_names(tmp_path: Path, name: bytes) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    innocent = b"innocent-victim"
    (top / "good").write_text("good")
    (top / innocent.decode()).write_text("bad")
    made = make_image(tmp_path / "made.img", options=["-O", "^metadata_csum"], tree=top)
    image = copy_image(made, tmp_path / "names.img")
    rename_in_image(image, innocent, name)
    for words in (["ls", "-la"], ["ls", "--json"]):
        done = penstock(*words, image)
        assert done.returncode == 2
        assert name.decode().partition("\0")[0] not in done.stdout
    done = penstock("cp", image, tmp_path / "out")
    assert done.returncode == 2
    assert not os.path.exists("/tmp/the-escape")
    assert not list(tmp_path.rglob("*escape*"))
    assert not list((tmp_path / "out").rglob("*nul*"))


@pytest.mark.requires("mke2fs")
def test_odd_names_are_escaped(image: Path) -> None:
    rows = json.loads(good("ls", "-R", "--json", image))
    assert "/dir/sub/\x1b]0;owned\x07\udcff" in [row["path"] for row in rows]
    assert good("ls", "-R", "--json", image).isascii()
