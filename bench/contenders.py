# SPDX-License-Identifier: Apache-2.0
"""Who is measured, and the command by which each one mounts."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench import peers

__all__ = ["Contender", "image_contenders", "mirror_contenders"]

PENSTOCK = str(Path(sys.executable).parent / "penstock")
SLOW = 3
SLOW_SKIPS = frozenset(("million", "small by two"))


@dataclass(frozen=True)
class Contender:
    """One way to serve the image or the directory.

    Attributes:
        command: words of the mount command, in which ``{subject}`` (image or directory) and
            ``{point}`` (mount point) are filled in; empty: the directory itself is used.
        absent: why it cannot take part here; None when it can.
        server: it has processes of its own, whose memory can be looked at.
        foreground: the command serves, and ends when it is unmounted.
        optional: takes part only when it is asked for.
        rounds: how many rounds it takes part in at most; None: all.
        skips: sessions that it has no part in.
        environment: variables set for the command.
        stats: words of a command that prints JSON about the mount, with ``{point}``.
        version: words of a command that prints its version, or the version itself.
    """

    name: str
    title: str
    command: tuple[str, ...]
    absent: str | None = None
    server: bool = True
    foreground: bool = False
    optional: bool = False
    rounds: int | None = None
    skips: frozenset[str] = frozenset()
    environment: dict[str, str] = field(default_factory=dict)
    stats: tuple[str, ...] = ()
    version: tuple[str, ...] | str = ()


def _penstock(name: str, *, optional: bool = False) -> Contender:
    """penstock with the options that the name says: ``penstock-copy``, ``penstock-sandbox=no``."""
    word = name.partition("-")[2]
    option = word if "=" in word or not word else f"datapath={word}"
    return Contender(
        name,
        f"penstock, {word}" if word else name,
        (PENSTOCK, "mount", *(("-o", option) if option else ()), "{subject}", "{point}"),
        optional=optional,
        stats=(PENSTOCK, "stats", "--json", "{point}"),
        version=(PENSTOCK, "--version"),
    )


def image_contenders() -> tuple[Contender, ...]:
    """Those that mount an image; the ones that cannot take part with their reason."""
    root = os.geteuid() == 0
    return (
        Contender(
            "kernel",
            "kernel ext4 (loop)",
            ("mount", "-t", "ext4", "-o", "loop,ro", "{subject}", "{point}"),
            None if root else "only root can attach a loop device",
            server=False,
        ),
        Contender(
            "fuse2fs",
            "fuse2fs",
            ("fuse2fs", "-o", "ro", "{subject}", "{point}"),
            None if shutil.which("fuse2fs") else "not installed (Debian package fuse2fs)",
            version=("fuse2fs", "-V"),
        ),
        _penstock("penstock"),
        _penstock("penstock-splice"),
        _penstock("penstock-copy"),
        _penstock("penstock-sandbox=no", optional=True),
    )


def mirror_contenders() -> tuple[Contender, ...]:
    """Those that serve a directory; the ones that cannot take part with their reason."""
    high, low = peers.example("passthrough_hp"), peers.example("passthrough_ll")
    python = str(peers.PYTHON)
    libfuse = f"libfuse {peers.LIBFUSE.version}"
    library = {"FUSE_LIBRARY_PATH": str(peers.PREFIX / "lib" / "libfuse3.so.4")}
    return (
        Contender("native", "native", (), server=False),
        _penstock("penstock"),
        _penstock("penstock-copy"),
        Contender(
            "passthrough_hp",
            "passthrough_hp",
            (str(high), "{subject}", "{point}"),
            peers.absence("libfuse", high),
            version=libfuse,
        ),
        Contender(
            "passthrough_ll",
            "passthrough_ll",
            (str(low), "-o", "source={subject},cache=auto", "{point}"),
            peers.absence("libfuse", low),
            rounds=SLOW,
            skips=frozenset(("memory", "million")),  # it searches a list for each name
            version=libfuse,
        ),
        Contender(
            "pyfuse3",
            "pyfuse3",
            (python, str(peers.PASSTHROUGHFS), "{subject}", "{point}"),
            peers.absence("pyfuse3", peers.PASSTHROUGHFS),
            foreground=True,
            rounds=SLOW,
            skips=SLOW_SKIPS,
            version=f"pyfuse3 {peers.PYFUSE3.version}, {libfuse}",
        ),
        Contender(
            "mfusepy",
            "mfusepy",
            (python, str(peers.LOOPBACK), "{subject}", "{point}"),
            peers.absence("mfusepy", peers.LOOPBACK),
            foreground=True,
            rounds=SLOW,
            skips=SLOW_SKIPS,
            environment=library,
            version=f"mfusepy {peers.MFUSEPY.version}, {libfuse}",
        ),
    )
