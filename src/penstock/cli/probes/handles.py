# SPDX-License-Identifier: Apache-2.0
"""What serving a directory needs: handles of its files, and being told of changes below it."""

from __future__ import annotations

import errno
import os
from typing import Final

from penstock.cli.errors import explain
from penstock.cli.probes.base import FIRST_NAMESPACE, SECONDS, Finding, attempt
from penstock.sys import probe
from penstock.sys.handles import CONNECTABLE, encode_handle, file_handle, open_handle

__all__ = ["handle_findings"]

_FILE: Final = os.path.realpath(__file__)
"""Handles have names only where a file has one, so none is made for this."""


def handle_findings() -> list[Finding]:
    """What concerns file handles and fanotify."""
    return [_connectable(), _open_by_handle(), _fanotify()]


def _connectable() -> Finding:
    title = "connectable file handles"
    how = f"name_to_handle_at with AT_HANDLE_CONNECTABLE on {_FILE}"
    try:
        plain = len(file_handle(_FILE)) - 8
    except OSError as error:
        detail = f"no handles at all: {explain(error)}"
        needs = "a filesystem with file handles"
        return Finding("file-handles", title, None, False, detail, how, needs)
    try:
        full = len(file_handle(_FILE, CONNECTABLE)) - 8
    except OSError as error:
        detail = f"handles of {plain} bytes, but not connectable: {explain(error)}"
        return Finding("file-handles", title, False, False, detail, how, "Linux 6.13")
    detail = f"{full} bytes, against {plain} for a plain one"
    return Finding("file-handles", title, True, True, detail, how)


def _open_by_handle() -> Finding:
    title, how = "opening files by handle", f"open_by_handle_at of {_FILE}"
    directory = os.open(os.path.dirname(_FILE), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = encode_handle(directory, os.fsencode(os.path.basename(_FILE)))
    except OSError as error:
        os.close(directory)
        return Finding(
            "open-by-handle", title, None, None, f"no handle to open: {explain(error)}", how
        )
    try:
        fd = open_handle(directory, handle, os.O_RDONLY)
    except OSError as error:
        needs = (
            "CAP_DAC_READ_SEARCH in the first user namespace (root); without, directories are"
            " served by names"
        )
        kernel = error.errno != errno.ENOSYS
        return Finding("open-by-handle", title, kernel, False, explain(error), how, needs)
    finally:
        os.close(directory)
    same = os.fstat(fd).st_ino == os.stat(_FILE).st_ino
    os.close(fd)
    if not same:
        needs = "a filesystem whose handles hold"
        return Finding("open-by-handle", title, True, False, "another file came", how, needs)
    return Finding("open-by-handle", title, True, True, "works", how)


def _fanotify() -> Finding:
    """Of a whole filesystem, as a served directory is only to be had with all that lies in it."""
    title, place = "being told of changes (fanotify)", os.getcwd()
    how = "fanotify_init and fanotify_mark with names, of a filesystem and of a directory"
    found = attempt(lambda: probe.watch_filesystem(place, whole=True), SECONDS)
    if not found.reason:
        detail = f"works for the whole filesystem of {place}"
        return Finding("fanotify", title, True, True, detail, how)
    if found.errno in {errno.ENOSYS, errno.EINVAL}:
        needs = "Linux 5.9 with CONFIG_FANOTIFY"
        return Finding("fanotify", title, False, False, found.reason, how, needs)
    if found.errno != errno.EPERM:
        needs = "a filesystem with an id of its own and file handles"
        return Finding("fanotify", title, True, False, f"{place}: {found.reason}", how, needs)
    single = attempt(lambda: probe.watch_filesystem(place, whole=False), SECONDS)
    detail = single.reason or f"for single directories only; for a filesystem: {found.reason}"
    return Finding("fanotify", title, True, False, detail, how, FIRST_NAMESPACE)
