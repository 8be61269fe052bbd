# SPDX-License-Identifier: Apache-2.0
"""doctor: what it names, that trials cannot hang or leave anything, what it makes of answers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from penstock.abi.fuse import InitFlag
from penstock.cli.main import main
from penstock.cli.probes import Finding, datapaths, fuse, handles
from penstock.cli.probes.base import Attempt, attempt, kernel_config, kernel_symbol
from penstock.cli.probes.filesystems import erofs_image
from penstock.cli.probes.trialmount import TrialMount
from penstock.sys import landlock, probe
from tests.support.ordinary import OrdinaryUser

NAMES = [
    "fuse-device", "fusermount3", "mount-api", "fuse-protocol", "clone", "uring-transport",
    "io-uring", "sync-init", "max-pages-limit", "request-timeout", "resend", "fuse-idmap", "remap",
    "copy", "splice", "passthrough", "lens", "reflink", "iomap", "file-handles", "open-by-handle",
    "fanotify", "erofs", "erofs-file", "overlayfs", "fs-verity", "idmapped-mounts", "user-mounts",
    "landlock", "seccomp", "user-namespaces", "pidfd", "cgroup", "psi", "sandbox-namespaces",
    "sandbox-root", "sandbox-identity", "sandbox-capabilities", "sandbox-no-new-privs",
    "sandbox-landlock", "sandbox-limits", "sandbox-seccomp",
]  # fmt: skip


def children() -> set[str]:
    mine = f"\nPPid:\t{os.getpid()}\n"
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/status").read_text()
            except OSError:
                continue
            if mine in text:
                found.add(name)
    return found


def state() -> tuple[set[str], list[str]]:
    """What a trial could leave behind in this process."""
    return children(), os.listdir("/proc/self/fd")


@pytest.mark.serial
def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])  # what is imported once stays open once
    before = state()
    capsys.readouterr()
    begun = time.monotonic()
    assert main(["doctor", "--json"]) == 0
    assert time.monotonic() - begun < 20
    found = json.loads(capsys.readouterr().out)
    assert [feature["name"] for feature in found["features"]] == NAMES
    for feature in found["features"]:
        assert feature["kernel"] in {True, False, None}
        assert feature["user"] in {True, False, None}
        assert feature["how"]
        assert feature["detail"]
        if feature["kernel"] is False or feature["user"] is False:
            assert feature["enable"]
        if feature["kernel"] is False:
            assert not feature["user"]
    assert set(found["datapaths"]) == {"images", "directories"}
    assert state() == before


@pytest.mark.requires("root")
def test_doctor_leaves_no_mount() -> None:
    """In a mount namespace of its own, where nobody else mounts meanwhile."""
    look = "cat /proc/self/mountinfo"
    script = f"{look}; echo; {sys.executable} -m penstock doctor >&2 && {look}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    before, _, after = done.stdout.partition("\n\n")
    assert before
    assert after.strip() == before.strip()


def test_doctor_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding("a", "The first", True, True, "fine", "tried"),
        Finding("b", "Second\x1b", True, False, "not allowed", "read x", "ask for it"),
        Finding("c", "Third", None, None, "unknown", "not tried"),
    ]
    monkeypatch.setattr("penstock.cli.probes.all_findings", lambda: findings)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "The first  yes     yes  fine (tried)\n" in out
    assert "no   not allowed (read x)\n" in out
    assert "to get it: ask for it\n" in out
    assert "?       ?    unknown (not tried)\n" in out
    assert out.splitlines()[-1].startswith("In short: you can read images")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["doctor"]) == 0
    assert "\x1b[32myes" in capsys.readouterr().out


LONG = "/sys/module/fuse/parameters/" + "x" * 50


@pytest.mark.parametrize("columns", ["40", "60", "99", "100", "140"])
def test_doctor_keeps_words_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    findings = [
        Finding("a", "The first feature", True, False, f"no {LONG}", "read well-known places"),
        Finding("b", "mounting that waits for INIT", True, True, "a " * 100, "tried", "more"),
    ]
    monkeypatch.setattr("penstock.cli.probes.all_findings", lambda: findings)
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert LONG in out
    assert "well-known" in out
    too_long = [line for line in out.splitlines() if len(line) > int(columns)]
    assert all(LONG in line for line in too_long)
    assert ("kernel: yes  you: no" in out) == (int(columns) < 100)


def finding(name: str, user: bool, detail: str = "so it is") -> Finding:
    return Finding(name, name, None, user, detail, "read")


@pytest.mark.parametrize(
    ("device", "helper", "direct", "verdict"),
    [
        (True, True, True, "you can mount images and directories, and"),
        (True, True, False, "you can mount images and directories (fusermount3 helps), and"),
        (True, False, False, "but not mount them: fusermount3: so it is"),
        (False, True, True, "but not mount them: so it is"),
    ],
)
def test_doctor_ends_with_a_verdict(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    device: bool,
    helper: bool,
    direct: bool,
    verdict: str,
) -> None:
    findings = [
        finding("fuse-device", device), finding("fusermount3", helper), finding("mount-api", direct)
    ]  # fmt: skip
    monkeypatch.setattr("penstock.cli.probes.all_findings", lambda: findings)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["doctor", "--json"]) == 0
    assert verdict in json.loads(capsys.readouterr().out)["verdict"]
    assert main(["doctor"]) == 0
    assert verdict in " ".join(capsys.readouterr().out.split("\n\n")[-1].split())


def rows(**paths: bool) -> list[Finding]:
    """Somebody who can mount, and has these data paths."""
    return [
        *(finding(name, True) for name in ("fuse-device", "mount-api", "copy", "splice")),
        *(finding(name, user)._replace(enable=f"wish {name}") for name, user in paths.items()),
    ]


@pytest.mark.parametrize(
    ("findings", "images", "directories", "said"),
    [
        (
            rows(lens=True, passthrough=True), "lens", "passthrough",
            "file data goes by lens for images, by passthrough for directories",
        ),
        (
            rows(lens=False, passthrough=True), "splice", "passthrough",
            "by splice for images, by passthrough for directories (for lens: wish lens)",
        ),
        (
            rows(lens=False, passthrough=False), "splice", "splice",
            "file data goes by splice (for lens and passthrough: wish lens; wish passthrough)",
        ),
        (
            [*rows(lens=True, passthrough=True), finding("copy", False)], "", "",
            "you can read images (ls, cat, cp, info) but not mount them: so it is",
        ),
    ],
)  # fmt: skip
def test_doctor_says_which_data_paths_mounts_will_have(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    findings: list[Finding],
    images: str,
    directories: str,
    said: str,
) -> None:
    monkeypatch.setattr("penstock.cli.probes.all_findings", lambda: findings)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["datapaths"] == {"images": images, "directories": directories}
    assert told["verdict"].endswith(said)


@pytest.mark.requires("ordinary-user")
def test_doctor_for_ordinary_users(ordinary_user: OrdinaryUser) -> None:
    process = ordinary_user.popen([*ordinary_user.penstock, "doctor", "--json"])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    features = {feature["name"]: feature for feature in json.loads(out)["features"]}
    assert list(features) == NAMES
    for name in ("passthrough", "lens", "open-by-handle", "fanotify"):
        assert features[name]["user"] is False
        assert "in the first user namespace (root)" in features[name]["enable"]
    assert features["erofs-file"]["user"] is False
    assert features["landlock"]["user"] == features["landlock"]["kernel"]
    assert not list(Path("/tmp").glob("penstock-doctor-*"))


# Trials


def test_trial_answers() -> None:
    assert attempt(lambda: {"a": [1]}) == Attempt({"a": [1]}, 0, "")


def test_trial_fails() -> None:
    def refused() -> None:
        raise PermissionError(1, "not you")

    def broken() -> None:
        raise KeyError("x")

    assert attempt(refused) == Attempt(None, 1, "not you")
    assert attempt(broken) == Attempt(None, 0, "KeyError: 'x'")
    assert attempt(lambda: os._exit(0)).reason == "the trial died"
    assert attempt(lambda: os.kill(os.getpid(), signal.SIGKILL)).reason == "the trial died"


def test_trial_that_hangs_is_ended_with_its_children() -> None:
    read_end, write_end = os.pipe()

    def hang() -> None:
        os.close(read_end)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.fork()
        signal.pause()

    assert attempt(hang, seconds=0.2).reason == "no answer within 0 s"
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == b""  # all who could write to it have ended
    assert not children()


def test_trial_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    attempt(lambda: 1)
    attempt(lambda: os._exit(1))
    assert os.listdir("/proc/self/fd") == before


def test_kernel_texts_that_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.probes.base._config", dict)
    monkeypatch.setattr("penstock.cli.probes.base._symbols", frozenset)
    assert kernel_config("EROFS_FS") is None
    assert kernel_symbol("fuse_remap_file_range") is None
    monkeypatch.setattr("penstock.cli.probes.base._config", lambda: {"A": "y", "B": "m", "C": "12"})
    assert [kernel_config(name) for name in "ABCD"] == [True, True, False, False]


@pytest.mark.requires("root")
@pytest.mark.serial
def test_erofs_image_is_one(tmp_path: Path) -> None:
    """The kernel lists its root directory."""
    if "erofs" not in Path("/proc/filesystems").read_text():
        subprocess.run(["modprobe", "erofs"], check=False, capture_output=True)
    image = tmp_path / "image"
    image.write_bytes(erofs_image())

    def mount_and_list() -> list[str]:
        from penstock.abi.mount import MountAttr
        from penstock.sys import mount as sysmount

        context = sysmount.fsopen("erofs")
        sysmount.fsconfig_string(context, "source", str(image))
        sysmount.fsconfig_flag(context, "ro")
        sysmount.fsconfig_create(context)
        fd = sysmount.fsmount(context, MountAttr(0))
        names = os.listdir(os.open(".", os.O_RDONLY, dir_fd=fd))
        return [*names, oct(os.fstat(fd).st_mode)]

    found = attempt(mount_and_list)
    if found.errno in {15, 19}:  # ENOTBLK, ENODEV: no file-backed mounts, or no EROFS at all
        assert found.value is None
    else:
        assert found.value == ["0o40755"]


# What the features of a connection are made of


def offer(flags: int, **more: Any) -> dict[str, Any]:
    return {"minor": 45, "flags": flags, "clone": True, "backing": None, **more}


WORKS = TrialMount("read", dict.fromkeys(("copy", "splice", "passthrough"), ""), "", "/var/tmp")
NO_MOUNT = TrialMount("tried", {}, "nobody may")


def failing(**failures: str) -> TrialMount:
    return WORKS._replace(failures=WORKS.failures | failures)


def a_root(monkeypatch: pytest.MonkeyPatch, *, first: bool) -> None:
    """Have the rights of the first user namespace's root, or not."""
    monkeypatch.setattr(datapaths, "_is_first_root", lambda: first)


def test_data_paths_of_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datapaths, "file_text", lambda _path: "1048576")
    for judge in (datapaths._copy, datapaths._splice):
        works, gone = judge(WORKS), judge(NO_MOUNT)
        assert (works.kernel, works.user, works.enable) == (True, True, "")
        assert (gone.kernel, gone.user, gone.detail) == (None, False, "nobody may")
        assert "right to mount" in gone.enable
    inside = WORKS._replace(reason="in a user namespace alone")
    assert (datapaths._copy(inside).kernel, datapaths._copy(inside).user) == (True, False)
    refused = datapaths._splice(failing(splice="Invalid argument"))
    assert (refused.kernel, refused.user, refused.detail) == (True, False, "Invalid argument")
    monkeypatch.setattr(datapaths, "file_text", lambda _path: "65536")
    small = datapaths._splice(WORKS)
    assert small.user
    assert small.enable == "for larger reads, as root: echo 1048576 > /proc/sys/fs/pipe-max-size"


@pytest.mark.parametrize(
    ("flags", "trial", "first", "kernel", "user", "enable"),
    [
        (0, failing(passthrough="no"), True, False, False, "Linux 6.9"),
        (InitFlag.PASSTHROUGH, WORKS, True, True, True, ""),
        (InitFlag.PASSTHROUGH, failing(passthrough="no"), False, True, False, "CAP_SYS_ADMIN"),
        (InitFlag.PASSTHROUGH, failing(passthrough="no"), True, True, False, "not itself stacked"),
        (InitFlag.PASSTHROUGH, NO_MOUNT, True, True, False, "the right to mount"),
        (None, NO_MOUNT, False, None, False, "CAP_SYS_ADMIN"),
    ],
)
def test_passthrough(
    monkeypatch: pytest.MonkeyPatch,
    flags: int | None,
    trial: TrialMount,
    first: bool,
    kernel: bool | None,
    user: bool,
    enable: str,
) -> None:
    a_root(monkeypatch, first=first)
    found = datapaths._passthrough({} if flags is None else offer(int(flags)), trial)
    assert (found.kernel, found.user) == (kernel, user)
    assert enable in found.enable
    assert bool(enable) == bool(found.enable)


def test_passthrough_says_how_deep_the_files_are_stacked() -> None:
    bits = int(InitFlag.PASSTHROUGH)
    shallow = datapaths._passthrough(offer(bits, backing=0), WORKS)
    assert "stack depth 1" in shallow.detail
    deep = datapaths._passthrough(offer(bits, backing=errno.ELOOP), WORKS)
    assert "stack depth 2" in deep.detail


CARRIES = Finding("passthrough", "", True, True, "", "")
CARRIES_NOT = Finding("passthrough", "", False, False, "", "", "another kernel")


def lens_with(
    monkeypatch: pytest.MonkeyPatch, trial: Attempt, passthrough: Finding = CARRIES
) -> Finding:
    monkeypatch.setattr(datapaths, "attempt", lambda *_: trial)
    return datapaths._lens(passthrough)


def lens_answer(**more: Any) -> Attempt:
    said = {"place": "/var/tmp", "loop": False, "depth": 1, "stage": "", "reason": "", **more}
    return Attempt(said, 0, "")


def test_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    on_files = lens_with(monkeypatch, lens_answer())
    assert (on_files.user, on_files.enable) == (True, "")
    assert "without loop devices" in on_files.detail
    on_loop = lens_with(monkeypatch, lens_answer(loop=True, depth=2))
    assert "on loop devices" in on_loop.detail
    assert "stack depth 2" in on_loop.detail
    assert "CONFIG_EROFS_FS_BACKED_BY_FILE" in on_loop.enable
    unread = lens_with(monkeypatch, lens_answer(stage="read", reason="it is wrong"))
    assert (unread.user, unread.detail) == (False, "reading fails: it is wrong")
    alone = lens_with(monkeypatch, lens_answer(stage="register", reason="no"), CARRIES_NOT)
    assert (alone.kernel, alone.user, alone.enable) == (False, False, "another kernel")


@pytest.mark.parametrize(
    ("number", "first", "erofs", "kernel", "enable"),
    [
        (errno.ENODEV, True, False, False, "modprobe erofs"),
        (errno.EPERM, False, True, True, "CAP_SYS_ADMIN"),
        (errno.EPERM, False, False, False, "CAP_SYS_ADMIN"),
        (errno.EPERM, False, None, None, "CAP_SYS_ADMIN"),
        (errno.EPERM, True, True, True, "loop devices"),
        (errno.ENOENT, True, True, True, "modprobe loop"),
        (errno.ENOTBLK, True, True, True, "CONFIG_EROFS_FS_BACKED_BY_FILE"),
        (0, True, True, True, "loop devices"),
    ],
)
def test_lens_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    first: bool,
    erofs: bool | None,
    kernel: bool | None,
    enable: str,
) -> None:
    a_root(monkeypatch, first=first)
    monkeypatch.setattr(datapaths, "_has_erofs", lambda: erofs)
    found = lens_with(monkeypatch, Attempt(None, number, "it fails"))
    assert (found.kernel, found.user) == (kernel, False)
    assert "it fails" in found.detail
    assert enable in found.enable


@pytest.mark.parametrize(
    ("answers", "user", "detail"),
    [
        ([["xfs", 0, ""], ["ext4", 95, "no"]], True, "/var/tmp (xfs): works; {here} (ext4): no"),
        ([["ext4", 95, "no"], None], False, "/var/tmp (ext4): no; {here}: not you"),
        ([None, None], None, "/var/tmp: not you; {here}: not you"),
    ],
)
def test_reflink_is_tried_at_both_places(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers: list[Any],
    user: bool | None,
    detail: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    attempts = [
        Attempt(None, errno.EACCES, "not you") if answer is None else Attempt(answer, 0, "")
        for answer in answers
    ]
    monkeypatch.setattr(datapaths, "attempt", lambda *_: attempts.pop(0))
    found = datapaths._reflink()
    assert (found.user, found.detail) == (user, detail.format(here=tmp_path))
    assert bool(found.enable) == (not user)


def refuse(number: int, *, only_whole: bool = False) -> Any:
    def watch(_path: str, *, whole: bool) -> None:
        if whole or not only_whole:
            raise OSError(number, os.strerror(number))

    return watch


@pytest.mark.parametrize(
    ("number", "only_whole", "kernel", "words"),
    [
        (errno.EPERM, True, True, "for single directories only"),
        (errno.EPERM, False, True, "Operation not permitted"),
        (errno.ENOSYS, False, False, os.strerror(errno.ENOSYS)),
        (errno.ENODEV, False, True, "No such device"),
    ],
)
def test_fanotify(
    monkeypatch: pytest.MonkeyPatch, number: int, only_whole: bool, kernel: bool, words: str
) -> None:
    monkeypatch.setattr(
        probe, "watch_filesystem", refuse(number, only_whole=only_whole)
    )  # fmt: skip
    found = handles._fanotify()
    assert (found.kernel, found.user) == (kernel, False)
    assert words in found.detail
    assert found.enable


def test_handles_of_older_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(_fd: int, _name: bytes) -> bytes:
        raise OSError(errno.EINVAL, "unknown flag")

    monkeypatch.setattr(handles, "encode_handle", old)
    found = handles._open_by_handle()
    assert (found.kernel, found.user, found.detail) == (
        None,
        None,
        "no handle to open: unknown flag",
    )
    monkeypatch.setattr(handles, "encode_handle", lambda _fd, _name: b"")
    monkeypatch.setattr(handles, "open_handle", lambda *_: os.open("/", os.O_RDONLY))
    assert handles._open_by_handle().detail == "another file came"


def test_uring_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    switch: list[str | None] = ["N"]
    monkeypatch.setattr(fuse, "file_text", lambda _path: switch[0])
    off = fuse._uring_transport(offer(0), "how")
    assert (off.kernel, off.user) == (True, False)
    assert "echo Y >" in off.enable
    on = fuse._uring_transport(offer(int(InitFlag.OVER_IO_URING)), "how")
    assert (on.kernel, on.user, on.enable) == (True, True, "")
    switch[0] = None
    old = fuse._uring_transport(offer(0), "how")
    assert (old.kernel, old.user) == (False, False)


def test_iomap_is_not_taken_for_a_bit_of_another_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datapaths, "file_text", lambda _path: None)
    monkeypatch.setattr(datapaths, "kernel_symbol", lambda _name: False)
    assert datapaths._iomap(offer(1 << 43), "how").kernel is False
    monkeypatch.setattr(datapaths, "file_text", lambda _path: "Y")
    assert datapaths._iomap(offer(1 << 43), "how").user is True
    assert datapaths._iomap(offer(0), "how").user is False


def test_without_a_connection_nothing_is_claimed() -> None:
    found = {each.name: each for each in fuse.fuse_findings(Attempt(None, 1, "no way"), {}, "how")}
    assert found["fuse-protocol"].detail == "no way"
    for name in ("clone", "request-timeout", "resend", "fuse-idmap"):
        assert (found[name].kernel, found[name].user) == (None, None)


def test_probe_calls_that_change_nothing(tmp_path: Path) -> None:
    """They either work or say why not, with an OSError."""
    for action in (probe.io_uring_supported, landlock.abi_version):
        try:
            action()
        except OSError as error:
            assert error.errno in {1, 13, 22, 38, 95}  # noqa: PT017  either outcome is right
    file = tmp_path / "f"
    file.write_bytes(b"x")
    with open(file, "rb") as opened, pytest.raises(OSError, match=r".") as caught:
        probe.clone_range(opened.fileno(), opened.fileno(), 4096)  # not open for writing
    assert caught.value.errno in {9, 22, 25, 95}
