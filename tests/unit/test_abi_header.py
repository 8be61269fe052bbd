# SPDX-License-Identifier: Apache-2.0
"""The FUSE protocol in numbers, compared with those who define it.

Three witnesses: ``<linux/fuse.h>`` of this system, through a C compiler; the running kernel's own
types (BTF), which are newer than the header on most systems; and, for what is newer than both, the
sizes and numbers of protocol 7.46 written down here.
"""

from __future__ import annotations

import enum
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from penstock.abi import fuse
from penstock.abi.layout import array, fields_of, is_layout, layout, pack, size_of, u32, unpack

SIZES = {
    "InHeader": 40, "OutHeader": 16, "Attr": 88, "SxTime": 16, "Statx": 256, "StatxIn": 24,
    "StatxOut": 288, "EntryOut": 128, "AttrOut": 104, "Kstatfs": 80, "FileLock": 24,
    "ForgetIn": 8, "ForgetOne": 16, "BatchForgetIn": 8, "GetattrIn": 16, "SetattrIn": 88,
    "MknodIn": 16, "MkdirIn": 8, "RenameIn": 8, "Rename2In": 16, "LinkIn": 8, "OpenIn": 8,
    "CreateIn": 16, "OpenOut": 16, "ReleaseIn": 24, "FlushIn": 24, "ReadIn": 40, "WriteIn": 40,
    "WriteOut": 8, "FsyncIn": 16, "SetxattrIn": 16, "GetxattrIn": 8, "GetxattrOut": 8, "LkIn": 48,
    "LkOut": 24, "AccessIn": 8, "InitIn": 64, "InitOut": 64, "InterruptIn": 8, "BmapIn": 16,
    "BmapOut": 8, "IoctlIn": 32, "IoctlIovec": 16, "IoctlOut": 16, "PollIn": 24, "PollOut": 8,
    "FallocateIn": 32, "LseekIn": 24, "LseekOut": 8, "CopyFileRangeIn": 56,
    "CopyFileRangeOut": 8, "SetupmappingIn": 40, "RemovemappingIn": 4, "RemovemappingOne": 16,
    "SyncfsIn": 8, "Dirent": 24, "CuseInitIn": 16, "CuseInitOut": 72, "SecctxHeader": 8,
    "Secctx": 8, "ExtHeader": 8, "SuppGroups": 4, "NotifyPollOut": 8, "NotifyInvalInodeOut": 24,
    "NotifyInvalEntryOut": 16, "NotifyDeleteOut": 24, "NotifyStoreOut": 24,
    "NotifyRetrieveOut": 32, "NotifyRetrieveIn": 40, "NotifyPruneOut": 16, "BackingMap": 16,
    "UringCmdReq": 24, "UringCmdReqBufpool": 40, "UringCmdReqZeroCopy": 40, "UringEntInOut": 32,
    "UringReqHeader": 288,
}  # fmt: skip
"""Every structure of protocol 7.46, in bytes."""

OTHER_NAMES = {
    "NotifyPollOut": "fuse_notify_poll_wakeup_out",
    "CuseInitIn": "cuse_init_in",
    "CuseInitOut": "cuse_init_out",
    "Rename2In": "fuse_rename2_in",
    "UringCmdReqBufpool": "fuse_uring_cmd_req",
    "UringCmdReqZeroCopy": "fuse_uring_cmd_req",
}
"""C names that do not follow from ours."""

GREW = {"fuse_init_out", "fuse_open_out", "fuse_uring_cmd_req", "fuse_uring_ent_in_out"}
"""Structures whose reserved space was given names by and by."""

FLAGS = {
    "InitFlag": "FUSE_",
    "CuseFlag": "CUSE_",
    "FOpen": "FOPEN_",
    "Fattr": "FATTR_",
    "AttrFlag": "FUSE_ATTR_",
    "GetattrFlag": "FUSE_GETATTR_",
    "OpenFlag": "FUSE_OPEN_",
    "ReadFlag": "FUSE_READ_",
    "WriteFlag": "FUSE_WRITE_",
    "ReleaseFlag": "FUSE_RELEASE_",
    "FsyncFlag": "FUSE_FSYNC_",
    "LkFlag": "FUSE_LK_",
    "PollFlag": "FUSE_POLL_",
    "SetxattrFlag": "FUSE_SETXATTR_",
    "IoctlFlag": "FUSE_IOCTL_",
    "InvalEntryFlag": "FUSE_",
    "SetupmappingFlag": "FUSE_SETUPMAPPING_FLAG_",
    "ExtType": "FUSE_EXT_",
    "Opcode": "FUSE_",
    "NotifyCode": "FUSE_NOTIFY_",
    "UringCmd": "FUSE_IO_URING_CMD_",
    "UringQueueFlag": "FUSE_URING_",
    "UringEntFlag": "FUSE_URING_ENT_",
    "RenameFlag": "RENAME_",
    "XattrFlag": "XATTR_",
    "StatxMask": "STATX_",
    "FallocMode": "FALLOC_FL_",
    "AccessMode": "",
}
"""Prefix of the C names of each enumeration."""

CONSTANTS = {
    "KERNEL_VERSION": "FUSE_KERNEL_VERSION",
    "ROOT_ID": "FUSE_ROOT_ID",
    "MIN_READ_BUFFER": "FUSE_MIN_READ_BUFFER",
    "MAX_NR_SECCTX": "FUSE_MAX_NR_SECCTX",
    "IOCTL_MAX_IOV": "FUSE_IOCTL_MAX_IOV",
    "CUSE_INIT_INFO_MAX": "CUSE_INIT_INFO_MAX",
    "COMPAT_INIT_OUT_SIZE": "FUSE_COMPAT_INIT_OUT_SIZE",
    "COMPAT_22_INIT_OUT_SIZE": "FUSE_COMPAT_22_INIT_OUT_SIZE",
    "COMPAT_SETXATTR_IN_SIZE": "FUSE_COMPAT_SETXATTR_IN_SIZE",
    "UNIQUE_RESEND": "FUSE_UNIQUE_RESEND",
    "DEV_IOC_MAGIC": "FUSE_DEV_IOC_MAGIC",
    "DEV_IOC_CLONE": "FUSE_DEV_IOC_CLONE",
    "DEV_IOC_BACKING_OPEN": "FUSE_DEV_IOC_BACKING_OPEN",
    "DEV_IOC_BACKING_CLOSE": "FUSE_DEV_IOC_BACKING_CLOSE",
    "DEV_IOC_SYNC_INIT": "FUSE_DEV_IOC_SYNC_INIT",
    "STATX_BASIC_STATS": "STATX_BASIC_STATS",
    "SYMLINK_MAX": "PATH_MAX - 1",
    "NAME_MAX": "PATH_MAX - 1",
    "URING_IN_OUT_HEADER_SIZE": "FUSE_URING_IN_OUT_HEADER_SZ",
    "URING_OP_IN_OUT_SIZE": "FUSE_URING_OP_IN_OUT_SZ",
}

KEPT_OUT = {
    "FUSE_KERNEL_MINOR_VERSION",
    "FUSE_COMPAT_ENTRY_OUT_SIZE", "FUSE_COMPAT_ATTR_OUT_SIZE", "FUSE_COMPAT_MKNOD_IN_SIZE",
    "FUSE_COMPAT_WRITE_IN_SIZE", "FUSE_COMPAT_STATFS_SIZE",
    "FUSE_WRITE_KILL_PRIV",
    "FUSE_NOTIFY_CODE_MAX",
    "FUSE_NAME_OFFSET", "FUSE_NAME_OFFSET_DIRENTPLUS", "FUSE_REMOVEMAPPING_MAX_ENTRY",
}  # fmt: skip
"""Names of the header that are left out: sizes before 7.9 and 7.12, an alias, expressions."""

INCLUDES = """\
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <linux/xattr.h>
"""

needs_cc = pytest.mark.requires("cc")
needs_btf = pytest.mark.requires("cc", "bpftool", "btf")


def layouts() -> dict[str, type]:
    """Every structure that the package exports."""
    return {name: getattr(fuse, name) for name in fuse.__all__ if is_layout(getattr(fuse, name))}


def c_name(name: str) -> str:
    """``ReadIn`` to ``fuse_read_in``."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return OTHER_NAMES.get(name, f"fuse_{snake}")


def members(name: str) -> dict[str, int]:
    """C names and values of one of our enumerations."""
    found: dict[str, int] = {}
    for member, value in getattr(fuse, name).__members__.items():
        prefix = "" if member.startswith(("CUSE_", "IOCTL_")) else FLAGS[name]
        found[f"FUSE_{member}" if member.startswith("IOCTL_") else prefix + member] = int(value)
    return found


@cache
def header_text() -> str:
    """The system's header without comments."""
    done = subprocess.run(
        ["cc", "-x", "c", "-E", "-dD", "-"],
        input="#include <linux/fuse.h>\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@cache
def btf_text() -> str:
    """The kernel's types in C: of the module if FUSE is one, else of the kernel itself."""
    vmlinux, module = Path("/sys/kernel/btf/vmlinux"), Path("/sys/kernel/btf/fuse")
    source = ["-B", str(vmlinux), "file", str(module)] if module.exists() else []
    done = subprocess.run(
        ["bpftool", "btf", "dump", *(source or ["file", str(vmlinux)]), "format", "c"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    return done.stdout


def declarations(text: str) -> dict[str, list[str]]:
    """Structures of the protocol in C text: name to names of fields, in order."""
    found = {}
    for match in re.finditer(r"^struct (\w+) \{\n(.*?)^\};", text, re.DOTALL | re.MULTILINE):
        body = re.sub(
            r"\t(union|struct) \{.*?^\t\}[^\n]*;", "", match[2], flags=re.DOTALL | re.MULTILINE
        )
        found[match[1]] = re.findall(r"(\w+)(?:\[[^\]]*\])?;", body)
    return found


def run_c(prelude: str, expressions: list[str], folder: Path) -> list[int]:
    """The values of C expressions."""
    lines = "\n".join(f'  printf("%lld\\n", (long long)({text}));' for text in expressions)
    source = folder / "values.c"
    source.write_text(f"{prelude}\nint main(void) {{\n{lines}\n  return 0;\n}}\n", encoding="utf-8")
    program = folder / "values"
    subprocess.run(["cc", "-w", "-o", program, source], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def compare_layouts(text: str, prelude: str, folder: Path) -> set[str]:
    """Compare all structures that ``text`` declares with ours; answers which those were."""
    declared = declarations(text)
    known = {name: cls for name, cls in layouts().items() if c_name(name) in declared}
    sizes = run_c(prelude, [f"sizeof(struct {c_name(name)})" for name in known], folder)
    questions: list[str] = []
    answers: list[int] = []
    for (name, cls), size in zip(known.items(), sizes, strict=True):
        struct = c_name(name)
        if size != size_of(cls):
            # The ring's command has had two sizes; ours are there for both.
            assert struct == "fuse_uring_cmd_req", f"{name}: {size_of(cls)} bytes, {size} in C"
            continue
        ours = {field.name: field for field in fields_of(cls)}
        for field in declared[struct]:
            mine = field.strip("_")
            if struct in GREW and (mine not in ours or mine == "unused"):
                continue
            if field == "groups" or (field == "name" and struct == "fuse_dirent"):
                continue  # the part of changing length
            assert mine in ours, f"{name} lacks {field}"
            questions += [f"offsetof(struct {struct}, {field})"]
            answers += [ours[mine].offset]
            questions += [f"sizeof(((struct {struct} *)0)->{field})"]
            answers += [ours[mine].size]
    assert dict(zip(questions, run_c(prelude, questions, folder), strict=True)) == dict(
        zip(questions, answers, strict=True)
    )
    return set(known)


def test_every_structure_has_the_size_of_the_protocol() -> None:
    assert {name: size_of(cls) for name, cls in layouts().items()} == SIZES


@needs_cc
def test_layouts_agree_with_the_header(tmp_path: Path) -> None:
    compared = compare_layouts(header_text(), INCLUDES + "#include <linux/fuse.h>", tmp_path)
    newer = {"BackingMap", "CopyFileRangeOut", "NotifyPruneOut", "StatxIn", "StatxOut", "SxTime"}
    newer |= {"Statx", "SuppGroups", *(name for name in SIZES if name.startswith("Uring"))}
    assert compared >= set(SIZES) - newer


@needs_btf
def test_layouts_agree_with_the_running_kernel(tmp_path: Path) -> None:
    text = btf_text()
    wanted = {c_name(name) for name in SIZES}
    parts = re.findall(r"^struct \w+ \{\n.*?^\};", text, re.DOTALL | re.MULTILINE)
    structs = [part for part in parts if part.split()[1] in wanted]
    # A command area within a union of its own (7.46) brings no type from outside with it.
    prelude = INCLUDES + "\n".join(structs)
    compared = compare_layouts("\n".join(structs), prelude, tmp_path)
    assert compared >= {"Attr", "EntryOut", "InHeader", "InitOut", "ReadIn", "WriteIn", "Dirent"}


@needs_cc
@pytest.mark.parametrize("name", FLAGS)
def test_numbers_agree_with_the_headers(name: str, tmp_path: Path) -> None:
    ours = members(name)
    defined = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", header_text()))
    elsewhere = {"RenameFlag", "XattrFlag", "StatxMask", "FallocMode", "AccessMode"}
    known = [c for c in ours if c in defined or name in elsewhere]
    newer = {"UringCmd", "UringQueueFlag", "UringEntFlag", "ExtType"}
    assert known or name in newer
    values = run_c(INCLUDES + "#include <linux/fuse.h>", known, tmp_path)
    # A macro of bit 31 is a negative int in C.
    theirs = {
        c: value % (1 << 32) if value < 0 else value for c, value in zip(known, values, strict=True)
    }
    assert theirs == {c: ours[c] for c in known}


@needs_cc
def test_constants_agree_with_the_header(tmp_path: Path) -> None:
    defined = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", header_text())) | {"PATH_MAX"}
    defined |= {"STATX_BASIC_STATS"}
    known = {ours: c for ours, c in CONSTANTS.items() if c.split()[0] in defined}
    assert len(known) >= 12
    values = run_c(INCLUDES + "#include <linux/fuse.h>", list(known.values()), tmp_path)
    for name, value in zip(known, values, strict=True):
        assert getattr(fuse, name) == value, name


@needs_cc
def test_ioctl_numbers_follow_from_their_arguments(tmp_path: Path) -> None:
    prelude = INCLUDES + "struct backing_map { int32_t fd; uint32_t flags; uint64_t padding; };"
    macros = [
        "_IOR(229, 0, uint32_t)",
        "_IOW(229, 1, struct backing_map)",
        "_IOW(229, 2, uint32_t)",
        "_IO(229, 3)",
    ]
    assert run_c(prelude, macros, tmp_path) == [
        fuse.DEV_IOC_CLONE,
        fuse.DEV_IOC_BACKING_OPEN,
        fuse.DEV_IOC_BACKING_CLOSE,
        fuse.DEV_IOC_SYNC_INIT,
    ]


@needs_cc
def test_nothing_of_the_header_is_missing() -> None:
    text = header_text()
    minor = re.search(r"#define FUSE_KERNEL_MINOR_VERSION (\d+)", text)
    assert minor is not None
    if int(minor[1]) > fuse.KERNEL_MINOR:
        # What a newer header adds cannot be known here; what is known was compared above.
        text = "".join(re.findall(r"#define FATTR_\w+[^\n]*\n", text))
    ours = {c for name in FLAGS for c in members(name)} | set(CONSTANTS.values())
    defined = set(re.findall(r"#define ((?:FUSE|FOPEN|FATTR|CUSE)_\w+)(?= )", text))
    defined |= set(re.findall(r"^\s*((?:FUSE|CUSE)_\w+)\s*=", text, re.MULTILINE))
    assert defined
    assert defined - ours - KEPT_OUT == set()


@needs_btf
@pytest.mark.parametrize(
    ("enumeration", "c"),
    [
        ("Opcode", "fuse_opcode"),
        ("NotifyCode", "fuse_notify_code"),
        ("ExtType", "fuse_ext_type"),
        ("UringCmd", "fuse_uring_cmd"),
    ],
)
def test_enumerations_agree_with_the_running_kernel(enumeration: str, c: str) -> None:
    match = re.search(rf"^enum {c} \{{(.*?)^\}};", btf_text(), re.DOTALL | re.MULTILINE)
    if match is None:
        assert c in {"fuse_ext_type", "fuse_uring_cmd"}, "older kernels have no such enumeration"
        return
    theirs = {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", match[1])}
    ours = members(enumeration)
    common = set(theirs) & set(ours)
    assert common
    assert {name: theirs[name] for name in common} == {name: ours[name] for name in common}


def test_what_is_newer_than_most_headers() -> None:
    """Bits and codes of protocol 7.39 to 7.46."""
    bits = {
        "DIRECT_IO_ALLOW_MMAP": 36, "PASSTHROUGH": 37, "NO_EXPORT_SUPPORT": 38, "HAS_RESEND": 39,
        "ALLOW_IDMAP": 40, "OVER_IO_URING": 41, "REQUEST_TIMEOUT": 42, "HAS_IO_URING_BUFPOOL": 43,
        "CREATE_SUPP_GROUP": 34, "HAS_EXPIRE_ONLY": 35,
    }  # fmt: skip
    assert {name: fuse.InitFlag[name].bit_length() - 1 for name in bits} == bits
    assert [fuse.FOpen.PASSTHROUGH, fuse.FOpen.IO_URING_ZERO_COPY] == [1 << 7, 1 << 8]
    assert [fuse.Opcode.STATX, fuse.Opcode.COPY_FILE_RANGE_64] == [52, 53]
    assert [fuse.NotifyCode.RESEND, fuse.NotifyCode.INC_EPOCH, fuse.NotifyCode.PRUNE] == [7, 8, 9]
    assert list(fuse.UringCmd) == [0, 1, 2, 3, 4]
    assert fuse.UNIQUE_RESEND == 1 << 63


def test_init_bits_are_contiguous_and_named_once() -> None:
    """Each of the 64 bits up to the newest has one name."""
    bits = [int(member) for member in fuse.InitFlag]
    assert bits == [1 << bit for bit in range(44)]
    assert fuse.InitFlag["DIRECT_IO_RELAX"].name == "DIRECT_IO_ALLOW_MMAP"


def test_every_flag_set_is_compared() -> None:
    exported = {name for name in fuse.__all__ if isinstance(getattr(fuse, name), enum.EnumMeta)}
    assert exported == set(FLAGS)


def test_unknown_flags_stay_numbers() -> None:
    assert int(fuse.InitFlag(1 << 60 | 1)) == 1 << 60 | 1
    assert int(fuse.FOpen(0x8000_0000)) == 0x8000_0000


def test_nested_layouts_pack_and_unpack() -> None:
    attr = fuse.Attr(1, 2, 3, -4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
    entry = fuse.EntryOut(1, 2, 3, 4, 5, 6, attr)
    raw = pack(entry)
    assert len(raw) == 128
    assert unpack(fuse.EntryOut, raw) == entry
    assert type(unpack(fuse.EntryOut, b"\0" * 5 + raw, 5).attr) is fuse.Attr


def test_subclass_of_a_layout_packs_like_it() -> None:
    class Mine(fuse.WriteOut):
        """A reply of an application's own."""

    assert pack(Mine(3, 0)) == pack(fuse.WriteOut(3, 0))
    assert size_of(Mine) == 8
    assert not is_layout(Mine)


def test_a_tuple_that_is_no_layout_is_refused() -> None:
    with pytest.raises(KeyError):
        pack((1, 2))


def test_annotations_may_be_text() -> None:
    from typing import NamedTuple

    @layout
    class Textual(NamedTuple):
        """Declared under ``from __future__ import annotations``."""

        first: u32
        second: u32

    assert pack(Textual(1, 2)) == b"\1\0\0\0\2\0\0\0"
    assert [tuple(field) for field in fields_of(Textual)] == [("first", 0, 4), ("second", 4, 4)]


def test_arrays_are_bytes_of_their_size() -> None:
    assert array("I", 11) == "44s"
    assert array("H", 11) == "22s"
